// The turns as articles. An answer under way is in #live, behind the log; when it is whole it moves into the log and is
// announced, once.

import { pace } from './connection.js'
import { paceOf } from './conversation.js'
import { $, announce, copies, copyOf } from './dom.js'
import { createAnswer } from './markdown.js'

// `act`: what buttons of these classes do.
export function createTranscript(act) {
  const views = new Map() // by turn

  function asked(turn) {
    gone(turn)
    for (const view of views.values()) view.age()
    views.set(turn, createView(turn, act))
    announce('Generating…')
  }

  function gone(turn) {
    views.get(turn)?.remove()
    views.delete(turn)
  }

  return { asked, gone, text: (turn) => views.get(turn).text(), ended: (turn) => views.get(turn).end() }
}

function createView(turn, act) {
  const said = turn.answer
  const articles = copyOf('turn')
  const [question, answer] = articles
  const find = (selector) => answer.querySelector(selector)
  const each = (selector, action) => articles.forEach((node) => node.querySelectorAll(selector).forEach(action))
  const body = find('.prose')
  const drawn = createAnswer(body, () => said.text)

  question.firstElementChild.textContent = turn.question
  copies(question.querySelector('.copy'), () => turn.question)
  copies(find('.tools .copy'), () => said.text)
  copies(find('.id .copy'), () => said.requestId)
  for (const name in act) each(`.${name}`, (button) => (button.onclick = act[name]))
  $('log').append(question)
  $('live').append(answer)
  set('waiting')

  function set(state) {
    answer.dataset.state = state
    answer.ariaBusy = String(/waiting|streaming/.test(state))
  }

  function text() {
    set('streaming')
    if (said.text) drawn.grow()
    find('.thought').hidden = !said.reasoning
    find('.thought p').textContent = said.reasoning
  }

  function end() {
    set(said.state)
    drawn.finish()
    if (said.state === 'error') problem()
    else find('.tools:last-child').hidden = false
    find('.pace').textContent = remark(said)
    find('.tools .copy').hidden = !said.text
    // With the selection, where the browser can.
    if ($('log').moveBefore) $('log').moveBefore(answer, null)
    else $('log').append(answer)
    announce(find('.what').textContent || body.textContent || remark(said))
  }

  function problem() {
    const { code, name } = said.error
    find('.what').append(...wordsFor(said.error))
    find('.problem').hidden = false
    find('.problem').dataset.code = code ?? name
    find('.request-id').textContent = said.requestId
    answer.dataset.fresh = /context_length|too_large/.test(code)
  }

  // A newer turn has begun.
  const age = () => each('.last', (node) => node.remove())

  function remove() {
    drawn.close()
    question.remove()
    answer.remove()
  }

  return { text, end, age, remove }
}

// Words for codes come before those for classes. Those that end in a space go on with the server's.
export function wordsFor({ code, name, message }) {
  const words = $('errors').content
  const known = words.querySelector(`[data-for~="${code}"], [data-for~="${name}"]`) ?? words.lastElementChild
  return [...known.cloneNode(true).childNodes, / $/.test(known.textContent) ? message : '']
}

function remark(said) {
  if (said.state === 'stopped') return 'Stopped'
  if (said.finishReason === 'length') return 'Cut at the longest length of an answer here'
  return said.text ? pace(paceOf(said)) : 'The model said nothing'
}

const NEAR = 48 // pixels from the end

// Follows the newest words while the reader is at the end. Gives what goes there.
export function followScroll() {
  const scroller = $('scroller')
  const latest = $('latest')
  let follows = true

  function toEnd() {
    if (follows && document.body.dataset.view === 'chat') scroller.scrollTop = scroller.scrollHeight
  }

  function follow() {
    follows = latest.hidden = true
    toEnd()
  }

  scroller.onscroll = () => {
    follows = latest.hidden = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR
  }
  latest.onclick = follow
  const resized = new ResizeObserver(toEnd)
  resized.observe($('column'))
  resized.observe(scroller)

  // A keyboard on the screen may cover the page instead of shrinking it.
  const { visualViewport: screen } = globalThis
  screen?.addEventListener('resize', () => {
    const covered = screen.scale === 1 && screen.height < innerHeight - NEAR
    document.body.style.height = covered ? `${screen.height}px` : ''
  })
  return follow
}
