// How things stand: <body data-state> and #status.

import { $, announce } from './dom.js'

// Announced: trouble and its end, not every number.
const TROUBLE = /offline|asleep|closed|limited|queued|loading/

// `over(name)`: the `seconds` of a state are over.
export function createConnection(over) {
  let state = {}
  let end
  let timer

  function show(name, details) {
    const before = state.name
    state = { name, ...details }
    end = performance.now() + state.seconds * 1000
    document.body.dataset.state = name
    clearInterval(timer)
    if (end) timer = setInterval(tick, 1000)
    write()
    if (name !== before && TROUBLE.test(name === 'ready' ? before : name)) announce($('status').textContent)
  }

  function write() {
    const left = (end - performance.now()) / 1000
    $('status').textContent = stateWords(state, left)
    return left
  }

  function tick() {
    if (write() > 0) return
    clearInterval(timer)
    over(state.name)
  }

  return { show, name: () => state.name }
}

// "42 s", "3 min", "7 h"
export function duration(seconds) {
  if (seconds < 120) return `${Math.ceil(seconds)} s`
  return seconds < 7200 ? `${Math.ceil(seconds / 60)} min` : `${Math.ceil(seconds / 3600)} h`
}

const tokens = (count) => `${count.toLocaleString('en')} ${count === 1 ? 'token' : 'tokens'}`

// `first` is in milliseconds.
export const pace = ({ count, perSecond, first }) =>
  [
    count && tokens(count),
    perSecond && `${perSecond.toFixed(perSecond < 10 ? 1 : 0)} tokens/s`,
    first && `first word after ${first < 100 ? `${Math.ceil(first)} ms` : `${(first / 1000).toFixed(1)} s`}`,
  ]
    .filter(Boolean)
    .join(', ')

const WORDS = {
  connecting: () => 'Waiting…',
  reconnecting: ({ soon }) => `No answer, trying again${soon}`,
  queued: ({ position, etaSeconds: eta }) => `In the queue: place ${position}${eta ? `, about ${duration(eta)}` : ''}`,
  loading: ({ model, progress }) =>
    `Loading ${model ?? 'the model'}${progress ? `, ${Math.round(progress * 100)} %` : '…'}`,
  generating: (state) => `Writing… ${pace(state)}`,
  ready: ({ back }) => (back ? 'Back again' : 'Ready'),
  limited: ({ soon }) => `Limited: again${soon || ' now'}`,
  offline: ({ device, soon }) => (device ? 'You are offline' : `Server out of reach, looking again${soon}`),
  asleep: ({ soon }) => `The model is asleep, looking again${soon}`,
  closed: ({ soon }) => `Closed for a while, looking again${soon}`,
  invite: () => 'Invite needed',
  refused: () => 'Not open to this page',
}

export const stateWords = (state, left) =>
  WORDS[state.name]({ ...state, soon: left > 0 ? ` in ${duration(left)}` : '' })

// `usage` of GET /v1/me
export function quotaWords({ tokens: { limit, remaining, reset } }) {
  if (limit === null) return ''
  return remaining > 0 ? `${tokens(remaining)} left today` : `Nothing left today, more in ${duration(reset)}`
}

// Seconds between two looks, from, to, and when all is well; for an answer.
const [FIRST, LONGEST, WELL, WITHIN] = [2, 60, 30, 8]

// Is there an edge, a model? In sight, `tell(state, seconds)` to the next look. Gives what looks now.
export function watchHealth(tell) {
  let timer
  let pause
  let looking

  async function look() {
    clearTimeout(timer)
    if (document.hidden || looking) return
    looking = true
    const state = await ask()
    looking = false
    const next = state === 'ready' ? WELL : pause
    pause = Math.min(LONGEST, pause * (1.3 + Math.random() / 2))
    timer = setTimeout(look, next * 1000)
    tell(state, next)
  }

  function now() {
    pause = FIRST
    look()
  }

  for (const name of ['online', 'offline', 'visibilitychange']) addEventListener(name, now)
  timer = setTimeout(now, WELL * 1000)
  return now
}

async function ask() {
  if (!navigator.onLine) return 'offline'
  try {
    const answer = await fetch('/healthz', { cache: 'no-store', signal: AbortSignal.timeout(WITHIN * 1000) })
    return { ok: 'ready', maintenance: 'closed' }[(await answer.json()).status] ?? 'asleep'
  } catch {
    return 'offline'
  }
}
