// Tabs of one page renew their token once for all of them.

import assert from 'node:assert/strict'
import { mock, test } from 'node:test'
import { createClient } from '../src/index.js'
import { createTokenSource } from '../src/token.js'
import { shiftClock } from './support/clock.js'
import { LIFE, door } from './support/door.js'
import { TOKEN, pause, serve } from './support/server.js'
import { withLocks } from './support/tabs.js'

test('two tabs share one refresh', async (t) => {
  withLocks(t)
  const load = door({ takes: () => pause(20) })
  const tabs = [createTokenSource(load, 'shared'), createTokenSource(load, 'shared'), createTokenSource(load, 'shared')]
  t.after(() => tabs.forEach((tab) => tab.close()))
  assert.deepEqual(await Promise.all(tabs.map((tab) => tab.get())), ['hlt_1', 'hlt_1', 'hlt_1'])
  assert.equal(load.calls, 1)

  const clock = shiftClock(t)
  clock.ahead = LIFE * 1000
  assert.deepEqual(await Promise.all(tabs.map((tab) => tab.get())), ['hlt_2', 'hlt_2', 'hlt_2'])
  assert.equal(load.calls, 2)
})

test('a tab that opens later is given the token', async (t) => {
  withLocks(t)
  const load = door()
  const first = createTokenSource(load, 'later')
  await first.get()
  const second = createTokenSource(load, 'later')
  t.after(() => [first, second].forEach((tab) => tab.close()))
  await pause(30)
  assert.equal(await second.get(), 'hlt_1')
  assert.equal(load.calls, 1)
})

test('tabs of other edges, and tokens of getToken(), are not shared', async (t) => {
  withLocks(t)
  const [one, other] = [await serve(t), await serve(t)]
  const clients = [
    { baseUrl: one.url },
    { baseUrl: other.url },
    { baseUrl: one.url, getToken: () => 'hlk_of_a_person' },
  ]
  const chats = clients.map((options) => createClient(options))
  t.after(() => chats.forEach((client) => client.close()))
  assert.deepEqual(await Promise.all(chats.map((client) => client.token())), [
    TOKEN.token,
    TOKEN.token,
    'hlk_of_a_person',
  ])
  await pause(30)
  assert.equal(await chats[2].token(), 'hlk_of_a_person')
  assert.equal(one.requests.length, 1)
  assert.equal(other.requests.length, 1)
})

test('a refused token does not come back from another tab', async (t) => {
  withLocks(t)
  const load = door()
  const tabs = [createTokenSource(load, 'refused'), createTokenSource(load, 'refused')]
  t.after(() => tabs.forEach((tab) => tab.close()))
  await tabs[0].get()
  await pause(30)
  tabs[0].refuse('hlt_1')
  const opened = createTokenSource(load, 'refused') // asks, and tab 1 tells everybody what it has
  t.after(() => opened.close())
  await pause(30)
  assert.equal(await tabs[0].get(), 'hlt_2')
})

test('a tab that is frozen with the lock does not stop the others', async (t) => {
  const locks = withLocks(t)
  locks.request('hearthlink frozen', {}, () => new Promise(() => {}))
  const patience = mock.method(AbortSignal, 'timeout', () => {
    const controller = new AbortController()
    setTimeout(() => controller.abort(), 20)
    return controller.signal
  })
  t.after(() => patience.mock.restore())
  const source = createTokenSource(door(), 'hearthlink frozen')
  t.after(() => source.close())
  assert.equal(await source.get(), 'hlt_1')
  assert.ok(patience.mock.calls[0].arguments[0] >= 10_000, 'longer than a refresh may take')
})

test('a tab whose refresh fails says so, and the next one tries', async (t) => {
  withLocks(t)
  let calls = 0
  const load = async () => {
    if (++calls === 1) throw new Error('no door')
    return { token: `hlt_${calls}`, expires_in: LIFE }
  }
  const tabs = [createTokenSource(load, 'failing'), createTokenSource(load, 'failing')]
  t.after(() => tabs.forEach((tab) => tab.close()))
  const [first, second] = await Promise.allSettled(tabs.map((tab) => tab.get()))
  assert.match(first.reason.message, /no door/)
  assert.equal(second.value, 'hlt_2')
})
