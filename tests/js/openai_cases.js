// What an app does with the `openai` package, told as JSON: the same in Node and in a page. The question says which of
// the runtime's scripts answers it.

const MODEL = 'chat:home'
const ask = (content) => ({ model: MODEL, max_tokens: 50, messages: [{ role: 'user', content }] })

export async function allCases({ OpenAI, edge, apiKey }) {
  // An answer that was just left counts until the edge has seen it, so the question behind it may have to wait.
  const options = { baseURL: `${edge}/v1`, apiKey, maxRetries: 3, dangerouslyAllowBrowser: true }
  const client = new OpenAI(options)
  const found = {}
  for (const [name, one] of Object.entries(cases)) found[name] = await one(client, OpenAI)
  return found
}

const cases = {
  async answer(client) {
    const answer = await client.chat.completions.create(ask('normal'))
    const [{ message, finish_reason }] = answer.choices
    return { text: message.content, finish_reason, usage: answer.usage, requestID: answer._request_id }
  },

  async stream(client) {
    const chunks = []
    const params = { ...ask('slow'), stream: true, stream_options: { include_usage: true } }
    const began = performance.now()
    let first
    for await (const chunk of await client.chat.completions.create(params)) {
      if (chunk.choices[0]?.delta.content) first ??= performance.now() - began
      chunks.push(chunk)
    }
    return {
      pieces: chunks.map(({ choices }) => choices[0]?.delta.content).filter(Boolean),
      finish_reason: chunks.map(({ choices }) => choices[0]?.finish_reason).find(Boolean),
      usage: chunks.at(-1).usage,
      first,
      last: performance.now() - began,
    }
  },

  async helper(client) {
    const stream = client.chat.completions.stream(ask('normal'))
    let text = ''
    stream.on('content', (delta) => (text += delta))
    const [{ message }] = (await stream.finalChatCompletion()).choices
    return { text, final: message.content }
  },

  async models(client) {
    const ids = []
    for await (const { id } of client.models.list()) ids.push(id)
    return ids
  },

  async breaking(client) {
    for await (const { choices } of await client.chat.completions.create({ ...ask('endless'), stream: true })) {
      if (choices[0].delta.content) break
    }
    return true
  },

  async aborting(client, OpenAI) {
    const controller = new AbortController()
    const params = { ...ask('endless'), stream: true }
    try {
      for await (const { choices } of await client.chat.completions.create(params, { signal: controller.signal })) {
        if (choices[0].delta.content) controller.abort()
      }
    } catch (error) {
      return error instanceof OpenAI.APIUserAbortError
    }
    return true // the SDK ends an aborted loop without an error
  },

  'wrong token': (client) =>
    failure(() => client.withOptions({ apiKey: 'hlt_wrong' }).chat.completions.create(ask('normal'))),

  'wrong chat type': (client) => failure(() => client.chat.completions.create({ ...ask('normal'), model: 'chat:nope' })),

  'wrong model': (client) => failure(() => client.models.retrieve('nope')),

  'cut in mid-stream': (client) =>
    failure(async () => {
      for await (const _ of await client.chat.completions.create({ ...ask('cut'), stream: true }));
    }),

  // One answer at a time: the second question is refused until the first is answered.
  async 'asked again after 429'(client) {
    const busy = await client.chat.completions.create({ ...ask('a while'), stream: true })
    const refused = await failure(() => client.withOptions({ maxRetries: 0 }).chat.completions.create(ask('normal')))
    const began = performance.now()
    const patient = client.chat.completions.create(ask('normal'))
    for await (const _ of busy);
    const { choices } = await patient
    return { refused, text: choices[0].message.content, waited: performance.now() - began }
  },

  'no more today': (client) => failure(() => client.chat.completions.create(ask('x'.repeat(20_000)))),
}

async function failure(attempt) {
  try {
    await attempt()
  } catch (error) {
    const { status, code, type, param, requestID, message } = error
    const [retryAfter, shouldRetry] = ['retry-after', 'x-should-retry'].map((name) => error.headers?.get(name) ?? null)
    return { kind: error.constructor.name, status, code, type, param, requestID, message, retryAfter, shouldRetry }
  }
  return null
}
