// Renders the component that a document's example exports, asks a question with it as a person would, waits for the
// answer and prints the text of each message. Arguments: the example, a .jsx file; the answer; where the edge is.

import { readFileSync, writeFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { createClient } from '@hearthlink/client'
import { createElement } from 'react'
import { act, create } from 'react-test-renderer'
import { transformSync } from 'rolldown/experimental'

globalThis.IS_REACT_ACT_ENVIRONMENT = true
// React says in one line on stderr that this renderer is on its way out; it needs no browser, so it does for this.
const { error } = console
console.error = (...said) => String(said[0]).includes('react-test-renderer is deprecated') || error(...said)

const [source, answer, baseUrl] = process.argv.slice(2)
const { code, errors } = transformSync(source, readFileSync(source, 'utf8'), { jsx: { runtime: 'automatic' } })
if (errors.length) throw new Error(errors.map(({ message }) => message).join('\n'))
writeFileSync(`${source}.mjs`, code)
const { default: Example } = await import(pathToFileURL(resolve(`${source}.mjs`)))

let view
const textOf = (node) => (typeof node === 'string' ? node : node.children.map(textOf).join(''))
const messages = () => view.root.findAllByType('li').map(textOf)
const moment = () => new Promise((done) => setTimeout(done, 20))

await act(async () => (view = create(createElement(Example, { client: createClient({ baseUrl }) }))))
const [form] = view.root.findAllByType('form')
if (form) {
  await act(async () => form.findByType('input').props.onChange({ target: { value: 'Where to?' } }))
  await act(async () => form.props.onSubmit({ preventDefault() {} }))
} else await act(async () => view.root.findByType('button').props.onClick())
for (let looks = 0; looks < 500 && messages().at(-1) !== answer; looks++) await act(moment)
console.log(messages().join('\n'))
await act(async () => view.unmount())
