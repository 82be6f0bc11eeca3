// A server made of a bare socket, so that a test owns every byte of an answer and the moment it leaves.

import { once } from 'node:events'
import { createServer } from 'node:net'

// One whole response, closed behind its body.
export function response(status, headers, body = '') {
  const lines = Object.entries({ connection: 'close', ...headers }).map(([name, value]) => `${name}: ${value}`)
  return `HTTP/1.1 ${status} x\r\n${lines.join('\r\n')}\r\n\r\n${body}`
}

export function json(status, body, headers = {}) {
  const text = JSON.stringify(body)
  return response(
    status,
    { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), ...headers },
    text,
  )
}

// As the edge writes an error before a stream has begun.
export function refusal(status, code, headers = {}, type = status < 500 ? 'invalid_request_error' : 'server_error') {
  const error = { message: `refused: ${code}`, type, code, param: null }
  return json(status, { error, request_id: 'req-refused-1' }, { 'x-request-id': 'req-refused-1', ...headers })
}

export const STREAM = {
  'content-type': 'text/event-stream; charset=utf-8',
  'hearthlink-chat-id': 'chat-1',
  'x-request-id': 'req-of-edge-1',
}

export const head = response(200, STREAM)

export const event = (data, name) =>
  `${name ? `event: ${name}\n` : ''}data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`

export const chunk = (delta, finish_reason = null, more = {}) =>
  event({
    id: 'x',
    object: 'chat.completion.chunk',
    model: 'm',
    choices: [{ index: 0, delta, finish_reason }],
    ...more,
  })

export const USAGE = { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 }
export const DONE = event('[DONE]')

// An answer as the edge streams it.
export const answer = (...words) =>
  [
    chunk({ role: 'assistant', content: '' }),
    ...words.map((content) => chunk({ content })),
    chunk({}, 'stop'),
    event({ id: 'x', object: 'chat.completion.chunk', model: 'm', choices: [], usage: USAGE }),
    DONE,
  ].join('')

export const TOKEN = { token: 'hlt_one', token_type: 'Bearer', expires_in: 600 }

// Serves until the test `t` is over. `scripts` answer one chat each, the last one all that follow: a text to write and
// close behind, or `async (socket, request) => …`. `routes` answer other requests: {'GET /healthz': script}. Tokens are
// given to everybody. `requests` has what came (`left` once its connection is gone), `chats` the chats among it.
export async function serve(t, scripts = [head + answer('Hello', ' world')], routes = {}) {
  const server = { requests: [], chats: [], sockets: new Set(), url: '' }
  const named = { 'POST /v1/token': json(200, TOKEN), ...routes }
  const listener = createServer((socket) => {
    server.sockets.add(socket)
    socket.on('close', () => server.sockets.delete(socket))
    socket.on('error', () => {})
    socket.setNoDelay()
    read(socket, async (request) => {
      server.requests.push(request)
      socket.on('close', () => (request.left = true))
      let script = named[`${request.method} ${request.path}`]
      if (!script && request.path.startsWith('/v1/chat') && request.method === 'POST') {
        script = scripts[Math.min(server.chats.push(request), scripts.length) - 1]
      }
      script ??= refusal(404, 'not_found')
      if (typeof script === 'function') await script(socket, request)
      else socket.end(script)
    })
  })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  server.url = `http://127.0.0.1:${listener.address().port}`
  server.named = (name) => server.requests.filter(({ method, path }) => `${method} ${path}` === name)
  t.after(() => {
    for (const socket of server.sockets) socket.destroy()
    listener.close()
  })
  return server
}

// One request a connection is enough here: every answer closes its own.
function read(socket, answer) {
  let received = Buffer.alloc(0)
  let answered = false
  socket.on('data', (piece) => {
    received = Buffer.concat([received, piece])
    const end = received.indexOf('\r\n\r\n')
    if (answered || end < 0) return
    const [first, ...lines] = received.subarray(0, end).toString().split('\r\n')
    const headers = Object.fromEntries(
      lines.map((line) => [line.split(':')[0].toLowerCase(), line.replace(/^[^:]*: */, '')]),
    )
    const body = received.subarray(end + 4)
    if (body.length < Number(headers['content-length'] ?? 0)) return
    answered = true
    const [method, path] = first.split(' ')
    answer({ method, path, headers, body: body.length ? JSON.parse(body) : undefined })
  })
}

export const until = async (condition, ms = 3000) => {
  const end = performance.now() + ms
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not within ${ms} ms: ${condition}`)
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

// Where nothing listens: bound once, so that nobody else is there, and closed.
export async function deadUrl() {
  const listener = createServer()
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const { port } = listener.address()
  listener.close()
  await once(listener, 'close')
  return `http://127.0.0.1:${port}`
}
