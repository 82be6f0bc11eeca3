import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createDoor, needsInvite } from '../../web/chat/door.js'

const json = (status, body) =>
    new Response(JSON.stringify(body), { status, headers: { 'content-type': 'application/json' } })
const closed = () => json(401, { error: { code: 'missing_token', param: 'invite' } })
const ask = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' }

// An edge by invitation: `good` is the code, and any token renews itself.
function edge(good = 'hli_good') {
    const seen = []
    const fetch = async (url, { headers, body }) => {
        seen.push([url, headers.authorization, body])
        if (url !== '/v1/token') return json(200, {})
        if (headers.authorization === 'Bearer hlt_1') return json(200, { token: 'hlt_2' })
        if (JSON.parse(body).invite === good) return json(200, { token: 'hlt_1' })
        return JSON.parse(body).invite ? json(401, { error: { code: 'invalid_token', param: 'invite' } }) : closed()
    }
    return { seen, fetch }
}

test('an open edge is asked as the client asks', async () => {
    const seen = []
    const { fetch } = createDoor(async (...request) => {
        seen.push(request)
        return json(200, { token: 'hlt_open' })
    })
    assert.equal((await (await fetch('/v1/token', ask)).json()).token, 'hlt_open')
    assert.deepEqual(seen, [['/v1/token', ask]])
})

test('without an invite the refusal is passed on, and is known for what it is', async () => {
    const { fetch } = createDoor(edge().fetch)
    const answer = await fetch('/v1/token', ask)
    assert.equal(answer.status, 401)
    assert.ok(needsInvite((await answer.json()).error))
    assert.ok(!needsInvite({ code: 'missing_token', param: null }))
})

test('a good code gives the client its token at the next question, once', async () => {
    const { fetch, enter } = createDoor(edge().fetch)
    assert.equal((await enter('hli_bad')).status, 401)
    assert.equal((await fetch('/v1/token', ask)).status, 401)
    assert.ok((await enter('hli_good')).ok)
    assert.equal((await (await fetch('/v1/token', ask)).json()).token, 'hlt_1')
    assert.equal((await fetch('/v1/token', ask)).status, 401)
})

test('a token from an invite is renewed by itself, whichever tab it came to first', async () => {
    const { seen, fetch: wire } = edge()
    const { fetch } = createDoor(wire)
    await fetch('/v1/me', { headers: { authorization: 'Bearer hlt_1' } })
    assert.equal((await (await fetch('/v1/token', ask)).json()).token, 'hlt_2')
    assert.deepEqual(seen.at(-1), ['/v1/token', 'Bearer hlt_1', '{}'])
})

test('a token that does not renew leaves the refusal as it was', async () => {
    const { fetch } = createDoor(edge().fetch)
    await fetch('/v1/me', { headers: { authorization: 'Bearer hlt_old' } })
    const answer = await fetch('/v1/token', ask)
    assert.ok(needsInvite((await answer.json()).error))
})
