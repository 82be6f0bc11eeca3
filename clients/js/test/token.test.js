// Tokens: in memory, renewed before they end, once for all who wait.

import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { mock, test } from 'node:test'
import { AuthError } from '../src/index.js'
import { createTokenSource } from '../src/token.js'
import { fakeClock } from './support/clock.js'
import { LIFE, door } from './support/door.js'

const tick = () => new Promise((resolve) => setImmediate(resolve))

test('one token serves until 80 % of its life, give or take 10 % of that', async (t) => {
  const clock = fakeClock(t)
  const moments = []
  for (let i = 0; i < 200; i++) {
    const load = door()
    const source = createTokenSource(load)
    const began = clock.now
    await source.get()
    for (let share = 0.7; load.calls < 2; share += 0.005) {
      clock.now = began + share * LIFE * 1000
      assert.equal(await source.get(), 'hlt_1', 'the old one goes on while the new one comes')
      if (load.calls === 2) moments.push(share)
    }
    await tick()
    assert.equal(await source.get(), 'hlt_2')
    assert.equal(load.calls, 2)
  }
  assert.ok(
    Math.min(...moments) >= 0.72 && Math.max(...moments) <= 0.885,
    `${Math.min(...moments)}–${Math.max(...moments)}`,
  )
  assert.ok(Math.max(...moments) - Math.min(...moments) > 0.1, 'spread, so that many pages do not come at once')
})

test('whoever asks at the same time waits for the same answer', async (t) => {
  const clock = fakeClock(t)
  const load = door({ takes: tick })
  const source = createTokenSource(load)
  assert.deepEqual(await Promise.all(Array.from({ length: 9 }, () => source.get())), Array(9).fill('hlt_1'))
  clock.now += LIFE * 1000
  assert.deepEqual(await Promise.all(Array.from({ length: 9 }, () => source.get())), Array(9).fill('hlt_2'))
  assert.equal(load.calls, 2)
})

test('a failed renewal keeps the old token until its end, and is tried again', async (t) => {
  const clock = fakeClock(t)
  let broken = false
  const load = door({
    takes: async () => {
      if (broken) throw new Error('no door')
    },
  })
  const source = createTokenSource(load)
  await source.get()
  broken = true
  for (const share of [0.9, 0.95, 0.999]) {
    clock.now = 1000 + share * LIFE * 1000
    assert.equal(await source.get(), 'hlt_1')
    await tick()
  }
  assert.equal(load.calls, 4)
  clock.now = 1000 + LIFE * 1000
  await assert.rejects(source.get(), /no door/)
  broken = false
  assert.equal(await source.get(), 'hlt_6')
})

test('the life counts from before the question', async (t) => {
  const clock = fakeClock(t)
  const load = door({ takes: async () => void (clock.now += 100_000) })
  const source = createTokenSource(load)
  await source.get()
  clock.now = 1000 + LIFE * 1000 - 1
  assert.equal(await source.get(), 'hlt_1')
  await tick()
  const late = createTokenSource(door({ takes: async () => void (clock.now += LIFE * 1000) }))
  await late.get()
  assert.equal(await late.get(), 'hlt_2', 'it was dead on arrival')
})

test('the clock on the wall changes nothing', async (t) => {
  fakeClock(t)
  const load = door()
  const source = createTokenSource(load)
  await source.get()
  for (const wall of [0, Date.now() + 1e11]) {
    const mocked = mock.method(Date, 'now', () => wall)
    assert.equal(await source.get(), 'hlt_1')
    mocked.mock.restore()
  }
  assert.equal(load.calls, 1)
})

test('a text is asked for each time, and what is no token is refused', async () => {
  let calls = 0
  const texts = createTokenSource(() => `key-${++calls}`)
  assert.equal(await texts.get(), 'key-1')
  assert.equal(await texts.get(), 'key-2')
  for (const given of [undefined, null, {}, 7]) await assert.rejects(createTokenSource(() => given).get(), AuthError)
})

test('a refused token is not used again, unless another one is there already', async () => {
  const load = door()
  const source = createTokenSource(load)
  const first = await source.get()
  source.refuse('hlt_of_long_ago')
  assert.equal(await source.get(), first)
  source.refuse(first)
  assert.equal(await source.get(), 'hlt_2')
  source.refuse(first)
  assert.equal(await source.get(), 'hlt_2')
  assert.equal(load.calls, 2)
})

test('nothing is written anywhere', () => {
  const folder = new URL('../src/', import.meta.url)
  for (const name of readdirSync(folder)) {
    assert.doesNotMatch(
      readFileSync(new URL(name, folder), 'utf8'),
      /localStorage|sessionStorage|indexedDB|cookie|caches\b/,
    )
  }
})
