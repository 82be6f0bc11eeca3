import { createDeadline } from './deadline.js'
import { createEndpoint, readJson } from './endpoint.js'
import { createAddresses, persist } from './retry.js'
import { createChat } from './stream.js'

// Milliseconds. An edge says within 2 s whether it answers; from then on it writes every 10 s, whatever the model does.
const TIMEOUTS = { connect: 10_000, firstByte: 60_000, idle: 45_000, total: 30_000 }
// Milliseconds, and seconds for the last one.
const RETRY = { attempts: 3, minDelay: 500, maxDelay: 8000, maxRetryAfter: 60 }

export function createClient({ baseUrl = '', baseUrls = [baseUrl], defaults, onEvent, ...options } = {}) {
  const emit = (type, details) => onEvent?.({ type, ...details })
  const timeouts = { ...TIMEOUTS, ...options.timeouts }
  const endpoints = baseUrls.map((entry) => createEndpoint(entry, { ...options, timeouts, emit }))
  const addresses = createAddresses(endpoints, emit)
  const shared = { addresses, timeouts, retry: { ...RETRY, ...options.retry }, emit }

  async function get(path, { signal } = {}) {
    const call = createDeadline(signal)
    async function* attempt(endpoint, wait) {
      yield await readJson(await endpoint.request(path, {}, wait), wait)
    }
    try {
      for await (const answer of persist(attempt, shared, call.signal)) return answer
    } finally {
      call.close()
    }
  }

  return {
    get,
    chat: (params) => createChat(shared, { ...defaults, ...params }),
    token: () => endpoints.find(({ token }) => token).token(),
    close: () => endpoints.forEach(({ close }) => close?.()),
  }
}
