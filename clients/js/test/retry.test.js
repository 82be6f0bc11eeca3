// Tried again: before the first event, as often and as late as the server likes; never after it.

import assert from 'node:assert/strict'
import { mock, test } from 'node:test'
import { createClient } from '../src/index.js'
import { backoff } from '../src/retry.js'
import { answer, chunk, event, head, json, refusal, serve, until } from './support/server.js'

const QUICK = { minDelay: 1, maxDelay: 4 }
const LIMITS = { attempts: 3, minDelay: 500, maxDelay: 8000, maxRetryAfter: 60 }

// A client, one chat of it, and the delays it made.
function begin(server, retry = QUICK, more = {}) {
  const delays = []
  const onEvent = (event) => event.type === 'retry' && delays.push(event.delay)
  const client = createClient({ baseUrl: server.url, getToken: () => 'key', retry, onEvent, ...more })
  const chat = client.chat({ messages: [{ role: 'user', content: 'hi' }] })
  return { client, chat, delays }
}

test('full jitter: anything from nothing to 0.5 s, doubled each time, 8 s at most', () => {
  const limits = { ...LIMITS, attempts: 99 }
  const at = (random, tries) => {
    const mocked = mock.method(Math, 'random', () => random)
    const delay = backoff({ retryable: true }, tries, limits)
    mocked.mock.restore()
    return delay
  }
  for (const [tries, cap] of [
    [1, 500],
    [2, 1000],
    [3, 2000],
    [4, 4000],
    [5, 8000],
    [6, 8000],
    [40, 8000],
  ]) {
    assert.equal(at(0, tries), 0)
    assert.equal(at(0.5, tries), cap / 2)
    assert.ok(at(0.999999, tries) > cap * 0.99 && at(0.999999, tries) <= cap)
  }
})

test('what the server asks for comes first, and jitter on top of it', () => {
  for (let i = 0; i < 100; i++) {
    const delay = backoff({ retryable: true, retryAfter: 7 }, 1, LIMITS)
    assert.ok(delay >= 7000 && delay <= 7500)
  }
  assert.ok(backoff({ retryable: true, retryAfter: 60 }, 1, LIMITS) >= 60_000)
  assert.equal(backoff({ retryable: true, retryAfter: 61 }, 1, LIMITS), undefined)
  assert.equal(backoff({ retryable: true }, 3, LIMITS), undefined)
  assert.equal(backoff({ retryable: false, retryAfter: 1 }, 1, LIMITS), undefined)
})

for (const [status, code] of [
  [408, 'request_timeout'],
  [429, 'rate_limited'],
  [500, 'internal_error'],
  [502, 'runtime_error'],
  [503, 'overloaded'],
  [503, 'model_loading'],
  [504, undefined],
]) {
  test(`${status} ${code} twice, then an answer`, async (t) => {
    const server = await serve(t, [refusal(status, code), refusal(status, code), head + answer('at', ' last')])
    const { chat, delays } = begin(server)
    assert.equal(await chat.text(), 'at last')
    assert.equal(server.chats.length, 3)
    assert.equal(delays.length, 2)
    assert.deepEqual(server.chats[2].body, server.chats[0].body)
    assert.equal(new Set(server.chats.map(({ headers }) => headers['x-request-id'])).size, 1, 'one id in all logs')
  })
}

test('after three tries the error comes', async (t) => {
  const server = await serve(t, [refusal(503, 'overloaded')])
  await assert.rejects(begin(server).chat.text(), { name: 'OverloadedError', status: 503, requestId: 'req-refused-1' })
  assert.equal(server.chats.length, 3)
})

for (const [status, code] of [
  [400, 'invalid_request'],
  [403, 'model_not_allowed'],
  [404, 'chat_type_not_found'],
  [413, 'payload_too_large'],
]) {
  test(`${status} ${code} comes at once`, async (t) => {
    const server = await serve(t, [refusal(status, code)])
    await assert.rejects(begin(server).chat.text(), { status, code, retryable: false })
    assert.equal(server.chats.length, 1)
  })
}

test('x-should-retry decides, both ways', async (t) => {
  const no = await serve(t, [refusal(503, 'overloaded', { 'x-should-retry': 'false' })])
  await assert.rejects(begin(no).chat.text(), { code: 'overloaded' })
  assert.equal(no.chats.length, 1)
  const yes = await serve(t, [refusal(400, 'invalid_request', { 'x-should-retry': 'true' }), head + answer('ok')])
  assert.equal(await begin(yes).chat.text(), 'ok')
})

test('429 with its headers, in sequence', async (t) => {
  const server = await serve(t, [
    refusal(429, 'rate_limited', { 'retry-after-ms': '40', 'retry-after': '60' }),
    refusal(429, 'rate_limited', { 'retry-after': '1' }),
    head + answer('ok'),
  ])
  const began = performance.now()
  const { chat, delays } = begin(server)
  assert.equal(await chat.text(), 'ok')
  assert.ok(delays[0] >= 40 && delays[0] < 50 && delays[1] >= 1000 && delays[1] < 1010, String(delays))
  assert.ok(performance.now() - began >= 1040)
})

test('an hour is for a person to decide', async (t) => {
  const quota = refusal(429, 'quota_exceeded', { 'retry-after': '3600', 'x-should-retry': 'false' }, 'rate_limit_error')
  const limit = refusal(429, 'rate_limited', { 'retry-after': '61' }, 'rate_limit_error')
  for (const [script, name, retryAfter] of [
    [quota, 'QuotaExceededError', 3600],
    [limit, 'RateLimitError', 61],
  ]) {
    const server = await serve(t, [script])
    await assert.rejects(begin(server).chat.text(), { name, retryAfter })
    assert.equal(server.chats.length, 1)
  }
})

test('a wait can be stopped', async (t) => {
  const server = await serve(t, [refusal(503, 'overloaded', { 'retry-after': '30' })])
  const { chat, delays } = begin(server)
  const text = chat.text()
  await until(() => delays.length)
  chat.cancel()
  await assert.rejects(text, { name: 'UserAbortError' })
  assert.equal(server.chats.length, 1)
})

const reset = (before) => (socket) => {
  socket.write(before)
  setTimeout(() => socket.resetAndDestroy(), 10)
}

for (const [name, script] of Object.entries({
  'no answer at all': reset(''),
  'half a head': reset('HTTP/1.1 200 OK\r\ncontent-ty'),
  'a head only': reset(head),
  'the role only': reset(head + chunk({ role: 'assistant', content: '' })),
  'an end without an end marker': head + chunk({ role: 'assistant', content: '' }),
  'an error before anything else':
    head + event({ error: { message: 'm', type: 'server_error', code: 'upstream_incomplete' } }, 'error'),
})) {
  test(`${name}: nothing was shown, so it is asked again`, async (t) => {
    const server = await serve(t, [script, head + answer('second')])
    assert.equal(await begin(server).chat.text(), 'second')
    assert.equal(server.chats.length, 2)
  })
}

for (const [name, script] of Object.entries({
  'a word and a reset': reset(head + chunk({ content: 'Once' })),
  'a word and an end': head + chunk({ content: 'Once' }),
  'a place in the queue and a reset': reset(head + event({ position: 3, eta_seconds: null }, 'queued')),
  'a thought and an end': head + chunk({ reasoning_content: 'Hm' }),
})) {
  test(`${name}: something was shown, so it is not`, async (t) => {
    const server = await serve(t, [script, head + answer('second')])
    await assert.rejects(begin(server).chat.text(), { name: 'StreamInterruptedError', code: 'stream_interrupted' })
    assert.equal(server.chats.length, 1)
  })
}

test('an error that took minutes to come is not tried again', async (t) => {
  const late = event({ error: { message: 'm', type: 'server_error', code: 'first_token_timeout' } }, 'error')
  const server = await serve(t, [head + late])
  await assert.rejects(begin(server).chat.text(), { name: 'TimeoutError', code: 'first_token_timeout' })
  assert.equal(server.chats.length, 1)
})

test('lists are tried again, too', async (t) => {
  let asked = 0
  const models = (socket) => socket.end(++asked < 3 ? refusal(503, 'node_unavailable') : json(200, { data: [] }))
  const server = await serve(t, [], { 'GET /v1/models': models })
  assert.deepEqual(await begin(server).client.get('/v1/models'), { data: [] })
  assert.equal(asked, 3)
})

test('a list whose body is cut is asked for again', async (t) => {
  let asked = 0
  const whole = json(200, { data: [1, 2, 3] })
  const models = (socket) => socket.end(++asked < 2 ? whole.slice(0, -5) : whole)
  const server = await serve(t, [], { 'GET /v1/models': models })
  assert.deepEqual(await begin(server).client.get('/v1/models'), { data: [1, 2, 3] })
})

test('a list can be aborted', async (t) => {
  const server = await serve(t, [], { 'GET /v1/me': () => {} })
  const controller = new AbortController()
  const me = begin(server).client.get('/v1/me', { signal: controller.signal })
  await until(() => server.requests.length === 1)
  controller.abort()
  await assert.rejects(me, { name: 'UserAbortError' })
  await until(() => server.requests[0].left)
})
