import { HearthlinkError, UserAbortError, errorFrom, interrupted } from './errors.js'
import { aborted, createDeadline } from './deadline.js'
import { readJson } from './endpoint.js'
import { persist } from './retry.js'
import { createParser } from './sse.js'

// Milliseconds for the end of a body after its [DONE]. Read to its end, the connection can serve another request.
const TAIL = 250

// One answer. Nothing is sent before somebody reads it: `for await`, `text()` or `final()`.
export function createChat(client, params) {
  const { timeouts, emit } = client
  const call = createDeadline(params.signal)
  const answer = { text: '', reasoning: '' }
  let began = performance.now()
  let isRead
  let isOver
  let stop
  let resolve
  let reject
  const end = new Promise((...settle) => ([resolve, reject] = settle))
  end.catch(() => {}) // who iterates hears of it there
  call.signal.onabort = () => {
    stop?.()
    fail(call.signal.reason)
  }

  const chat = {
    status: 'idle',
    requestId: crypto.getRandomValues(new Uint32Array(4)).join('-'),

    [Symbol.asyncIterator]() {
      if (isRead) throw new TypeError('A chat can be read only once.')
      isRead = true
      return run()
    },
    final() {
      if (!isRead) drain().catch(() => {})
      return end
    },
    text: async () => (await chat.final()).text,
    cancel: () => call.abort(aborted()),
  }

  async function drain() {
    for await (const _ of chat);
  }

  async function* run() {
    began = performance.now()
    try {
      call.signal.throwIfAborted()
      chat.status = 'connecting'
      if (params.stream === false) call.arm(timeouts.total, 'total_timeout')
      yield* persist(attempt, client, call.signal)
    } catch (error) {
      throw fail(error)
    } finally {
      if (!isOver) chat.cancel() // left in the middle
      call.close()
    }
  }

  async function* attempt(endpoint, wait) {
    stop = undefined
    tell('request', { url: endpoint.url })
    const { headers, body } = (chat.response = await endpoint.chat(params, chat.requestId, wait))
    chat.requestId = headers.get('x-request-id') ?? chat.requestId
    chat.id = headers.get('hearthlink-chat-id') ?? undefined
    try {
      if (headers.get('content-type').includes('json')) {
        yield* read({}, await readJson(chat.response, wait))
        yield finish()
      } else {
        if (chat.id) stop = () => endpoint.stop(chat.id)
        yield* events(body.getReader(), wait)
      }
    } catch (error) {
      throw interrupted(error)
    }
  }

  async function* events(reader, wait) {
    const parser = createParser()
    wait.arm(timeouts.firstByte, 'first_byte_timeout')
    for (;;) {
      const { done, value } = await wait.race(reader.read())
      wait.arm(0) // our reader takes its time
      if (done) throw new Error('no [DONE]')
      for (const event of parser.feed(value)) {
        if (event.data === '[DONE]') {
          yield finish()
          wait.arm(TAIL)
          return void (await wait.race(reader.read()).catch(() => {}))
        }
        for (const value of read(event)) {
          yield value
          wait.signal.throwIfAborted()
        }
      }
      wait.arm(timeouts.idle, 'idle_timeout')
    }
  }

  // What one event of the wire, or a whole JSON answer, says to the reader.
  function* read({ event, data, error }, body = error === undefined ? JSON.parse(data) : { error }) {
    if (event === 'error' || body.error) throw errorFrom(body.error ? body : { error: body })
    if (event === 'queued' || event === 'loading') {
      chat.status = event
      return yield { ...camel(body), type: event }
    }
    if (chat.status === 'queued' || chat.status === 'loading') yield { type: (chat.status = 'connecting') }
    const { choices: [choice = {}] = [], usage, model = answer.model } = body
    const { content, reasoning, reasoning_content } = choice.delta ?? choice.message ?? {}
    answer.model = model
    answer.finishReason = choice.finish_reason ?? answer.finishReason
    const thought = reasoning || reasoning_content
    if (thought) yield said('reasoning', thought)
    if (content) yield said('text', content)
    if (usage) yield { type: 'usage', usage: (answer.usage = camel(usage)) }
  }

  function said(type, delta) {
    if (chat.status !== 'streaming') tell('first')
    chat.status = 'streaming'
    answer[type] += delta
    return { type, delta }
  }

  function finish() {
    const { id, requestId } = chat
    const { finishReason, usage } = answer
    over('done')
    resolve({ id, requestId, ...answer })
    tell('done', { usage })
    return { type: 'done', finishReason, usage }
  }

  function fail(error) {
    if (isOver) return error
    if (error instanceof HearthlinkError) {
      error.requestId ??= chat.requestId
      error.partial = answer.text || undefined
    }
    over(error instanceof UserAbortError ? 'cancelled' : 'error')
    reject(error)
    tell('error', { error })
    return error
  }

  function over(status) {
    chat.status = status
    isOver = true
    stop = undefined
  }

  function tell(type, details) {
    emit(type, { requestId: chat.requestId, ms: performance.now() - began, ...details })
  }

  return chat
}

const camel = (fields) =>
  Object.fromEntries(
    Object.entries(fields).map(([name, value]) => [name.replace(/_./g, (part) => part[1].toUpperCase()), value]),
  )
