// Against a real pair. HEARTHLINK_LIVE_URL is the edge's, HEARTHLINK_LIVE_ORIGIN an origin in its edge.allowed_origins
// (its own unless given), HEARTHLINK_LIVE_EXPIRED_TOKEN a token of that origin which has expired.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient } from '../dist/hearthlink.js'

const url = process.env.HEARTHLINK_LIVE_URL
const origin = process.env.HEARTHLINK_LIVE_ORIGIN ?? (url && new URL(url).origin)
const expired = process.env.HEARTHLINK_LIVE_EXPIRED_TOKEN
const live = { skip: url ? false : 'HEARTHLINK_LIVE_URL names no edge', timeout: 60_000 }
const MESSAGES = [{ role: 'user', content: 'Where to?' }]

// As a page on `from` would ask.
const page = (from) => (input, init) => fetch(input, { ...init, headers: { ...init.headers, origin: from } })
const client = url && createClient({ baseUrl: url, fetch: page(origin), timeouts: { total: 60_000 } })

test('a page streams an answer', live, async () => {
  const chat = client.chat({ messages: MESSAGES, clientId: 'live-test' })
  const sent = chat.requestId
  const types = new Set()
  let text = ''
  for await (const event of chat) {
    types.add(event.type)
    if (event.type === 'text') text += event.delta
  }
  const { usage, finishReason, id } = await chat.final()
  assert.ok(text.length > 0)
  assert.ok(types.has('usage') && types.has('done'))
  assert.equal(usage.totalTokens, usage.promptTokens + usage.completionTokens)
  assert.match(finishReason, /^(stop|length)$/)
  assert.equal(chat.requestId, sent, 'the edge takes the id of ours into its logs')
  assert.match(id, /^[\w-]{16,}$/)
  assert.ok(Number(chat.response.headers.get('x-ratelimit-remaining-requests')) >= 0)
})

test('a page gets an answer as a whole', live, async () => {
  const { text, usage } = await client.chat({ messages: MESSAGES, stream: false, maxTokens: 32 }).final()
  assert.ok(text.length > 0)
  assert.ok(usage.completionTokens > 0)
})

test('who I am, and what there is', live, async () => {
  const me = await client.get('/v1/me')
  assert.equal(me.principal.kind, 'anonymous')
  assert.match(JSON.stringify(await client.get('/v1/chat/types')), /"home"/)
})

test("errors are the contract's", live, async () => {
  await assert.rejects(client.chat({ messages: MESSAGES, chatType: 'nope' }).text(), (error) => {
    return (
      error.name === 'InvalidRequestError' &&
      error.code === 'chat_type_not_found' &&
      String(error).includes(error.requestId)
    )
  })
  await assert.rejects(client.chat({ messages: MESSAGES, max_tokens: 1, oops: 1 }).text(), {
    code: 'invalid_request',
    param: 'oops',
  })
  const elsewhere = createClient({ baseUrl: url, fetch: page('http://elsewhere.test') })
  await assert.rejects(elsewhere.chat({ messages: MESSAGES }).text(), {
    name: 'PermissionError',
    code: 'origin_not_allowed',
  })
})

test('a stop', live, async () => {
  const chat = client.chat({ messages: MESSAGES })
  await assert.rejects(
    async () => {
      for await (const { type } of chat) if (type === 'text') chat.cancel()
    },
    { name: 'UserAbortError', partial: /./ },
  )
})

for (const [what, token, code] of [
  ['invalid', 'hlt_nonsense', 'invalid_token'],
  ['expired', expired, 'token_expired'],
]) {
  const options = { ...live, skip: live.skip || (!token && 'HEARTHLINK_LIVE_EXPIRED_TOKEN is not set') }
  test(`an ${what} token is replaced unnoticed`, options, async () => {
    let asked = 0
    const getToken = () => (asked++ ? client.token() : token)
    const trusting = createClient({ baseUrl: url, fetch: page(origin), getToken })
    assert.ok(await trusting.chat({ messages: MESSAGES }).text())
    assert.equal(asked, 2)

    const stubborn = createClient({ baseUrl: url, fetch: page(origin), getToken: () => token })
    await assert.rejects(stubborn.chat({ messages: MESSAGES }).text(), { name: 'AuthError', code })
  })
}
