// Tokens, with an invite code where the edge asks for one: as the client's `fetch`, so the client keeps, renews and
// shares them. Nothing is stored.

import { $ } from './dom.js'

const TOKEN = '/v1/token'
const PROBLEMS = {
  0: 'The server cannot be reached. Try again in a moment.',
  401: 'This code does not work: it is mistyped, used up, or too old.',
  429: 'Too many tries. Wait for the countdown above.',
}

export const needsInvite = ({ code, param }) => code === 'missing_token' && param === 'invite'

export function createDoor(fetch = (...request) => globalThis.fetch(...request)) {
  let ticket // the answer to a code, until the client asks for a token
  let authorization // of the last request: another tab may have got the token

  async function pass(url, init) {
    if (url !== TOKEN) {
      authorization = init.headers.authorization ?? authorization
      return fetch(url, init)
    }
    const answer = ticket ?? (await fetch(url, init))
    ticket = undefined
    if (answer.status !== 401 || !authorization) return answer
    // A token from an invite is renewed by itself.
    const renewed = await fetch(url, { ...init, headers: { ...init.headers, authorization } })
    return renewed.ok ? renewed : answer
  }

  async function enter(invite) {
    const headers = { 'content-type': 'application/json' }
    const answer = await fetch(TOKEN, { method: 'POST', headers, body: JSON.stringify({ invite }) })
    if (answer.ok) ticket = answer
    return answer
  }

  return { fetch: pass, enter }
}

export function createInvite(door, entered, limited) {
  const field = $('invite-code')
  $('invite-form').onsubmit = async (event) => {
    event.preventDefault()
    const { ok, status, headers } = await door.enter(field.value.trim()).catch(() => ({}))
    field.ariaInvalid = String(status === 401)
    $('invite-problem').textContent = ok ? '' : (PROBLEMS[status] ?? PROBLEMS[0])
    if (status === 429) limited(headers.get('retry-after'))
    if (!ok) return field.select()
    field.value = ''
    entered()
  }
}
