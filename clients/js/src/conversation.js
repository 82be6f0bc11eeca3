import { UserAbortError } from './errors.js'

// Where there is no screen to keep step with: about as often.
const nextFrame = globalThis.requestAnimationFrame ?? ((draw) => setTimeout(draw, 16))

// Messages and what becomes of them, for a user interface. `state()` is a new object after each change, of which
// `subscribe` tells. `options` are those of useHearthlinkChat. Its owner calls `stop()` at the end.
export function createConversation(options) {
  let state = { messages: options.messages ?? [], status: 'ready', error: undefined, waiting: undefined }
  let run // the answer that is being read
  let count = 0
  const listeners = new Set()

  function set(change) {
    state = { ...state, ...change }
    for (const listener of listeners) listener()
  }

  function subscribe(listener) {
    listeners.add(listener)
    return () => listeners.delete(listener)
  }

  const newMessage = (role, parts) => ({ id: `message-${++count}`, role, parts })

  function indexOf(messageId) {
    const index = state.messages.findIndex(({ id }) => id === messageId)
    if (index < 0) throw new RangeError(`There is no message ${messageId} in this conversation.`)
    return index
  }

  function setMessages(next) {
    set({ messages: typeof next === 'function' ? next(state.messages) : next })
  }

  // Without a message the conversation is asked about as it is; with `messageId` the new one takes the place of that
  // one and of all behind it.
  async function sendMessage(message, extra) {
    stop()
    if (message === undefined) return ask(state.messages, extra)
    const { text, parts = [{ type: 'text', text: text ?? message }], messageId } = message
    const before = messageId === undefined ? state.messages : state.messages.slice(0, indexOf(messageId))
    return ask([...before, newMessage('user', parts)], extra)
  }

  // The last answer anew, or the one that `messageId` is, or is the question of.
  async function regenerate({ messageId, ...extra } = {}) {
    stop()
    const { messages } = state
    const index = messageId === undefined ? messages.length - 1 : indexOf(messageId)
    return ask(messages.slice(0, messages[index]?.role === 'assistant' ? index : index + 1), extra)
  }

  // What came so far stays.
  function stop() {
    if (!run) return
    const { chat, draw } = run
    draw()
    run = undefined
    chat.cancel()
    set({ status: 'ready', waiting: undefined })
  }

  function clearError() {
    if (state.status === 'error') set({ status: 'ready', error: undefined })
  }

  async function ask(history, extra) {
    const { client, messages: _, onFinish, onError, ...params } = options
    const chat = client.chat({ ...params, ...extra, messages: history.map(asQuestion) })
    const answer = newMessage('assistant', [])
    const mine = (run = { chat, draw })
    let drawing = false
    let finish
    let error
    set({ messages: history, status: 'submitted', error: undefined, waiting: undefined })

    function draw() {
      drawing = false
      if (run !== mine || !answer.parts.length) return
      const others = state.messages.filter(({ id }) => id !== answer.id)
      set({ status: 'streaming', waiting: undefined, messages: [...others, { ...answer, parts: [...answer.parts] }] })
    }

    try {
      for await (const event of chat) {
        if (event.delta) {
          append(answer.parts, event)
          if (!drawing) nextFrame(draw)
          drawing = true
        } else if (event.type === 'done') finish = event
        else if (event.type !== 'usage' && run === mine)
          set({ waiting: event.type === 'connecting' ? undefined : event })
      }
    } catch (caught) {
      error = caught
    }
    if (run !== mine) return // stopped by stop(), which has told everybody
    draw()
    run = undefined
    if (error instanceof UserAbortError) error = finish = undefined
    set({ status: error ? 'error' : 'ready', error, waiting: undefined })
    if (error) onError?.(error)
    else if (finish) onFinish?.({ message: answer, finishReason: finish.finishReason, usage: finish.usage })
  }

  return {
    state: () => state,
    configure: (next) => (options = next),
    subscribe,
    setMessages,
    sendMessage,
    regenerate,
    stop,
    clearError,
  }
}

function append(parts, { type, delta }) {
  const last = parts.at(-1)
  if (last?.type === type) parts[parts.length - 1] = { type, text: last.text + delta }
  else parts.push({ type, text: delta })
}

// As the wire has it; what the model thought is not said again.
function asQuestion({ role, parts }) {
  const texts = parts.filter(({ type }) => type === 'text').map(({ text }) => text)
  return { role, content: texts.join('') }
}
