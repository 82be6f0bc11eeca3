import { AuthError, NetworkError, errorFrom, interrupted } from './errors.js'
import { createDeadline } from './deadline.js'
import { createTokenSource } from './token.js'

const UNREACHABLE = 'cannot be reached: check the network, the base URL and edge.allowed_origins.'
const PORTAL = 'sent a web page: a network login is in between, or the base URL is wrong. Open it to see.'

// The whole body of a good response.
export const readJson = (response, wait) =>
  wait.race(response.json()).catch((cause) => {
    throw interrupted(cause)
  })

// One address that answers: an edge, or a plain OpenAI-compatible server, which gets no token and no header of ours.
// `entry` is a URL or `{url, kind, model}`.
export function createEndpoint(entry, { fetch = globalThis.fetch, getToken, headers: more, timeouts, emit }) {
  const { kind, model } = entry
  const url = (entry.url ?? entry).replace(/(\/v1)?\/*$/, '')
  const plain = kind === 'openai'
  const { connect, firstByte } = timeouts
  const extra = plain ? {} : more
  // What getToken() gives may belong to another person in each tab, so it is not shared.
  const tokens = plain ? undefined : createTokenSource(load, getToken ? '' : `hearthlink ${url}`)
  let authorization

  async function load() {
    emit('refresh', { url })
    if (getToken) return getToken({ url })
    const wait = createDeadline()
    wait.arm(connect, 'connect_timeout')
    try {
      return await readJson(await send('/v1/token', { method: 'POST', body: {} }, wait), wait)
    } finally {
      wait.close()
    }
  }

  // The response when it is a good one, with `wait` still armed for its body. Raises HearthlinkError.
  async function request(path, init, wait, within = connect, code = 'connect_timeout') {
    wait.arm(connect, 'connect_timeout')
    const token = tokens && (await wait.race(tokens.get()))
    wait.arm(within, code)
    try {
      return await send(path, { ...init, token }, wait)
    } catch (error) {
      if (error instanceof AuthError) tokens?.refuse(token)
      throw error
    }
  }

  function chat({ signal, messages, stream = true, chatType, metadata, clientId, ...sampling }, requestId, wait) {
    const body = { messages: messages.map(({ role, content }) => ({ role, content })), stream }
    for (const name in sampling) body[name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)] = sampling[name]
    const init = { method: 'POST', body, requestId }
    if (!plain) {
      Object.assign(body, { chat_type: chatType, metadata, client_id: clientId })
      return request('/v1/chat', init, wait, stream ? connect : 0)
    }
    body.model = model ?? body.model
    if (stream) body.stream_options = { include_usage: true }
    // Such a server may say nothing at all before its first token.
    return request('/v1/chat/completions', init, wait, stream ? firstByte : 0, 'first_byte_timeout')
  }

  // Ends an answer at the server. Nobody waits for it, and it may outlive the page.
  function stop(id) {
    const signal = AbortSignal.timeout?.(connect)
    const headers = { ...extra, authorization }
    fetch(`${url}/v1/chat/${id}`, { method: 'DELETE', headers, keepalive: true, signal }).catch(() => {})
  }

  async function send(path, { method, body, token, requestId }, wait) {
    const headers = { ...extra }
    if (token) headers.authorization = authorization = `Bearer ${token}`
    if (body) headers['content-type'] = 'application/json'
    if (requestId && !plain) headers['x-request-id'] = requestId
    const init = { method, headers, body: body && JSON.stringify(body), redirect: 'manual', signal: wait.signal }
    const failed = (what, fields) =>
      new NetworkError(`${url || 'The server'} ${what}`, { code: 'network_error', ...fields })
    let response
    try {
      response = await wait.race(fetch(url + path, init))
    } catch (cause) {
      wait.signal.throwIfAborted()
      throw failed(UNREACHABLE, { cause, retryable: true })
    }
    const { ok, status } = response
    const type = response.headers.get('content-type') ?? ''
    if (ok && /json|event-stream/.test(type)) return response
    if (status < 400) throw failed(PORTAL, { status })
    const problem =
      type.includes('json') && (await wait.race(response.json()).catch(() => wait.signal.throwIfAborted()))
    throw errorFrom(problem || {}, response)
  }

  return { url, plain, request, chat, stop, token: tokens?.get, close: tokens?.close }
}
