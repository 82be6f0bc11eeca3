import { createDeadline } from './deadline.js'

// Such a token is of no use any more, but a new one may be: it expired, or the edge has new keys.
const STALE = /^(token_expired|invalid_token)$/
// Nothing is wrong with the request; another address may answer it.
const DOWN = /^(network_error|connect_timeout|node_unavailable|draining)$/
// Milliseconds after which an address that was left is asked whether it is back.
const PROBE_AFTER = 60_000

// Yields what `attempt(endpoint, wait)` yields. As long as it has not yielded anything, it is tried again: with a new
// token, at the next address, or later.
export async function* persist(attempt, { addresses, retry, emit }, signal) {
  let wait = createDeadline(signal)
  let renewed
  let others = addresses.others
  let tries = 1
  try {
    for (;;) {
      const endpoint = addresses.current()
      let begun
      try {
        for await (const value of attempt(endpoint, wait)) {
          begun = true
          yield value
        }
        return
      } catch (error) {
        const { code, status } = error
        wait.abort()
        wait = createDeadline(signal)
        if (begun) throw error
        if (STALE.test(code) && !renewed) {
          renewed = true
        } else if (others && (DOWN.test(code) || status === 502 || (status === 503 && !code))) {
          others--
          addresses.leave(endpoint, error)
        } else {
          const delay = backoff(error, tries++, retry)
          if (delay === undefined) throw error
          others = addresses.others
          emit('retry', { url: endpoint.url, attempt: tries, delay, error })
          await wait.sleep(delay)
        }
      }
    }
  } finally {
    wait.abort()
  }
}

// Milliseconds until the next try, or undefined to give up: full jitter under a doubling cap, after what the server
// asked for. Past `maxRetryAfter` seconds that is for a person to decide.
export function backoff({ retryable, retryAfter = 0 }, tries, { attempts, minDelay, maxDelay, maxRetryAfter }) {
  if (!retryable || tries >= attempts || retryAfter > maxRetryAfter) return
  return retryAfter * 1000 + Math.random() * Math.min(maxDelay, minDelay * 2 ** (tries - 1))
}

// The base URLs in their order. Everybody uses the same one until it is left for the next; a while later the first is
// probed, beside the request that brought the occasion.
export function createAddresses(endpoints, emit) {
  let active = 0
  let leftAt

  function current() {
    if (active && performance.now() - leftAt >= PROBE_AFTER) probe(endpoints[0])
    return endpoints[active]
  }

  // `endpoint` does not answer; whoever notices it second changes nothing.
  function leave(endpoint, error) {
    if (endpoint === endpoints[active]) use((active + 1) % endpoints.length, error)
  }

  async function probe(first) {
    const wait = createDeadline()
    leftAt = performance.now()
    try {
      await first.request(first.plain ? '/v1/models' : '/healthz', {}, wait)
      use(0)
    } catch {
      // still away
    } finally {
      wait.abort()
    }
  }

  function use(index, error) {
    active = index
    leftAt = performance.now()
    emit('fallback', { url: endpoints[index].url, error })
  }

  return { others: endpoints.length - 1, current, leave }
}
