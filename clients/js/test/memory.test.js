// 10,000 chats leave nothing behind: a page stays open for days.

import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { test } from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { createClient } from '../src/index.js'
import { STREAM, answer, chunk } from './support/server.js'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc')

const BODY = answer('Hello', ' world')
const AT_ONCE = 20
// One chat holds about 10 KB while it runs; kept, 8,000 of them are 80 MB. V8 itself moves by some hundred KB.
const ALLOWED = 3 << 20

async function heap() {
  for (let i = 0; i < 5; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20))
    collect()
  }
  return process.memoryUsage().heapUsed
}

test('memory is flat over 10,000 streams', { timeout: 240_000 }, async (t) => {
  let served = 0
  const server = createServer((request, response) => {
    request.resume()
    response.writeHead(200, STREAM)
    if (++served % 10) response.end(BODY)
    else response.write(chunk({ content: 'endless' })) // for those who leave
  })
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening))
  t.after(() => (server.closeAllConnections(), server.close()))
  const page = new AbortController()
  const client = createClient({ baseUrl: `http://127.0.0.1:${server.address().port}`, getToken: () => 'key' })

  async function chat() {
    for await (const { delta } of client.chat({ messages: [{ role: 'user', content: 'hi' }], signal: page.signal })) {
      if (delta === 'endless') break
    }
  }
  async function chats(count) {
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (let i = 0; i < count / AT_ONCE; i++) await chat()
      }),
    )
    return heap()
  }

  const before = await chats(2000)
  const after = await chats(8000)
  assert.ok(served >= 10_000)
  assert.ok(after - before < ALLOWED, `${(after - before) >> 10} KiB more after 8,000 chats`)
})
