// The Web Locks of one origin: one holder a name, the others wait in order, a signal ends a wait.
export function webLocks() {
  const tails = new Map()
  async function request(name, { signal }, work) {
    const before = tails.get(name) ?? Promise.resolve()
    let release
    tails.set(
      name,
      before.then(() => new Promise((resolve) => (release = resolve))),
    )
    const cancelled = new Promise((_, reject) => {
      signal?.addEventListener('abort', () => reject(signal.reason))
    })
    try {
      await Promise.race([before, cancelled])
    } catch (error) {
      before.then(() => release())
      throw error
    }
    await before
    try {
      return await work({ name })
    } finally {
      await Promise.resolve()
      release()
    }
  }
  return { request }
}

// Until the test `t` ends there is a document, and `navigator.locks` is `locks`; BroadcastChannel is Node's own.
export function withLocks(t, locks = webLocks()) {
  for (const [name, value] of Object.entries({ navigator: { locks }, document: {} })) {
    const before = Object.getOwnPropertyDescriptor(globalThis, name)
    Object.defineProperty(globalThis, name, { value, configurable: true })
    t.after(() => (before ? Object.defineProperty(globalThis, name, before) : delete globalThis[name]))
  }
  return locks
}
