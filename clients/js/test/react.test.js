// The hook: what a component sees of a conversation, step by step.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createElement, StrictMode } from 'react'
import { act, create } from 'react-test-renderer'
import { createClient } from '../src/index.js'
import { useHearthlinkChat } from '../src/react.js'
import { DONE, USAGE, answer, chunk, event, head, refusal, response, serve, until } from './support/server.js'

globalThis.IS_REACT_ACT_ENVIRONMENT = true
// React says in one line on stderr that this renderer is on its way out; it needs no browser, so it does for this.
const { error } = console
console.error = (...said) => String(said[0]).includes('react-test-renderer is deprecated') || error(...said)

// Renders the hook until the test `t` ends: `view.chat` is what it gave last, `view.statuses` all that it went through.
async function render(t, server, options = {}, strict = false) {
  const client = createClient({ baseUrl: server.url, getToken: () => 'key', retry: { attempts: 1 } })
  const view = { chat: undefined, statuses: [], seen: [] }
  function Component(props) {
    view.chat = useHearthlinkChat({ client, ...props })
    view.seen.push(view.chat)
    if (view.statuses.at(-1) !== view.chat.status) view.statuses.push(view.chat.status)
    return null
  }
  const element = (props) =>
    strict ? createElement(StrictMode, null, createElement(Component, props)) : createElement(Component, props)
  await act(async () => (view.renderer = create(element(options))))
  view.update = (props) => act(async () => view.renderer.update(element(props)))
  view.unmount = () => act(async () => view.renderer.unmount())
  t.after(view.unmount)
  return view
}

const texts = ({ messages }) => messages.map(({ role, parts }) => `${role}: ${parts.map(({ text }) => text).join('|')}`)

// Answers that wait for the test: `server.say(text)` writes, `server.end(text)` ends.
function paced() {
  const control = {}
  control.script = (socket) => {
    socket.write(head)
    control.say = (text) => socket.write(text)
    control.end = (text = '') => socket.end(text)
  }
  return control
}

test('a question and its answer', async (t) => {
  const pace = paced()
  const server = await serve(t, [pace.script, head + answer('Well.')])
  const finished = []
  const view = await render(t, server, { chatType: 'home', onFinish: (about) => finished.push(about) })
  assert.equal(view.chat.status, 'ready')
  assert.deepEqual(view.chat.messages, [])
  await act(async () => {
    const sent = view.chat.sendMessage({ text: 'hi' })
    await until(() => pace.say)
    pace.say(event({ position: 2, eta_seconds: null }, 'queued'))
    await until(() => view.chat.waiting?.position === 2)
    assert.equal(view.chat.status, 'submitted')
    pace.say(chunk({ role: 'assistant', content: '' }))
    await until(() => view.chat.waiting === undefined)
    assert.equal(view.chat.status, 'submitted')
    pace.say(chunk({ reasoning_content: 'Hm.' }) + chunk({ content: 'Hel' }))
    await until(() => texts(view.chat)[1] === 'assistant: Hm.|Hel')
    assert.equal(view.chat.waiting, undefined)
    pace.end(chunk({ content: 'lo' }) + chunk({}, 'stop') + event({ choices: [], usage: USAGE }) + DONE)
    await sent
  })
  assert.deepEqual(texts(view.chat), ['user: hi', 'assistant: Hm.|Hello'])
  assert.deepEqual(view.chat.messages[1].parts, [
    { type: 'reasoning', text: 'Hm.' },
    { type: 'text', text: 'Hello' },
  ])
  assert.deepEqual(view.statuses, ['ready', 'submitted', 'streaming', 'ready'])
  assert.equal(new Set(view.chat.messages.map(({ id }) => id)).size, 2)
  assert.deepEqual(finished, [
    {
      message: view.chat.messages[1],
      finishReason: 'stop',
      usage: { promptTokens: 3, completionTokens: 2, totalTokens: 5 },
    },
  ])
  assert.equal(server.chats[0].body.chat_type, 'home')

  await act(async () => view.chat.sendMessage('and?'))
  assert.deepEqual(server.chats[1].body.messages, [
    { role: 'user', content: 'hi' },
    { role: 'assistant', content: 'Hello' },
    { role: 'user', content: 'and?' },
  ])
})

test('many words make few renders', async (t) => {
  const words = Array.from({ length: 500 }, (_, at) => `${at} `)
  const view = await render(t, await serve(t, [head + answer(...words)]))
  await act(async () => view.chat.sendMessage({ text: 'count' }))
  assert.equal(texts(view.chat)[1], `assistant: ${words.join('')}`)
  assert.ok(view.seen.length < 60, `${view.seen.length} renders`)
})

test('stop keeps what came, and is no error', async (t) => {
  const pace = paced()
  const errors = []
  const server = await serve(t, [pace.script], { 'DELETE /v1/chat/chat-1': response(204, {}) })
  const view = await render(t, server, {
    onError: (error) => errors.push(error),
    onFinish: (about) => errors.push(about),
  })
  await act(async () => {
    const sent = view.chat.sendMessage({ text: 'hi' })
    await until(() => pace.say)
    pace.say(chunk({ content: 'Once' }))
    await until(() => view.chat.status === 'streaming')
    view.chat.stop()
    view.chat.setMessages((messages) => [...messages, { id: 'note', role: 'user', parts: [] }])
    await sent
  })
  assert.deepEqual(texts(view.chat), ['user: hi', 'assistant: Once', 'user: '])
  assert.equal(view.chat.status, 'ready')
  assert.equal(view.chat.error, undefined)
  assert.deepEqual(errors, [])
  await until(() => server.named('DELETE /v1/chat/chat-1').length === 1)
})

test('a cleared conversation stays clear', async (t) => {
  const pace = paced()
  const view = await render(t, await serve(t, [pace.script]))
  await act(async () => {
    const sent = view.chat.sendMessage({ text: 'hi' })
    await until(() => pace.say)
    pace.say(chunk({ content: 'Once' }))
    await until(() => view.chat.status === 'streaming')
    view.chat.stop()
    view.chat.setMessages([])
    await sent
    await new Promise((resolve) => setTimeout(resolve, 40))
  })
  assert.deepEqual(view.chat.messages, [])
})

test('an error, what came before it, and another try', async (t) => {
  const cut = head + chunk({ content: 'Once' })
  const errors = []
  const view = await render(
    t,
    await serve(t, [cut, refusal(400, 'context_length_exceeded'), head + answer('All of it')]),
    {
      onError: (error) => errors.push(error.name),
    },
  )
  await act(async () => view.chat.sendMessage({ text: 'hi' }))
  assert.equal(view.chat.status, 'error')
  assert.equal(view.chat.error.name, 'StreamInterruptedError')
  assert.deepEqual(texts(view.chat), ['user: hi', 'assistant: Once'])
  await act(async () => view.chat.clearError())
  assert.deepEqual([view.chat.status, view.chat.error], ['ready', undefined])
  await act(async () => view.chat.regenerate())
  assert.deepEqual(texts(view.chat), ['user: hi'])
  assert.equal(view.chat.error.code, 'context_length_exceeded')
  await act(async () => view.chat.regenerate())
  assert.deepEqual(texts(view.chat), ['user: hi', 'assistant: All of it'])
  assert.equal(view.chat.error, undefined)
  assert.deepEqual(errors, ['StreamInterruptedError', 'InvalidRequestError'])
})

test('an edited question, and an old answer anew', async (t) => {
  const server = await serve(t)
  const messages = ['one', 'two', 'three', 'four'].map((text, at) => ({
    id: text,
    role: at % 2 ? 'assistant' : 'user',
    parts: [{ type: 'text', text }],
  }))
  const view = await render(t, server, { messages })
  const asked = () => server.chats.at(-1).body.messages.map(({ content }) => content)
  await act(async () => view.chat.regenerate({ messageId: 'two' }))
  assert.deepEqual(asked(), ['one'])
  await act(async () => view.chat.setMessages(messages))
  await act(async () => view.chat.regenerate({ messageId: 'three', maxTokens: 5 }))
  assert.deepEqual(asked(), ['one', 'two', 'three'])
  assert.equal(server.chats.at(-1).body.max_tokens, 5)
  await act(async () => view.chat.sendMessage({ text: 'drei', messageId: 'three' }, { chatType: 'home' }))
  assert.deepEqual(asked(), ['one', 'two', 'drei'])
  assert.equal(server.chats.at(-1).body.chat_type, 'home')
  await act(async () => view.chat.setMessages(messages.slice(0, 3)))
  await act(async () => view.chat.sendMessage())
  assert.deepEqual(asked(), ['one', 'two', 'three'])
  await assert.rejects(view.chat.sendMessage({ text: 'x', messageId: 'five' }), RangeError)
})

test('a new question ends the answer before it', async (t) => {
  const pace = paced()
  const server = await serve(t, [pace.script, head + answer('second')])
  const view = await render(t, server)
  await act(async () => {
    const first = view.chat.sendMessage({ text: 'one' })
    await until(() => pace.say)
    pace.say(chunk({ content: 'fir' }))
    await until(() => view.chat.status === 'streaming')
    await Promise.all([first, view.chat.sendMessage({ text: 'two' })])
  })
  assert.deepEqual(texts(view.chat), ['user: one', 'assistant: fir', 'user: two', 'assistant: second'])
  await until(() => server.chats[0].left)
})

test('leaving the page stops the answer', async (t) => {
  const pace = paced()
  const server = await serve(t, [pace.script], { 'DELETE /v1/chat/chat-1': response(204, {}) })
  const view = await render(t, server)
  let sent
  await act(async () => {
    sent = view.chat.sendMessage({ text: 'hi' })
    await until(() => pace.say)
    pace.say(chunk({ content: 'Once' }))
    await until(() => view.chat.status === 'streaming')
  })
  await view.unmount()
  await sent
  await until(() => server.chats[0].left)
})

test('in StrictMode a question is asked once', async (t) => {
  const server = await serve(t)
  const view = await render(t, server, {}, true)
  await act(async () => view.chat.sendMessage({ text: 'hi' }))
  assert.equal(server.chats.length, 1)
  assert.deepEqual(texts(view.chat), ['user: hi', 'assistant: Hello world'])
})

test('callbacks stay the same, options may change', async (t) => {
  const server = await serve(t)
  const view = await render(t, server, { chatType: 'home' })
  const { sendMessage, stop, regenerate, setMessages, clearError } = view.chat
  await view.update({ chatType: 'whatToOrder' })
  for (const [name, callback] of Object.entries({ sendMessage, stop, regenerate, setMessages, clearError })) {
    assert.equal(view.chat[name], callback, name)
  }
  await act(async () => sendMessage({ text: 'hi' }))
  assert.equal(server.chats[0].body.chat_type, 'whatToOrder')
})
