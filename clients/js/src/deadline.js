import { HearthlinkError, TimeoutError, UserAbortError } from './errors.js'

export const aborted = (cause) => new UserAbortError('The chat was stopped by its caller.', { code: 'aborted', cause })

// Whatever waits does so under a deadline, which ends it by a timer, by its owner, or together with a `parent` signal.
export function createDeadline(parent) {
  const controller = new AbortController()
  const { signal } = controller
  let timer
  let stopWaiting

  // It ends with a TimeoutError in `ms` (0: never); takes the place of the time set before.
  function arm(ms, code) {
    clearTimeout(timer)
    const message = `Nothing came within ${ms / 1000} s (${code}): the server is busy or out of reach. Try again.`
    if (ms) timer = setTimeout(() => abort(new TimeoutError(message, { code, retryable: true })), ms)
  }

  function abort(reason) {
    close()
    stopWaiting?.(reason)
    controller.abort(reason)
  }

  // The owner's last call, however it went: no timer and no listener stays behind.
  function close() {
    clearTimeout(timer)
    parent?.removeEventListener('abort', follow)
  }

  // What `promise` gives, or the end of this deadline even where the signal is ignored. One wait at a time:
  // Promise.race would keep something of each until the last.
  function race(promise) {
    return new Promise((resolve, reject) => {
      stopWaiting = reject
      promise.then(resolve, reject)
      if (signal.aborted) reject(signal.reason)
    })
  }

  const sleep = (ms) => race(new Promise((resolve) => (timer = setTimeout(resolve, ms))))

  const follow = () => abort(parent.reason instanceof HearthlinkError ? parent.reason : aborted(parent.reason))
  parent?.addEventListener('abort', follow)
  if (parent?.aborted) follow()

  return { signal, arm, abort, close, race, sleep }
}
