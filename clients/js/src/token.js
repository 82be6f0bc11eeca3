import { AuthError } from './errors.js'

// A token is renewed at 80 % of its life, ± 10 % of that: pages that were opened together do not come back together.
const RENEW_AT = 0.8
const JITTER = 0.1
// Milliseconds that another tab gets for it before this one goes alone: a frozen tab keeps its lock.
const OTHER_TAB = 12_000
// Milliseconds for the other tabs to hear of a new token before one of them gets the lock.
const HEARD = 50

// The token of one edge, in memory only. `load()` gives a token, or an object with the `token` and the seconds of its
// life, `expires_in`. Tabs with the same `name` renew it once for all of them.
export function createTokenSource(load, name) {
  const { navigator: { locks } = {}, BroadcastChannel, document } = globalThis
  let token
  let renewAt = 0 // on the monotonic clock, as is the end: people and time servers set the other one
  let endsAt = 0
  let pending
  let channel

  // Without a document there are no tabs, and some programs would wait for the channel to close.
  if (name && document && locks && BroadcastChannel) {
    channel = new BroadcastChannel(name)
    channel.onmessage = ({ data }) => {
      const now = performance.now()
      if (!data) tell()
      // Not the one that was just refused here, nor one that ends sooner.
      else if (data.token !== token && now + data.left > endsAt) keep(data.token, now + data.left, now + data.renew)
    }
    channel.postMessage(0) // who has one already?
  }

  // One that is good now. Near its end a new one is fetched beside it; should that fail, the old one serves on.
  async function get() {
    const now = performance.now()
    if (now >= endsAt) return renew()
    if (now >= renewAt) renew().catch(() => {})
    return token
  }

  // The server did not take `refused`.
  function refuse(refused) {
    if (refused === token) renewAt = endsAt = 0
  }

  const renew = () => (pending ??= (channel ? locked() : fetchOne()).finally(() => (pending = undefined)))

  function locked() {
    return new Promise((resolve, reject) => {
      const alone = () => fetchOne().then(resolve, reject)
      const first = async () => {
        if (performance.now() < renewAt) return resolve(token)
        await alone()
        await new Promise((heard) => setTimeout(heard, HEARD))
      }
      locks.request(name, { signal: AbortSignal.timeout(OTHER_TAB) }, first).catch(alone)
    })
  }

  async function fetchOne() {
    const began = performance.now() // before the question, so that its life is never thought too long
    const given = await load()
    const { token, expires_in: life = 0 } = given?.token ? given : { token: given }
    if (typeof token !== 'string') throw new AuthError('getToken() must give a text or {token, expires_in}.')
    const lasts = life * 1000
    keep(token, began + lasts, began + lasts * RENEW_AT * (1 + JITTER * (2 * Math.random() - 1)))
    tell()
    return token
  }

  function keep(value, end, renew) {
    token = value
    endsAt = end
    renewAt = renew
  }

  // In milliseconds from now, because every tab has a clock of its own.
  function tell() {
    const now = performance.now()
    if (now < endsAt) channel?.postMessage({ token, left: endsAt - now, renew: renewAt - now })
  }

  return { get, refuse, close: () => (channel = channel?.close()) }
}
