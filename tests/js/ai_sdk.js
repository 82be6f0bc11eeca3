// What an app does with the AI SDK and its provider for OpenAI-compatible servers, told as JSON. EDGE and KEY are in the
// environment; the question says which of the runtime's scripts answers it.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { APICallError, RetryError, generateText, streamText } from 'ai'
import { createClient } from '../../clients/js/src/index.js'

const { EDGE, KEY } = process.env

// Tokens that live for minutes, renewed in time: each request gets the one of now.
const hearthlink = createClient({
  baseUrl: EDGE,
  async getToken({ url }) {
    const headers = { 'content-type': 'application/json', authorization: `Bearer ${KEY}` }
    return (await fetch(`${url}/v1/token`, { method: 'POST', headers, body: '{}' })).json()
  },
})
let requests = 0
async function withToken(url, init) {
  requests++
  const headers = new Headers(init.headers)
  headers.set('authorization', `Bearer ${await hearthlink.token()}`)
  return fetch(url, { ...init, headers })
}

const edge = createOpenAICompatible({ name: 'hearthlink', baseURL: `${EDGE}/v1`, fetch: withToken, includeUsage: true })
const ask = (prompt, model = 'chat:home') => ({ model: edge(model), prompt, maxOutputTokens: 50, maxRetries: 3 })

const cases = {
  async answer() {
    const { text, finishReason, usage, response } = await generateText(ask('normal'))
    return { text, finishReason, usage, requestID: response.headers['x-request-id'] }
  },

  async stream() {
    const began = performance.now()
    const result = streamText(ask('slow'))
    const pieces = []
    let first
    for await (const piece of result.textStream) {
      first ??= performance.now() - began
      pieces.push(piece)
    }
    const last = performance.now() - began
    return { pieces, first, last, finishReason: await result.finishReason, usage: await result.usage }
  },

  async aborting() {
    const controller = new AbortController()
    const parts = []
    const result = streamText({ ...ask('endless'), abortSignal: controller.signal })
    for await (const { type } of result.fullStream) {
      parts.push(type)
      if (type === 'text-delta') controller.abort()
    }
    return parts.at(-1)
  },

  'wrong chat type': () => failure(() => generateText(ask('normal', 'chat:nope'))),

  'wrong token': () =>
    failure(() => {
      const wrong = createOpenAICompatible({ name: 'hearthlink', baseURL: `${EDGE}/v1`, apiKey: 'hlt_wrong' })
      return generateText({ model: wrong('chat:home'), prompt: 'normal' })
    }),

  async 'cut in mid-stream'() {
    const errors = []
    const result = streamText({ ...ask('cut'), onError: ({ error }) => errors.push(error) })
    let text = ''
    for await (const piece of result.textStream) text += piece
    return { text, errors: errors.map((error) => error.message ?? error), finishReason: await result.finishReason }
  },

  // One answer at a time: the second question is refused until the first is answered.
  async 'asked again after 429'() {
    const busy = streamText(ask('a while'))
    const pieces = busy.textStream[Symbol.asyncIterator]()
    await pieces.next()
    const refused = await failure(() => generateText({ ...ask('normal'), maxRetries: 0 }))
    const began = performance.now()
    const { text } = await generateText(ask('normal'))
    return { refused, text, waited: performance.now() - began, busy: await busy.text }
  },

  async 'no more today'() {
    const before = requests
    const error = await failure(() => generateText({ ...ask('x'.repeat(20_000)), maxRetries: 0 }))
    return { ...error, requests: requests - before }
  },
}

async function failure(attempt) {
  try {
    await attempt()
  } catch (caught) {
    const error = RetryError.isInstance(caught) ? caught.lastError : caught
    const { statusCode, message, data, isRetryable, responseHeaders } = error
    return {
      typed: APICallError.isInstance(error),
      statusCode,
      message,
      data,
      isRetryable,
      requestID: responseHeaders?.['x-request-id'],
    }
  }
  return null
}

const found = {}
for (const [name, one] of Object.entries(cases)) found[name] = await one()
hearthlink.close()
console.log(JSON.stringify(found))
