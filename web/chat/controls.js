// The field, the kinds of chat with questions to begin with, and the settings. Appearance, kind, model and streaming
// stay in this browser (localStorage), a draft in this tab (sessionStorage); nothing secret, nothing said.

import { $, copyOf } from './dom.js'

const COMPOSING = 229 // the code of an Enter that ends a composition in Safari

// `keep(name)` reads, `keep(name, value)` writes; a browser may forbid both.
const keeper = (area) => (name, value) => {
  try {
    const [storage, key] = [globalThis[area], `hearthlink.${name}`]
    return value === undefined ? storage.getItem(key) : storage.setItem(key, value)
  } catch {
    return null
  }
}

export const preferences = keeper('localStorage')
const draft = keeper('sessionStorage')

export function createComposer({ ask, stop }) {
  const field = $('message')

  function put(text) {
    field.value = text
    changed()
  }

  function changed() {
    draft('draft', field.value)
    $('send').disabled = !field.value.trim()
    field.style.height = 'auto'
    field.style.height = `${field.scrollHeight}px`
  }

  function submit(event) {
    event.preventDefault()
    const text = field.value.trim()
    if (!text || $('send').hidden) return
    put('')
    ask(text)
  }

  // Not on phones, where it opens the keyboard.
  const focus = () => matchMedia('(hover: hover)').matches && field.focus()

  // The focus must not go with a button.
  function setBusy(busy) {
    const held = $('composer').contains(document.activeElement)
    $('send').hidden = busy
    $('stop').hidden = !busy
    if (held) focus()
  }

  field.oninput = changed
  field.onkeydown = (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== COMPOSING) submit(event)
  }
  $('composer').onsubmit = submit
  $('stop').onclick = stop
  addEventListener('resize', changed)
  put(field.value || draft('draft'))
  return { put, focus, setBusy }
}

export function createKinds({ choose, ask }) {
  const field = $('types')
  const shipped = copyOf('shipped')
  const wordsFor = (name) => shipped.find((list) => list.dataset.kind === name)
  const rank = ({ name }) => shipped.indexOf(wordsFor(name)) + 1 || Infinity

  // `offered` is the list of GET /v1/chat/types; `wanted` the kind from last time.
  function offer(offered, wanted) {
    const kinds = [...offered].sort((a, b) => rank(a) - rank(b))
    field.replaceChildren(field.firstElementChild, ...kinds.map(option))
    field.hidden = kinds.length < 2
    picked((kinds.find(({ name }) => name === wanted) ?? kinds[0])?.name)
  }

  function option({ name, description }) {
    const [label] = copyOf('kind')
    const radio = label.firstChild
    const [title, about] = radio.nextSibling.children
    label.title = about.textContent = description
    radio.value = name
    title.textContent = wordsFor(name)?.title ?? name
    radio.onchange = () => picked(name)
    return label
  }

  function picked(name) {
    for (const radio of field.querySelectorAll('input')) radio.checked = radio.value === name
    $('examples').replaceChildren(...[...(wordsFor(name) ?? shipped[0]).children].map(example))
    choose(name)
  }

  function example({ textContent: text }) {
    const [item] = copyOf('example')
    item.firstChild.append(text)
    item.firstChild.onclick = () => ask(text)
    return item
  }

  const place = (isFirst) => (isFirst ? $('examples').before(field) : $('kinds').append(field))

  return { offer, place }
}

export function createSettings() {
  const dialog = $('settings')
  const { theme, model, streaming } = dialog.querySelector('form').elements

  function offer(names) {
    model.replaceChildren(new Option("The chat's own", ''), ...names.map((name) => new Option(name)))
    $('model-choice').hidden = names.length < 2
    if (names.includes(preferences('model'))) model.value = preferences('model')
  }

  function save() {
    document.documentElement.dataset.theme = theme.value
    preferences('theme', theme.value)
    preferences('streaming', streaming.checked)
    if (model.length) preferences('model', model.value)
  }

  theme.value = preferences('theme') ?? 'auto'
  streaming.checked = preferences('streaming') !== 'false'
  save()
  dialog.onchange = save
  $('open-settings').onclick = $('more').onclick = () => dialog.showModal()

  return { offer, streams: () => streaming.checked, model: () => model.value || undefined }
}
