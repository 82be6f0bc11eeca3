// Stopping an answer, here and at the server, and what is left of a chat afterwards.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { UserAbortError } from '../src/index.js'
import { all, ask } from './support/ask.js'
import { STREAM, answer, chunk, head, pause, refusal, response, serve, until } from './support/server.js'

const stops = (server) => server.requests.filter(({ method }) => method === 'DELETE')

const endless = (socket) => {
  socket.write(head + chunk({ content: 'a' }))
  const timer = setInterval(() => socket.write(chunk({ content: 'b' })), 5)
  socket.on('close', () => clearInterval(timer))
}

const stopRoute = { 'DELETE /v1/chat/chat-1': response(204, {}) }

for (const [name, stop] of Object.entries({
  'cancel()': async (chat) => {
    for await (const _ of chat) chat.cancel()
  },
  'cancel() from elsewhere': async (chat) => {
    let timer
    for await (const _ of chat) timer ??= setTimeout(() => chat.cancel(), 20)
  },
  break: async (chat) => {
    for await (const _ of chat) break
    throw new UserAbortError('left')
  },
  'an error in the loop': async (chat) => {
    for await (const _ of chat) throw new UserAbortError('mine')
  },
  'return of its generator': async (chat) => {
    const events = chat[Symbol.asyncIterator]()
    await events.next()
    await events.return()
    throw new UserAbortError('left')
  },
})) {
  test(`${name} ends it here and at the server`, async (t) => {
    const server = await serve(t, [endless], stopRoute)
    const chat = ask(server)
    await assert.rejects(stop(chat), { name: 'UserAbortError' })
    assert.equal(chat.status, 'cancelled')
    await until(() => server.chats[0]?.left && stops(server).length)
    assert.equal(stops(server)[0].headers.authorization, 'Bearer key')
    await assert.rejects(chat.final(), { name: 'UserAbortError', code: 'aborted', partial: /^ab*$/ })
    chat.cancel()
    await pause(20)
    assert.equal(stops(server).length, 1)
  })
}

test('an aborted signal ends it, and its reason is the cause', async (t) => {
  const server = await serve(t, [endless], stopRoute)
  const controller = new AbortController()
  const chat = ask(server, { signal: controller.signal })
  const reason = new Error('the page is left')
  const error = await (async () => {
    for await (const _ of chat) controller.abort(reason)
  })().catch((error) => error)
  assert.ok(error instanceof UserAbortError)
  assert.equal(error.cause, reason)
  await until(() => server.chats[0].left && stops(server).length === 1)
})

test('nothing comes after a stop, not even what was there already', async (t) => {
  const server = await serve(t, [head + answer('a', 'b', 'c', 'd')], stopRoute)
  const chat = ask(server)
  const seen = []
  await assert.rejects(async () => {
    for await (const { delta } of chat) {
      seen.push(delta)
      if (delta === 'b') chat.cancel()
    }
  }, UserAbortError)
  assert.deepEqual(seen, ['a', 'b'])
})

test('a stop while nobody reads is heard at once', async (t) => {
  const server = await serve(t, [endless], stopRoute)
  const chat = ask(server)
  const events = chat[Symbol.asyncIterator]()
  await events.next()
  chat.cancel()
  assert.equal(chat.status, 'cancelled')
  await assert.rejects(chat.text(), UserAbortError)
  await until(() => server.chats[0].left && stops(server).length === 1)
})

test('stopped before the start, nothing is sent', async (t) => {
  const server = await serve(t)
  const aborted = ask(server, { signal: AbortSignal.abort() })
  const cancelled = ask(server)
  cancelled.cancel()
  const later = new AbortController()
  const between = ask(server, { signal: later.signal })
  later.abort()
  for (const chat of [aborted, cancelled, between]) {
    await assert.rejects(all(chat), UserAbortError)
    await assert.rejects(chat.text(), UserAbortError)
    assert.equal(chat.status, 'cancelled')
  }
  await pause(30)
  assert.equal(server.requests.length, 0)
})

test('stopped before the head, there is no id to stop, and the connection ends', async (t) => {
  const server = await serve(t, [() => {}])
  const chat = ask(server)
  const text = chat.text()
  await until(() => server.chats.length)
  chat.cancel()
  await assert.rejects(text, UserAbortError)
  await until(() => server.chats[0].left)
  assert.equal(stops(server).length, 0)
})

test("a stop that the server cannot take is nobody's error", async (t) => {
  const server = await serve(t, [endless], { 'DELETE /v1/chat/chat-1': (socket) => socket.destroy() })
  for await (const _ of ask(server)) break
  await until(() => stops(server).length)
  await pause(20) // an unhandled rejection would end this process
})

test('after its end a chat has nothing to stop', async (t) => {
  const server = await serve(t, undefined, stopRoute)
  const chat = ask(server)
  await chat.text()
  chat.cancel()
  const early = ask(server)
  for await (const { type } of early) if (type === 'done') break
  await pause(30)
  assert.deepEqual([chat.status, early.status], ['done', 'done'])
  assert.equal(stops(server).length, 0)
})

test('a connection that served one chat serves another', async (t) => {
  const ports = new Set()
  const { createServer } = await import('node:http')
  const server = createServer((request, response) => {
    ports.add(request.socket.remotePort)
    request.resume().on('end', () => {
      response.writeHead(200, STREAM).write(answer('ok'))
      setTimeout(() => response.end(), 5) // the end of the body comes after [DONE]
    })
  })
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening))
  t.after(() => (server.closeAllConnections(), server.close()))
  const url = `http://127.0.0.1:${server.address().port}`
  for (let i = 0; i < 10; i++) await all(ask({ url }))
  assert.ok(ports.size <= 3, `${ports.size} connections for 10 chats, one after the other`)
})

test('signals keep no listener of chats that are over', async (t) => {
  const { signal } = new AbortController()
  let listeners = 0
  const { addEventListener: add, removeEventListener: remove } = signal
  signal.addEventListener = (...args) => (listeners++, add.apply(signal, args))
  signal.removeEventListener = (...args) => (listeners--, remove.apply(signal, args))
  const server = await serve(
    t,
    [head + answer('ok'), head + chunk({ content: 'cut' }), refusal(400, 'invalid_request'), endless],
    stopRoute,
  )
  await ask(server, { signal }).text()
  await ask(server, { signal })
    .text()
    .catch(() => {})
  await ask(server, { signal })
    .text()
    .catch(() => {})
  for await (const _ of ask(server, { signal })) break
  assert.ok(listeners <= 0, String(listeners))
})
