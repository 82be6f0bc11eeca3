import { mock } from 'node:test'

// Puts the monotonic clock under the test `t`: `clock.now` is what performance.now() says, in milliseconds.
export function fakeClock(t) {
  const clock = { now: 1000 }
  const mocked = mock.method(performance, 'now', () => clock.now)
  t.after(() => mocked.mock.restore())
  return clock
}

// Moves the monotonic clock on and lets it run, for tests with real timers beside it.
export function shiftClock(t) {
  const real = performance.now.bind(performance)
  const clock = { ahead: 0 }
  const mocked = mock.method(performance, 'now', () => real() + clock.ahead)
  t.after(() => mocked.mock.restore())
  return clock
}
