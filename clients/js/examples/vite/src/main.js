import { HearthlinkError, UserAbortError } from '@hearthlink/client'
import { client } from './client.js'

const [list, form, question, send, stop, state] = ['messages', 'ask', 'question', 'send', 'stop', 'state'].map((id) =>
  document.getElementById(id),
)
const messages = []

form.addEventListener('submit', async (event) => {
  event.preventDefault()
  const asked = question.value
  form.reset()
  show('user', asked)
  const chat = client.chat({ messages: [...messages, { role: 'user', content: asked }] })
  stop.onclick = () => chat.cancel()
  busy(true)
  const line = show('assistant', '')
  try {
    for await (const event of chat) {
      if (event.type === 'queued') state.textContent = `Number ${event.position} in the queue`
      if (event.type === 'loading') state.textContent = 'The model is being loaded'
      if (event.type === 'text') line.textContent += event.delta
      if (event.type === 'text') state.textContent = ''
    }
    messages.push({ role: 'user', content: asked }, { role: 'assistant', content: line.textContent })
  } catch (error) {
    state.textContent = sentence(error)
  } finally {
    busy(false)
  }
})

function show(role, text) {
  const line = document.createElement('li')
  line.className = role
  line.textContent = text
  list.append(line)
  return line
}

function busy(yes) {
  send.hidden = yes
  stop.hidden = !yes
  if (!yes) question.focus()
}

function sentence(error) {
  if (error instanceof UserAbortError) return 'Stopped.'
  if (!(error instanceof HearthlinkError)) throw error
  const later = error.retryAfter ? ` Try again in ${Math.ceil(error.retryAfter)} s.` : ''
  return `${error.message}${later} (request ${error.requestId})`
}
