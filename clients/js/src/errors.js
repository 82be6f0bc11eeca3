// What can go wrong: one class per thing that a reader can do about it. README.md has the table.

export class HearthlinkError extends Error {
  retryable = false

  constructor(message, { cause, ...fields } = {}) {
    super(message, { cause })
    Object.assign(this, fields)
  }

  toString() {
    return super.toString() + (this.requestId ? ` (request ${this.requestId})` : '')
  }
}

// A code decides, else the type that OpenAI has for it, else the status, for servers that are not Hearthlink.
const KINDS = { __proto__: null }

// Its name is a text because minifiers rename classes.
function kind(name, ...causes) {
  class Kind extends HearthlinkError {
    name = name
  }
  for (const cause of causes) KINDS[cause] = Kind
  return Kind
}

export const AuthError = kind('AuthError', 'authentication_error', 401)
export const PermissionError = kind('PermissionError', 'permission_error', 403)
export const RateLimitError = kind('RateLimitError', 'rate_limit_error', 429)
export const QuotaExceededError = kind('QuotaExceededError', 'quota_exceeded')
export const OverloadedError = kind('OverloadedError', 'overloaded')
const AWAY = ['node_unavailable', 'draining', 'model_loading', 'maintenance']
export const NodeUnavailableError = kind('NodeUnavailableError', ...AWAY, 502, 503)
export const InvalidRequestError = kind('InvalidRequestError', 'invalid_request_error', 'not_found_error')
export const ServerError = kind('ServerError', 'server_error')
export const TimeoutError = kind('TimeoutError', 'request_timeout', 'first_token_timeout', 408, 504)
export const NetworkError = kind('NetworkError')
const CUT = ['upstream_incomplete', 'upstream_stalled', 'slow_consumer', 'server_draining']
export const StreamInterruptedError = kind('StreamInterruptedError', ...CUT)
export const UserAbortError = kind('UserAbortError')

const RETRYABLE = /^(408|429|50[0234])$/
// Minutes have passed when these come; to do it all again unasked helps nobody.
const TOO_LATE = /first_token|stalled|slow/

// The error in a body `{"error": …}`. Inside a stream there is no `response` whose status and headers say more.
export function errorFrom({ error = {}, request_id }, response) {
  const { message, type, code, param } = typeof error === 'string' ? { message: error } : (error ?? {})
  const status = response?.status
  const Kind = KINDS[code] ?? KINDS[type] ?? KINDS[status] ?? (status < 500 ? InvalidRequestError : ServerError)
  const should = response?.headers.get('x-should-retry')
  const again = (response ? RETRYABLE.test(status) : type === 'server_error') && !TOO_LATE.test(code)
  return new Kind(message ?? `The server gave status ${status} and no reason.`, {
    status,
    code,
    type,
    param,
    requestId: request_id ?? response?.headers.get('x-request-id') ?? undefined,
    retryAfter: response && retryAfter(response.headers),
    retryable: should ? should === 'true' : again,
  })
}

// Seconds; the header is a number or a date.
function retryAfter(headers) {
  const ms = headers.get('retry-after-ms')
  const after = headers.get('retry-after')
  const seconds = ms ? ms / 1000 : isNaN(after) ? (Date.parse(after) - Date.now()) / 1000 : +after
  return seconds > 0 ? seconds : undefined
}

// Whatever broke while an answer was read, as the error that says so.
export function interrupted(cause) {
  if (cause instanceof HearthlinkError) return cause
  const message = 'The answer was cut before its end: keep `partial`, or ask again.'
  return new StreamInterruptedError(message, { code: 'stream_interrupted', retryable: true, cause })
}
