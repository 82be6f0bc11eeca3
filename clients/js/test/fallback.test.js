// Several addresses: the next one when one is down, the first one again when it is back.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient } from '../src/index.js'
import { shiftClock } from './support/clock.js'
import {
  TOKEN,
  USAGE,
  answer,
  chunk,
  deadUrl,
  event,
  head,
  json,
  pause,
  refusal,
  response,
  serve,
  until,
} from './support/server.js'

const ask = (client, more) => client.chat({ messages: [{ role: 'user', content: 'hi' }], ...more })

function begin(baseUrls, more = {}) {
  const moves = []
  const onEvent = (event) => event.type === 'fallback' && moves.push(event.url)
  return { client: createClient({ baseUrls, onEvent, retry: { minDelay: 1, maxDelay: 2 }, ...more }), moves }
}

test('an address where nobody listens is left at once, and for the next chats, too', async (t) => {
  const second = await serve(t)
  const dead = await deadUrl()
  const { client, moves } = begin([dead, second.url])
  assert.equal(await ask(client).text(), 'Hello world')
  assert.equal(await ask(client).text(), 'Hello world')
  assert.deepEqual(moves, [second.url])
})

for (const [name, script, left] of [
  ['503 node_unavailable', refusal(503, 'node_unavailable'), true],
  ['503 draining', refusal(503, 'draining'), true],
  ['502', response(502, { 'content-type': 'text/html', 'content-length': 4 }, 'oops'), true],
  ['503 of a proxy', response(503, { 'content-length': 0 }), true],
  ['a reset', (socket) => socket.resetAndDestroy(), true],
  ['a login page', response(200, { 'content-type': 'text/html' }, '<html>'), true],
  [
    'node_unavailable in the stream',
    head + event({ error: { message: 'm', type: 'server_error', code: 'node_unavailable' } }, 'error'),
    true,
  ],
  ['503 overloaded', refusal(503, 'overloaded'), false],
  ['429', refusal(429, 'rate_limited'), false],
  ['400', refusal(400, 'invalid_request'), false],
  ['500', refusal(500, 'internal_error'), false],
]) {
  test(`${name} ${left ? 'is a reason' : 'is no reason'} to leave`, async (t) => {
    const [first, second] = [await serve(t, [script]), await serve(t)]
    const { client } = begin([first.url, second.url])
    if (left) assert.equal(await ask(client).text(), 'Hello world')
    else await assert.rejects(ask(client).text())
    assert.equal(second.chats.length, left ? 1 : 0)
    if (left) assert.equal(first.chats.length, 1)
  })
}

test('an address that does not answer in time is left', async (t) => {
  const [first, second] = [await serve(t, [() => {}]), await serve(t)]
  const { client } = begin([first.url, second.url], { timeouts: { connect: 60 } })
  assert.equal(await ask(client).text(), 'Hello world')
  await until(() => first.chats[0].left)
})

test('a word was shown: the chat stays where it is', async (t) => {
  const [first, second] = [await serve(t, [head + chunk({ content: 'Once' })]), await serve(t)]
  const { client } = begin([first.url, second.url])
  await assert.rejects(ask(client).text(), { name: 'StreamInterruptedError', partial: 'Once' })
  assert.equal(second.requests.length, 0)
})

test('when all are down each is tried, thrice', async (t) => {
  const away = refusal(503, 'node_unavailable')
  const [first, second] = [await serve(t, [away]), await serve(t, [away])]
  const { client } = begin([first.url, second.url])
  await assert.rejects(ask(client).text(), { name: 'NodeUnavailableError' })
  assert.deepEqual([first.chats.length, second.chats.length], [3, 3])
})

test('each edge has a token of its own', async (t) => {
  const first = await serve(t, [refusal(503, 'draining')])
  const second = await serve(t, undefined, { 'POST /v1/token': json(200, { ...TOKEN, token: 'hlt_two' }) })
  const { client } = begin([first.url, second.url])
  await ask(client).text()
  assert.equal(second.chats[0].headers.authorization, 'Bearer hlt_two')
})

test('the first address is used again once it answers a probe, a minute later', async (t) => {
  const clock = shiftClock(t)
  let healthy = false
  const health = (socket) => socket.end(healthy ? json(200, { status: 'ok' }) : json(503, { status: 'unavailable' }))
  const first = await serve(t, [refusal(503, 'node_unavailable'), head + answer('first')], { 'GET /healthz': health })
  const second = await serve(t, [head + answer('second')])
  const { client, moves } = begin([first.url, second.url])
  const probes = () => first.named('GET /healthz').length
  assert.equal(await ask(client).text(), 'second')

  clock.ahead += 59_000
  assert.equal(await ask(client).text(), 'second')
  await pause(20)
  assert.equal(probes(), 0)

  clock.ahead += 2000
  assert.equal(await ask(client).text(), 'second')
  await until(() => probes() === 1)
  assert.equal(await ask(client).text(), 'second', 'it is not well yet')
  await pause(20)
  assert.equal(probes(), 1, 'one probe a minute')

  healthy = true
  clock.ahead += 61_000
  assert.equal(await ask(client).text(), 'second', 'nobody waits for a probe')
  await until(() => moves.length === 2)
  assert.equal(await ask(client).text(), 'first')
  assert.deepEqual(moves, [second.url, first.url])
})

// -- plain OpenAI-compatible servers --

const plainStream = response(200, { 'content-type': 'text/event-stream' }, answer('from', ' here'))
const completions = (script) => ({ 'POST /v1/chat/completions': script })

test("a plain server gets OpenAI's body and nothing of ours", async (t) => {
  const server = await serve(t, [], completions(plainStream))
  const edge = await deadUrl()
  const { client } = begin([edge, { url: `${server.url}/v1/`, kind: 'openai', model: 'qwen' }])
  const chat = ask(client, {
    chatType: 'home',
    metadata: { a: 1 },
    clientId: 'app',
    maxTokens: 9,
    topP: 0.5,
    model: 'of-the-node',
  })
  const { text, usage } = await chat.final()
  assert.equal(text, 'from here')
  assert.equal(usage.totalTokens, USAGE.total_tokens)
  assert.equal(server.requests.length, 1)
  const [{ path, headers, body }] = server.requests
  assert.equal(path, '/v1/chat/completions')
  assert.equal(headers.authorization, undefined)
  assert.equal(headers['x-request-id'], undefined)
  assert.deepEqual(body, {
    messages: [{ role: 'user', content: 'hi' }],
    stream: true,
    model: 'qwen',
    max_tokens: 9,
    top_p: 0.5,
    stream_options: { include_usage: true },
  })
})

test("what the owner's proxy wants goes to edges with every request, and nowhere else", async (t) => {
  const endless = (socket) => socket.write(head + chunk({ content: 'a' }))
  const edge = await serve(t, [endless, refusal(503, 'draining')], { 'DELETE /v1/chat/chat-1': response(204, {}) })
  const plain = await serve(t, [], completions(plainStream))
  const headers = { 'CF-Access-Client-Id': 'one.access', 'CF-Access-Client-Secret': 'two' }
  const { client } = begin([edge.url, { url: plain.url, kind: 'openai' }], { headers })
  for await (const _ of ask(client)) break
  await until(() => edge.requests.some(({ method }) => method === 'DELETE'))
  assert.equal(await ask(client).text(), 'from here')
  assert.deepEqual([...new Set(edge.requests.map(({ method, path }) => `${method} ${path}`))].sort(), [
    'DELETE /v1/chat/chat-1',
    'POST /v1/chat',
    'POST /v1/token',
  ])
  for (const { headers: sent } of edge.requests) {
    assert.deepEqual([sent['cf-access-client-id'], sent['cf-access-client-secret']], ['one.access', 'two'])
  }
  assert.deepEqual(
    Object.keys(plain.requests[0].headers).filter((name) => name.startsWith('cf-')),
    [],
  )
})

test('a plain server may take its time before its head', async (t) => {
  const slow = async (socket) => {
    await pause(80)
    socket.end(plainStream)
  }
  const server = await serve(t, [], completions(slow))
  const { client } = begin([{ url: server.url, kind: 'openai' }], { timeouts: { connect: 20, firstByte: 1000 } })
  assert.equal(await ask(client).text(), 'from here')
})

test('a plain server is not asked to stop, it is left', async (t) => {
  let gone = false
  const endless = (socket) => {
    socket.write(response(200, { 'content-type': 'text/event-stream' }, chunk({ content: 'a' })))
    socket.on('close', () => (gone = true))
  }
  const server = await serve(t, [], completions(endless))
  const { client } = begin([{ url: server.url, kind: 'openai' }])
  for await (const _ of ask(client)) break
  await until(() => gone)
  assert.equal(server.requests.length, 1)
})

test('errors of plain servers, in any of their dialects', async (t) => {
  const said = (script) => serve(t, [], completions(script))
  for (const [script, expected] of [
    [json(404, { error: 'model "x" not found' }), { name: 'InvalidRequestError', message: 'model "x" not found' }],
    [
      json(200, { error: 'Unexpected endpoint or method.' }),
      { name: 'ServerError', message: 'Unexpected endpoint or method.' },
    ],
    [response(200, { 'content-type': 'text/event-stream' }, 'error: {"message":"boom"}\n\n'), { name: 'ServerError' }],
    [
      response(
        200,
        { 'content-type': 'text/event-stream' },
        event({ error: { message: 'No models loaded', type: 'invalid_request_error' } }),
      ),
      { name: 'InvalidRequestError' },
    ],
    [response(200, { 'content-type': 'text/event-stream' }, event({ message: 'bare' }, 'error')), { message: 'bare' }],
  ]) {
    const server = await said(script)
    const { client } = begin([{ url: server.url, kind: 'openai' }])
    await assert.rejects(ask(client).text(), expected)
  }
})

test('a plain server that comes back is asked for its models', async (t) => {
  const clock = shiftClock(t)
  const routes = { ...completions(json(502, {})), 'GET /v1/models': json(200, { data: [] }) }
  const [first, second] = [await serve(t, [], routes), await serve(t)]
  const { client, moves } = begin([{ url: first.url, kind: 'openai' }, second.url])
  await ask(client).text()
  clock.ahead += 60_000
  await ask(client).text()
  await until(() => moves.length === 2)
  assert.equal(first.named('GET /v1/models')[0].headers.authorization, undefined)
})

test('a token for others comes from the edge, wherever chats go', async (t) => {
  const edge = await serve(t)
  const { client } = begin([{ url: await deadUrl(), kind: 'openai' }, edge.url])
  assert.equal(await client.token(), TOKEN.token)
})
