// Every code of the contract has its class here; shared/contract/errors.py, README.md and the types agree.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import * as errors from '../src/errors.js'
import * as client from '../src/index.js'

const file = (path) => readFileSync(new URL(path, import.meta.url), 'utf8')
const contract = file('../../../shared/contract/errors.py')
const TYPES = Object.fromEntries(
  [...contract.matchAll(/^(_[A-Z_]+) = "(\w+_error)"$/gm)].map(([, name, type]) => [name, type]),
)
const CODES = [...contract.matchAll(/^ +"(\w+)": ErrorKind\((\d+), (\w+)(, in_stream=True)?\)/gm)].map(
  ([, code, status, type, inStream]) => ({ code, status: Number(status), type: TYPES[type], inStream: !!inStream }),
)
const ROWS = [...file('../README.md').matchAll(/^\| `(\w+Error)` \| (.+?) \|/gm)].map(([, name, codes]) => [
  name,
  [...codes.matchAll(/`(\w+)`/g)].map(([, code]) => code),
])
const KIND_OF = Object.fromEntries(ROWS.flatMap(([name, codes]) => codes.map((code) => [code, name])))
const OWN =
  'network_error connect_timeout first_byte_timeout idle_timeout total_timeout stream_interrupted aborted'.split(' ')

const ID = { 'x-request-id': 'req-87654321' }
const body = ({ code, type }) => ({
  error: { message: 'Because.', type, code, param: 'p' },
  request_id: 'req-12345678',
})

test('the contract was read', () => {
  assert.ok(CODES.length >= 40)
  assert.ok(CODES.every(({ type }) => type))
})

for (const each of CODES) {
  test(`${each.code} is a ${KIND_OF[each.code]}`, () => {
    const Kind = client[KIND_OF[each.code]]
    const inStream = errors.errorFrom(body(each))
    const outside = errors.errorFrom(body(each), new Response(null, { status: each.status, headers: ID }))
    for (const error of each.inStream ? [inStream] : [inStream, outside]) {
      assert.ok(error instanceof Kind, error.name)
      assert.ok(error instanceof client.HearthlinkError)
      assert.equal(error.name, KIND_OF[each.code])
      assert.deepEqual([error.code, error.type, error.param], [each.code, each.type, 'p'])
      assert.equal(String(error), `${error.name}: Because. (request req-12345678)`)
    }
    assert.equal(outside.status, each.status)
    assert.equal(inStream.status, undefined)
  })
}

test('the table and the types have all codes and no others', () => {
  const all = [...CODES.map(({ code }) => code), ...OWN].sort()
  assert.deepEqual(Object.keys(KIND_OF).sort(), all)
  const declared = file('../types/index.d.ts').match(/export type ErrorCode =([^]*?)\n\n/)[1]
  assert.deepEqual([...declared.matchAll(/'(\w+)'/g)].map(([, code]) => code).sort(), all)
})

test('all classes are exported and in the table', () => {
  const names = ROWS.map(([name]) => name)
  assert.deepEqual(
    Object.keys(client)
      .filter((name) => /Error$/.test(name) && name !== 'HearthlinkError')
      .sort(),
    names.sort(),
  )
})

const from = (status, headers = {}, text = {}) =>
  errors.errorFrom(text, new Response(null, { status, headers: { ...ID, ...headers } }))

test('a server that is not Hearthlink is understood by its status', () => {
  const kinds = {
    400: 'InvalidRequestError',
    401: 'AuthError',
    403: 'PermissionError',
    404: 'InvalidRequestError',
    408: 'TimeoutError',
    418: 'InvalidRequestError',
    429: 'RateLimitError',
    500: 'ServerError',
    502: 'NodeUnavailableError',
    503: 'NodeUnavailableError',
    504: 'TimeoutError',
    529: 'ServerError',
  }
  for (const [status, name] of Object.entries(kinds)) assert.equal(from(Number(status)).name, name)
  assert.equal(
    from(404, {}, { error: 'model not found, try pulling it first' }).message,
    'model not found, try pulling it first',
  )
  assert.match(String(from(500)), /status 500.*\(request req-87654321\)/)
  assert.equal(from(404, {}, { error: null }).name, 'InvalidRequestError')
  for (const code of ['constructor', '__proto__', 'toString']) {
    assert.equal(from(400, {}, { error: { message: 'm', code } }).name, 'InvalidRequestError')
  }
})

test('what may be tried again', () => {
  for (const status of [408, 429, 500, 502, 503, 504]) assert.equal(from(status).retryable, true)
  for (const status of [400, 401, 403, 404, 405, 409, 413, 501]) assert.equal(from(status).retryable, false)
  assert.equal(from(503, { 'x-should-retry': 'false' }).retryable, false)
  assert.equal(from(400, { 'x-should-retry': 'true' }).retryable, true)
  const inStream = (code) => errors.errorFrom(body(CODES.find((each) => each.code === code))).retryable
  for (const code of ['node_unavailable', 'overloaded', 'upstream_incomplete', 'server_draining'])
    assert.equal(inStream(code), true)
  for (const code of [
    'first_token_timeout',
    'upstream_stalled',
    'slow_consumer',
    'context_length_exceeded',
    'token_revoked',
  ]) {
    assert.equal(inStream(code), false)
  }
})

test('when to come back', () => {
  assert.equal(from(429, { 'retry-after': '7' }).retryAfter, 7)
  assert.equal(from(429, { 'retry-after': '7', 'retry-after-ms': '250' }).retryAfter, 0.25)
  assert.equal(from(429, { 'retry-after': '3600' }).retryAfter, 3600)
  for (const nothing of ['0', '-3', 'soon', 'Thu, 01 Jan 1970 00:00:00 GMT']) {
    assert.equal(from(429, { 'retry-after': nothing }).retryAfter, undefined)
  }
  const inAMinute = from(503, { 'retry-after': new Date(Date.now() + 60_000).toUTCString() }).retryAfter
  assert.ok(inAMinute > 55 && inAMinute <= 60)
})
