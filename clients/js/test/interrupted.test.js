// Answers that are cut, slow, or not from Hearthlink at all.

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { ask } from './support/ask.js'
import { answer, chunk, event, head, json, pause, response, serve, until } from './support/server.js'

// -- ends that are none --

for (const [name, script] of Object.entries({
  'no end marker': head + chunk({ content: 'Once' }) + chunk({}, 'stop'),
  'an end marker without its blank line': head + chunk({ content: 'Once' }) + 'data: [DONE]\n',
  'half an event': head + chunk({ content: 'Once' }) + 'data: {"choices":[{"del',
  'something that is no JSON': head + chunk({ content: 'Once' }) + 'data: oops\n\n',
  'an event without an end': (socket) => socket.end(head + chunk({ content: 'Once' }) + 'data: ' + 'x'.repeat(1 << 21)),
  'a reset': (socket) => {
    socket.write(head + chunk({ content: 'Once' }))
    setTimeout(() => socket.resetAndDestroy(), 20)
  },
})) {
  test(`${name} is an interrupted stream`, async (t) => {
    const chat = ask(await serve(t, [script]))
    const events = []
    const error = await (async () => {
      for await (const event of chat) events.push(event)
    })().catch((error) => error)
    assert.equal(error.name, 'StreamInterruptedError')
    assert.equal(error.code, 'stream_interrupted')
    assert.equal(error.partial, 'Once')
    assert.match(String(error), /\(request req-of-edge-1\)$/)
    assert.ok(error.cause)
    assert.ok(events.every(({ type }) => type !== 'done'))
    assert.equal(chat.status, 'error')
    await assert.rejects(chat.final(), error)
  })
}

test('the error in a stream keeps what was said', async (t) => {
  const error = { message: 'The node is gone.', type: 'server_error', code: 'upstream_incomplete', param: null }
  const script = head + chunk({ content: 'Once upon' }) + event({ error, request_id: 'req-in-band-1' }, 'error')
  await assert.rejects(ask(await serve(t, [script])).text(), {
    name: 'StreamInterruptedError',
    code: 'upstream_incomplete',
    partial: 'Once upon',
    requestId: 'req-in-band-1',
  })
  const stale = event({ error: { ...error, type: 'authentication_error', code: 'token_expired' } }, 'error')
  const server = await serve(t, [head + chunk({ content: 'Once' }) + stale])
  await assert.rejects(ask(server).text(), { name: 'AuthError', partial: 'Once' })
  assert.equal(server.chats.length, 1)
})

// -- answers of others --

for (const [name, script] of Object.entries({
  'the page of a captive portal': response(
    200,
    { 'content-type': 'text/html; charset=utf-8' },
    '<html>Please log in</html>',
  ),
  'a redirect to a login': response(302, { location: 'http://192.0.2.1/login', 'content-length': 0 }),
  'a redirect that would repeat the question': response(307, { location: 'http://192.0.2.1/', 'content-length': 0 }),
  'an answer of no type': response(200, { 'content-length': 0 }),
})) {
  test(`${name} is a network error with a sentence`, async (t) => {
    const server = await serve(t, [script])
    await assert.rejects(ask(server, {}, { retry: { attempts: 3 } }).text(), {
      name: 'NetworkError',
      code: 'network_error',
      retryable: false,
      message: /^http:.* sent a web page: a network login is in between, or the base URL is wrong\. Open it to see\.$/,
    })
    assert.equal(server.chats.length, 1)
    await until(() => server.chats[0].left)
  })
}

test('the page of a proxy with an error status is that error', async (t) => {
  const script = response(502, { 'content-type': 'text/html' }, '<html>Bad Gateway</html>')
  await assert.rejects(ask(await serve(t, [script])).text(), { name: 'NodeUnavailableError', status: 502 })
  const broken = response(500, { 'content-type': 'application/json' }, '{"error":')
  await assert.rejects(ask(await serve(t, [broken])).text(), { name: 'ServerError', status: 500 })
})

// -- slow --

const hang = (before) => (socket) => void socket.write(before)
const timeouts = { connect: 60, firstByte: 60, idle: 60 }

for (const [name, script, code, partial] of [
  ['no head', hang('HTTP/1.1 200 OK\r\n'), 'connect_timeout'],
  ['a head only', hang(head), 'first_byte_timeout'],
  ['silence after a word', hang(head + chunk({ content: 'Once' })), 'idle_timeout', 'Once'],
  ['the body of an error that does not end', hang(json(503, {}).slice(0, -1)), 'connect_timeout'],
]) {
  test(`${name}: ${code}`, async (t) => {
    const server = await serve(t, [script])
    const error = await ask(server, {}, { timeouts })
      .text()
      .catch((error) => error)
    assert.equal(error.name, 'TimeoutError')
    assert.deepEqual([error.code, error.partial, error.retryable], [code, partial, true])
    assert.match(String(error), /within 0\.06 s.*\(request [\w-]{8,}\)$/)
    await until(() => server.chats[0].left)
  })
}

test('heartbeats keep a silent answer alive', async (t) => {
  const script = async (socket) => {
    socket.write(head)
    for (let i = 0; i < 8; i++) {
      await pause(25)
      socket.write(':\n\n')
    }
    socket.end(answer('late'))
  }
  assert.equal(await ask(await serve(t, [script]), {}, { timeouts: { ...timeouts, connect: 1000 } }).text(), 'late')
})

test("a reader who takes his time is not the server's fault", async (t) => {
  const chat = ask(await serve(t, [head + answer('a', 'b', 'c')]), {}, { timeouts: { ...timeouts, connect: 1000 } })
  for await (const { type } of chat) if (type === 'text') await pause(80)
  assert.equal(chat.status, 'done')
})
