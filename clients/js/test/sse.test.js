// The same vectors that hold the servers' parser hold ours: tests/vectors/sse.json.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { createParser } from '../src/sse.js'

const { cases } = JSON.parse(readFileSync(new URL('../../../tests/vectors/sse.json', import.meta.url)))

const read = (slices, limit) => {
  const parser = createParser(limit)
  return slices.flatMap((slice) => parser.feed(slice))
}

// Absent fields are left out, as in the vectors.
const asWritten = (events) => JSON.parse(JSON.stringify(events))

function* eachWayToCut(stream) {
  yield [stream]
  yield Array.from(stream, (_, at) => stream.subarray(at, at + 1))
  for (let cut = 1; cut < stream.length; cut++) yield [stream.subarray(0, cut), stream.subarray(cut)]
}

for (const { name, slices, limit, events, fails } of cases) {
  test(`vector: ${name}`, () => {
    const given = slices.map((slice) => new Uint8Array(Buffer.from(slice, 'latin1')))
    for (const way of [given, ...eachWayToCut(new Uint8Array(Buffer.concat(given)))]) {
      if (fails) assert.throws(() => read(way, limit), RangeError)
      else assert.deepEqual(asWritten(read(way, limit)), events)
    }
  })
}

test('an event comes out as soon as its blank line is there', () => {
  const parser = createParser()
  const feed = (text) => parser.feed(new TextEncoder().encode(text)).map(({ data }) => data)
  assert.deepEqual(feed('data: a\n'), [])
  assert.deepEqual(feed('\n'), ['a'])
  assert.deepEqual(feed('data: b\r\n\r'), ['b'])
  assert.deepEqual(feed('\ndata: c\r\r'), ['c'])
})

test('an endless line ends in an error, in bounded memory and linear time', () => {
  const parser = createParser()
  const piece = new Uint8Array(16).fill(120)
  let fed = 0
  const began = performance.now()
  assert.throws(() => {
    for (;;) fed += (parser.feed(piece), piece.length)
  }, RangeError)
  assert.ok(fed <= 1 << 20)
  // 65,536 slices: milliseconds when linear, minutes when each is joined to all before.
  assert.ok(performance.now() - began < 10_000)
})
