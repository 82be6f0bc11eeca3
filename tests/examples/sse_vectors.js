// Feeds the vectors to the parser of a document's example, as they are and byte by byte. Arguments: the example, which
// exports `events`; the file of vectors; names of cases that an edge never sends, as JSON.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { isDeepStrictEqual } from 'node:util'

const [example, vectors, left] = process.argv.slice(2)
const { events } = await import(pathToFileURL(resolve(example)))
const { cases } = JSON.parse(readFileSync(vectors, 'utf8'))

async function read(slices) {
  const body = new ReadableStream({
    start(controller) {
      for (const slice of slices) controller.enqueue(Uint8Array.from(slice, (byte) => byte.charCodeAt(0)))
      controller.close()
    },
  })
  const found = []
  for await (const { event, data } of events(body)) found.push({ data, event: event ?? null })
  return found
}

const failed = []
for (const { name, slices, events: expected, fails } of cases) {
  if (fails || JSON.parse(left).includes(name)) continue
  const wanted = expected.map(({ data, event = null }) => ({ data, event }))
  for (const cut of [slices, [...slices.join('')]]) if (!isDeepStrictEqual(await read(cut), wanted)) failed.push(name)
}
assert.deepEqual(failed, [])
