// A chat over a socket: what the server is asked, and what the reader gets of any slices.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { HearthlinkError, createClient } from '../src/index.js'
import { MESSAGES, all, ask } from './support/ask.js'
import {
  DONE,
  STREAM,
  USAGE,
  answer,
  chunk,
  event,
  head,
  json,
  pause,
  refusal,
  serve,
  until,
} from './support/server.js'

const usage = {
  promptTokens: USAGE.prompt_tokens,
  completionTokens: USAGE.completion_tokens,
  totalTokens: USAGE.total_tokens,
}
const EVENTS = [
  { type: 'text', delta: 'Blåbær ' },
  { type: 'text', delta: '日本 🌍' },
  { type: 'usage', usage },
  { type: 'done', finishReason: 'stop', usage },
]
const BODY = answer('Blåbær ', '日本 🌍')

// -- the request --

test("the body is the contract's", async (t) => {
  const server = await serve(t)
  const messages = [{ id: 7, role: 'user', content: 'hi', parts: [] }]
  const options = { maxTokens: 9, temperature: 0.5, topP: 0.9, stop: ['x'], seed: 1, model: 'm', metadata: { a: 1 } }
  await ask(
    server,
    { ...options, messages, chatType: 'whereToGo' },
    { defaults: { clientId: 'app', chatType: 'home' } },
  ).text()
  const [{ path, headers, body }] = server.chats
  assert.equal(path, '/v1/chat')
  assert.equal(headers.authorization, 'Bearer key')
  assert.equal(headers['content-type'], 'application/json')
  assert.match(headers['x-request-id'], /^[A-Za-z0-9_-]{8,64}$/)
  assert.deepEqual(body, {
    messages: [{ role: 'user', content: 'hi' }],
    stream: true,
    chat_type: 'whereToGo',
    client_id: 'app',
    model: 'm',
    max_tokens: 9,
    temperature: 0.5,
    top_p: 0.9,
    stop: ['x'],
    seed: 1,
    metadata: { a: 1 },
  })
})

test('nothing is sent before it is read', async (t) => {
  const server = await serve(t)
  const chat = ask(server)
  await pause(30)
  assert.equal(chat.status, 'idle')
  assert.equal(server.requests.length, 0)
  assert.equal(await chat.text(), 'Hello world')
})

// -- any slices --

const CUTS = {
  'as one piece': (bytes) => [bytes],
  'at every byte': (bytes) => Array.from(bytes, (_, at) => bytes.subarray(at, at + 1)),
  'in threes': (bytes) =>
    Array.from({ length: Math.ceil(bytes.length / 3) }, (_, at) => bytes.subarray(3 * at, 3 * at + 3)),
}
const DIALECTS = {
  LF: BODY,
  CRLF: BODY.replaceAll('\n', '\r\n'),
  CR: BODY.replaceAll('\n', '\r'),
  'a BOM': `\ufeff${BODY}`,
  heartbeats: `:\n\n${BODY.replaceAll('\n\n', '\n\n:\n\n: ping\n\n')}`,
  'ids and names nobody knows': BODY.replaceAll('data: {', 'id: 4\nretry: 10\nfoo: bar\nevent: message\ndata: {'),
}

for (const [dialect, body] of Object.entries(DIALECTS)) {
  for (const [cut, slices] of Object.entries(CUTS)) {
    test(`a stream with ${dialect}, cut ${cut}`, async (t) => {
      const script = async (socket) => {
        socket.write(head)
        for (const slice of slices(Buffer.from(body))) {
          if (!socket.write(slice)) await new Promise((drained) => socket.once('drain', drained))
          if (slice.length === 1) await new Promise(setImmediate) // a read of its own
        }
        socket.end()
      }
      assert.deepEqual(await all(ask(await serve(t, [script]))), EVENTS)
    })
  }
}

test('text comes word by word, not at the end', async (t) => {
  let more
  const script = async (socket) => {
    socket.write(head + chunk({ content: 'one' }))
    await new Promise((resolve) => (more = resolve))
    socket.end(chunk({ content: 'two' }) + DONE)
  }
  const chat = ask(await serve(t, [script]))
  const seen = []
  for await (const event of chat) {
    seen.push(event.delta)
    if (event.delta === 'one') {
      assert.equal(chat.status, 'streaming')
      more()
    }
  }
  assert.deepEqual(seen, ['one', 'two', undefined])
})

test('what a chat waits for, thinks and says', async (t) => {
  const script =
    head +
    event({ position: 2, eta_seconds: 1.5 }, 'queued') +
    event({ position: 1, eta_seconds: null }, 'queued') +
    event({ model: 'm', progress: 0.5 }, 'loading') +
    chunk({ role: 'assistant', content: '' }) +
    chunk({ reasoning_content: 'Hm.' }) +
    chunk({ reasoning: ' Well.', reasoning_content: null }) +
    chunk({ content: 'Yes.' }) +
    chunk({}, 'length') +
    DONE
  const chat = ask(await serve(t, [script]))
  const statuses = []
  const events = []
  for await (const event of chat) {
    events.push(event)
    statuses.push(chat.status)
  }
  assert.deepEqual(events, [
    { type: 'queued', position: 2, etaSeconds: 1.5 },
    { type: 'queued', position: 1, etaSeconds: null },
    { type: 'loading', model: 'm', progress: 0.5 },
    { type: 'connecting' },
    { type: 'reasoning', delta: 'Hm.' },
    { type: 'reasoning', delta: ' Well.' },
    { type: 'text', delta: 'Yes.' },
    { type: 'done', finishReason: 'length', usage: undefined },
  ])
  assert.deepEqual(statuses, ['queued', 'queued', 'loading', 'connecting', 'streaming', 'streaming', 'streaming', 'done'])
  assert.deepEqual(await chat.final(), {
    id: 'chat-1',
    requestId: 'req-of-edge-1',
    model: 'm',
    text: 'Yes.',
    reasoning: 'Hm. Well.',
    finishReason: 'length',
  })
})

test('text() and final() stand beside a loop, and after it', async (t) => {
  const chat = ask(await serve(t))
  const loop = all(chat)
  const [text, final] = await Promise.all([chat.text(), chat.final()])
  assert.equal(text, 'Hello world')
  assert.equal(final.usage.totalTokens, 5)
  assert.equal((await loop).at(-1).type, 'done')
  assert.equal(await chat.text(), text)
  assert.throws(() => chat[Symbol.asyncIterator](), TypeError)
  assert.equal(chat.id, 'chat-1')
  assert.equal(chat.requestId, 'req-of-edge-1')
  assert.equal(chat.response.headers.get('content-type'), STREAM['content-type'])
})

// -- an answer without a stream --

const WHOLE = {
  id: 'x',
  object: 'chat.completion',
  model: 'm',
  choices: [{ index: 0, message: { role: 'assistant', content: 'Hello.' }, finish_reason: 'stop' }],
  usage: USAGE,
}

test('one JSON answer is read like a stream', async (t) => {
  const server = await serve(t, [json(200, WHOLE)])
  assert.deepEqual(await all(ask(server, { stream: false })), [
    { type: 'text', delta: 'Hello.' },
    { type: 'usage', usage },
    { type: 'done', finishReason: 'stop', usage },
  ])
  assert.equal(server.chats[0].body.stream, false)
})

test('a JSON answer has one deadline for everything, and no other', async (t) => {
  const slow = async (socket) => {
    await pause(120)
    socket.end(json(200, WHOLE))
  }
  const timeouts = { connect: 40, firstByte: 40, idle: 40 }
  assert.equal(await ask(await serve(t, [slow]), { stream: false }, { timeouts }).text(), 'Hello.')
  const never = await serve(t, [refusal(503, 'overloaded'), () => {}])
  const options = { timeouts: { total: 80 }, retry: { attempts: 3, minDelay: 1 } }
  await assert.rejects(ask(never, { stream: false }, options).text(), { name: 'TimeoutError', code: 'total_timeout' })
  await until(() => never.chats.length === 2 && never.chats[1].left)
})

test('a JSON answer that is cut is no answer', async (t) => {
  const whole = json(200, WHOLE)
  for (const cut of [whole.slice(0, -7), whole.replace('"usage"', 'usage')]) {
    await assert.rejects(ask(await serve(t, [cut]), { stream: false }).text(), { name: 'StreamInterruptedError' })
  }
})

// -- what onEvent hears --

test('the story of a chat', async (t) => {
  const server = await serve(t, [refusal(503, 'overloaded'), head + answer('a', 'b'), refusal(400, 'invalid_request')])
  const story = []
  const client = createClient({ baseUrl: server.url, retry: { minDelay: 1 }, onEvent: (event) => story.push(event) })
  await client.chat({ messages: MESSAGES }).text()
  await client
    .chat({ messages: MESSAGES })
    .text()
    .catch(() => {})
  assert.deepEqual(
    story.map(({ type }) => type),
    ['request', 'refresh', 'retry', 'request', 'first', 'done', 'request', 'error'],
  )
  const [request, , retry, , first, done, , failed] = story
  assert.equal(request.url, server.url)
  assert.equal(retry.error.code, 'overloaded')
  assert.ok(first.ms > 0 && done.ms >= first.ms)
  assert.equal(done.requestId, 'req-of-edge-1')
  assert.deepEqual(done.usage, usage)
  assert.ok(failed.error instanceof HearthlinkError)
})

test('no error repeats what was asked or answered, beside `partial`', async (t) => {
  const secret = 'my diary'
  const script = head + chunk({ content: secret }) + 'data: {"choices": oops\n\n'
  const error = await ask(await serve(t, [script]), { messages: [{ role: 'user', content: secret }] })
    .text()
    .catch((error) => error)
  assert.equal(error.partial, secret)
  assert.doesNotMatch(`${error} ${error.stack}`, /diary|key/)
})
