// A model's text as DOM: marked makes HTML of it, DOMPurify nodes of that, and nothing else on this page makes HTML.
// Whatever the text says, nothing in it runs, loads, or leads anywhere unasked.

import { Marked } from '../vendor/marked-18.2.1/marked.esm.js'
import '../vendor/dompurify-3.4.18/purify.min.js'
import { copies, copyOf } from './dom.js'

const TAGS =
  'a b blockquote br code del em h3 h4 h5 h6 hr i li ol p pre s strong sub sup table tbody td th thead tr u ul'
const POLICY = {
  ALLOWED_TAGS: TAGS.split(' '),
  ALLOWED_ATTR: ['align', 'class', 'href', 'start'],
  ADD_URI_SAFE_ATTR: ['align', 'start'],
  ALLOWED_URI_REGEXP: /^(https|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
}
// For want of Markdown. All other HTML is shown as the text that it is.
const HARMLESS = /^<\/?(b|br|del|em|i|s|strong|sub|sup|u)\s*\/?>$/i
const escape = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt()};`)

const renderer = {
  html: ({ text, block }) => (HARMLESS.test(text) ? text : block ? `<p>${escape(text)}</p>` : escape(text)),
  // Fetching it could tell its host what was said here.
  image({ href, text }) {
    const host = /^https:\/\/([^/?#]+)/i.exec(href)?.[1]
    const label = escape(`Image: ${text || 'untitled'}` + (host ? ` (${host})` : ''))
    return host ? `<a href="${escape(href)}">${label}</a>` : label
  },
  checkbox: ({ checked }) => (checked ? '☑ ' : '☐ '),
}
const marked = new Marked({ breaks: true, renderer })

function render(blocks) {
  // h1 and h2 are the page's own.
  for (const block of blocks) block.depth = Math.min(block.depth + 2, 6)
  const fragment = globalThis.DOMPurify.sanitize(marked.parser(blocks), POLICY)
  for (const link of fragment.querySelectorAll('a')) {
    if (link.href) Object.assign(link, { target: '_blank', rel: 'noopener noreferrer', title: link.href })
    else link.replaceWith(...link.childNodes)
  }
  for (const wide of fragment.querySelectorAll('pre, table')) frame(wide)
  return fragment
}

function frame(node) {
  const [figure] = copyOf(node.localName)
  node.replaceWith(figure)
  figure.lastElementChild.append(node)
  if (node.localName === 'table') return
  figure.querySelector('span').textContent = /language-(\S+)/.exec(node.firstChild.className)?.[1] ?? ''
  copies(figure.querySelector('button'), () => node.textContent)
}

// A quarter of the time at most goes into drawing.
const SHARE = 4

// `read()` gives the text so far. Finished blocks stay; only the last, open one is parsed again, at most once a frame.
export function createAnswer(node, read) {
  let done = 0 // characters of finished blocks
  let open = [] // the nodes of the open block
  let frame
  let notBefore = 0

  function grow() {
    frame ??= requestAnimationFrame(next)
  }

  function next(now) {
    frame = undefined
    if (now < notBefore) return grow()
    const began = performance.now()
    draw()
    notBefore = performance.now() + (performance.now() - began) * SHARE
  }

  function draw() {
    const { blocks, length } = finished(read().slice(done))
    for (const old of open) old.remove()
    node.append(render(blocks))
    done += length
    const fragment = render(marked.lexer(read().slice(done)))
    open = [...fragment.childNodes]
    node.append(fragment)
  }

  const close = () => cancelAnimationFrame(frame)

  function finish() {
    close()
    draw()
  }

  return { grow, finish, close }
}

// The blocks that nothing can change any more, all but the last in whole lines, and their length.
export function finished(text) {
  const lines = text.slice(0, text.lastIndexOf('\n') + 1)
  const all = marked.lexer(lines)
  const last = all.findLastIndex(({ type }) => type !== 'space')
  const length = lines.lastIndexOf(all[last]?.raw)
  return length > 0 ? { blocks: all.slice(0, last), length } : { blocks: [], length: 0 }
}
