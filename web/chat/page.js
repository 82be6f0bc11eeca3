// The chat page, put together: the client speaks to the edge, conversation.js holds what was said, transcript.js shows
// it, connection.js says how things stand, and this file passes the news between them.

import { createClient } from '../hearthlink.js'
import { createConnection, quotaWords, watchHealth } from './connection.js'
import { createComposer, createKinds, createSettings, preferences } from './controls.js'
import { createConversation, paceOf, turnsFor } from './conversation.js'
import { $ } from './dom.js'
import { createDoor, createInvite, needsInvite } from './door.js'
import { createTranscript, followScroll, wordsFor } from './transcript.js'

const TOY = 'demo' // models/demo.gguf, as the edge calls it
const PATIENCE = 5 // seconds; longer waits are for the person to decide
// Milliseconds: for other tabs to offer their token, between two words on the pace, for an answer in one piece, of a dead stream.
const [OTHER_TABS, PACE, TOTAL, IDLE] = [60, 250, 900_000, 25_000]

let known // what the edge offers
let models = []
let chatType

const door = createDoor()
const client = createClient({
  fetch: door.fetch,
  defaults: { clientId: 'hearthlink-page' },
  timeouts: { total: TOTAL, idle: IDLE },
  retry: { maxRetryAfter: PATIENCE },
  onEvent({ type, delay, error }) {
    if (type !== 'retry' || (known && !talk.busy())) return
    show(error.status === 429 ? 'limited' : 'reconnecting', { seconds: delay / 1000 })
  },
})
const { show, name: state } = createConnection(onTimeUp)
const settings = createSettings()
const follow = followScroll()
const transcript = createTranscript({ again: () => talk.again(), edit, fresh })
const talk = createConversation(client, params, onTurn)
const composer = createComposer({ ask, stop: talk.stop })
const kinds = createKinds({ choose, ask })
const look = watchHealth(onHealth)
createInvite(door, start, limited)

function ask(text) {
  talk.ask(text)
  follow()
}

function edit() {
  composer.put(talk.takeBack())
  view()
  $('message').focus()
}

function fresh() {
  talk.clear()
  view()
  composer.focus()
}

function choose(name) {
  if (chatType) preferences('chat-type', name)
  chatType = name
}

function params() {
  const { context_length: context } = models.find(({ id }) => id === `chat:${chatType}`) ?? {}
  return { turns: turnsFor(context), chatType, model: settings.model(), stream: settings.streams() }
}

function onTurn(what, turn, event) {
  transcript[what]?.(turn)
  composer.setBusy(talk.busy())
  if (what === 'asked') {
    show('connecting')
    view()
    composer.focus() // the button that asked may be gone
  } else if (what === 'waits') show(event.type, event)
  else if (what === 'text') showPace(turn.answer)
  else if (talk.busy()) return
  else if (what === 'ended') settle(turn.answer)
  else if (/ing$|queued/.test(state())) show('ready')
}

function showPace(said) {
  if (performance.now() - said.pacedAt < PACE) return
  said.pacedAt = performance.now()
  show('generating', { ...paceOf(said), count: 0 })
}

function settle({ error, model }) {
  if (model) showModel(model)
  if (error && error.code !== 'aborted') trouble(error)
  else show('ready')
  if (known) showQuota()
}

// What an error says about the edge; its answer says the rest.
function trouble(error) {
  if (needsInvite(error)) {
    known = false
    show('invite')
    view('invite')
    return $('invite-code').focus()
  }
  if (error.status === 429) return limited(error.retryAfter)
  const isClear = error.status <= 500 // not an edge or a model that is away
  if (known) show('ready')
  else {
    if (isClear) show('refused')
    $('refusal').replaceChildren(...wordsFor(error))
  }
  if (!isClear) look()
}

function limited(seconds) {
  show('limited', { seconds: seconds || PATIENCE })
}

function onTimeUp(name) {
  if (name !== 'limited') return
  if (known) show(talk.busy() ? 'connecting' : 'ready')
  else start()
}

function onHealth(health, seconds) {
  if (talk.busy() || /limited|invite|refused/.test(state())) return
  if (health !== 'ready') show(health, { device: !navigator.onLine, seconds })
  else if (!known) start()
  else if (state() !== 'ready') show('ready', { back: true })
}

async function start() {
  show('connecting')
  $('refusal').textContent = ''
  try {
    const [types, { data }] = await Promise.all([client.get('/v1/chat/types'), client.get('/v1/models')])
    const names = data.map(({ id }) => id).filter((id) => !id.startsWith('chat:'))
    models = data
    known = true
    settings.offer(names)
    if (names.length === 1) showModel(names[0])
    kinds.offer(types.data, preferences('chat-type'))
    view()
    if (!talk.busy()) show('ready')
    showQuota()
  } catch (error) {
    trouble(error)
  }
}

async function showQuota() {
  const { usage } = await client.get('/v1/me').catch(() => ({}))
  if (usage) $('quota').textContent = quotaWords(usage)
}

function showModel(model) {
  $('about').textContent = `Answers come from ${model}.`
  $('toy').hidden = model !== TOY
}

// The welcome, the conversation, or the field for an invite code.
function view(name = talk.turns.length ? 'chat' : 'welcome') {
  document.body.dataset.view = name
  $('welcome').hidden = name !== 'welcome'
  $('invite').hidden = name !== 'invite'
  $('new').disabled = name !== 'chat'
  kinds.place(name !== 'chat')
}

$('new').onclick = fresh
addEventListener('keydown', ({ key, isComposing }) => {
  if (key === 'Escape' && !isComposing && !$('settings').open) talk.stop()
})
addEventListener('pagehide', talk.stop)

show('connecting')
view()
composer.focus()
setTimeout(start, OTHER_TABS)
