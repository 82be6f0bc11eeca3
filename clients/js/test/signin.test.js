// Chats and their tokens: got before the first one, replaced when they are refused.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AuthError, NetworkError, createClient } from '../src/index.js'

import { TOKEN, answer, head, json, refusal, serve, until } from './support/server.js'

const ask = (client, more) => client.chat({ messages: [{ role: 'user', content: 'hi' }], ...more })

test('a chat brings its token along, and chats share it', async (t) => {
  const server = await serve(t)
  const client = createClient({ baseUrl: server.url })
  await Promise.all([ask(client).text(), ask(client).text(), ask(client).text()])
  assert.equal(server.named('POST /v1/token').length, 1)
  assert.deepEqual(server.named('POST /v1/token')[0].body, {})
  assert.equal(server.named('POST /v1/token')[0].headers['content-type'], 'application/json')
  assert.ok(server.chats.every(({ headers }) => headers.authorization === `Bearer ${TOKEN.token}`))
})

for (const code of ['token_expired', 'invalid_token']) {
  test(`${code}: a new token, and the same question again`, async (t) => {
    let minted = 0
    const mint = (socket) => socket.end(json(200, { ...TOKEN, token: `hlt_${++minted}` }))
    const server = await serve(t, [refusal(401, code, {}, 'authentication_error'), head + answer('ok')], {
      'POST /v1/token': mint,
    })
    const client = createClient({ baseUrl: server.url })
    assert.equal(await ask(client).text(), 'ok')
    assert.deepEqual(
      server.chats.map(({ headers }) => headers.authorization),
      ['Bearer hlt_1', 'Bearer hlt_2'],
    )
    assert.deepEqual(server.chats[1].body, server.chats[0].body)
  })

  test(`${code} again: the error comes`, async (t) => {
    const server = await serve(t, [refusal(401, code, {}, 'authentication_error')])
    const error = await ask(createClient({ baseUrl: server.url }))
      .text()
      .catch((error) => error)
    assert.ok(error instanceof AuthError)
    assert.equal(error.code, code)
    assert.equal(server.chats.length, 2)
  })
}

for (const code of ['token_revoked', 'token_exhausted', 'missing_token']) {
  test(`${code} comes at once`, async (t) => {
    const server = await serve(t, [refusal(401, code, {}, 'authentication_error')])
    await assert.rejects(ask(createClient({ baseUrl: server.url })).text(), { name: 'AuthError', code })
    assert.equal(server.chats.length, 1)
  })
}

test('a list gets a new token, too', async (t) => {
  let asked = 0
  const me = (socket) =>
    socket.end(
      ++asked === 1 ? refusal(401, 'token_expired', {}, 'authentication_error') : json(200, { plan: 'anonymous' }),
    )
  const server = await serve(t, [], { 'GET /v1/me': me })
  assert.deepEqual(await createClient({ baseUrl: server.url }).get('/v1/me'), { plan: 'anonymous' })
  assert.equal(server.named('POST /v1/token').length, 2)
})

test('a door that is shut is an error of its own', async (t) => {
  const shut = refusal(403, 'origin_not_allowed', {}, 'permission_error')
  const server = await serve(t, [], { 'POST /v1/token': shut })
  await assert.rejects(ask(createClient({ baseUrl: server.url })).text(), {
    name: 'PermissionError',
    code: 'origin_not_allowed',
  })
  assert.equal(server.requests.length, 1)
})

test('a door that is overloaded is knocked at again', async (t) => {
  let knocks = 0
  const door = (socket) => socket.end(++knocks < 3 ? refusal(503, 'draining') : json(200, TOKEN))
  const server = await serve(t, undefined, { 'POST /v1/token': door })
  const client = createClient({ baseUrl: server.url, retry: { minDelay: 1, maxDelay: 2 } })
  assert.equal(await ask(client).text(), 'Hello world')
  assert.equal(knocks, 3)
})

test('what getToken() throws reaches the caller as it is', async (t) => {
  const server = await serve(t)
  const sorry = new Error('sign in first')
  const client = createClient({
    baseUrl: server.url,
    getToken: () => {
      throw sorry
    },
  })
  await assert.rejects(ask(client).text(), (error) => error === sorry)
  assert.equal(server.requests.length, 0)
})

test('a getToken() that never answers runs into the deadline', async (t) => {
  const server = await serve(t)
  const options = { timeouts: { connect: 30 }, retry: { attempts: 1 } }
  const client = createClient({ baseUrl: server.url, getToken: () => new Promise(() => {}), ...options })
  await assert.rejects(ask(client).text(), { name: 'TimeoutError', code: 'connect_timeout' })
})

test('a door that never answers runs into the deadline', async (t) => {
  const server = await serve(t, [], { 'POST /v1/token': () => {} })
  const client = createClient({ baseUrl: server.url, timeouts: { connect: 30 }, retry: { attempts: 1 } })
  await assert.rejects(ask(client).text(), { name: 'TimeoutError', code: 'connect_timeout' })
  await until(() => server.requests[0].left)
})

test('who asks while the first waits for a token can still be stopped', async (t) => {
  const server = await serve(t, [], { 'POST /v1/token': () => {} })
  const chat = ask(createClient({ baseUrl: server.url }))
  const text = chat.text()
  await until(() => server.requests.length === 1)
  chat.cancel()
  await assert.rejects(text, { name: 'UserAbortError' })
})

test('the wrong base URL is a network error, not a puzzle', async (t) => {
  const server = await serve(t, [], { 'POST /v1/token': (socket) => socket.destroy() })
  const client = createClient({ baseUrl: server.url, retry: { attempts: 1 } })
  const error = await ask(client)
    .text()
    .catch((error) => error)
  assert.ok(error instanceof NetworkError)
  assert.match(error.message, /base URL/)
  assert.ok(error.cause)
})
