// dist/hearthlink.js is what src/ says, small, and runs where there is nothing but the web's own API.

import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import * as bundled from '../dist/hearthlink.js'
import * as source from '../src/index.js'
import { answer, head, serve } from './support/server.js'

const file = (path) => readFileSync(new URL(path, import.meta.url), 'utf8')
// What the README promises: 5 KB for a page that loads the client, in bytes.
const ALLOWED = 5 * 1024

test('5 KB gzipped, and no more', (t) => {
  const size = gzipSync(file('../dist/hearthlink.js'), { level: 9 }).length
  t.diagnostic(`dist/hearthlink.js is ${size} bytes gzipped`)
  assert.ok(size <= ALLOWED, `dist/hearthlink.js is ${size} bytes gzipped, ${ALLOWED} are allowed`)
})

test('it is what scripts/bundle.js makes of src/', async () => {
  const { bundle } = await import('../scripts/bundle.js')
  assert.equal(file('../dist/hearthlink.js'), await bundle(), 'run `npm run bundle` and commit dist/hearthlink.js')
})

test('it imports nothing and exports the same', () => {
  assert.doesNotMatch(file('../dist/hearthlink.js'), /\bimport\b|\brequire\b/)
  assert.deepEqual(Object.keys(bundled), Object.keys(source))
})

test('it chats', async (t) => {
  const server = await serve(t, [head + answer('small', ' but whole')])
  const client = bundled.createClient({ baseUrl: server.url })
  assert.equal(await client.chat({ messages: [{ role: 'user', content: 'hi' }] }).text(), 'small but whole')
  await assert.rejects(client.get('/v1/nothing'), (error) => {
    return (
      error instanceof bundled.InvalidRequestError && error.name === 'InvalidRequestError' && error.code === 'not_found'
    )
  })
})

test("the sources need no runtime but the web's", () => {
  const folder = new URL('../src/', import.meta.url)
  for (const name of readdirSync(folder)) {
    const code = readFileSync(new URL(name, folder), 'utf8').replace(/\/\/.*$/gm, '')
    assert.doesNotMatch(code, /\b(Buffer|process|require|global|window|setImmediate|XMLHttpRequest)\b/, name)
    for (const [, from] of code.matchAll(/from '(.+?)'/g))
      assert.match(from, name === 'react.js' ? /^(\.\/|react$)/ : /^\.\//)
  }
})

test('the types declare what is there', () => {
  const declared = [...file('../types/index.d.ts').matchAll(/^export (?:function|class) (\w+)/gm)].map(
    ([, name]) => name,
  )
  assert.deepEqual(declared.sort(), Object.keys(source).sort())
})

test('the package needs nothing, and no lock file names a registry', () => {
  const { dependencies, files, exports } = JSON.parse(file('../package.json'))
  assert.equal(dependencies, undefined)
  assert.deepEqual(files, ['src', 'types', 'dist'])
  for (const entry of Object.values(exports))
    for (const path of Object.values(entry)) if (path.length > 1) assert.ok(file(`../${path}`))
  for (const lock of ['../package-lock.json', '../examples/vite/package-lock.json']) {
    for (const [path, { integrity, resolved, link }] of Object.entries(JSON.parse(file(lock)).packages)) {
      if (!path.startsWith('node_modules/') || link) continue
      assert.ok(integrity, `${lock}: ${path} has no hash`)
      assert.equal(resolved, undefined, `${lock}: ${path} names a registry`)
    }
  }
})
