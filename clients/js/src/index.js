export { createClient } from './client.js'
export { createParser } from './sse.js'
export {
  AuthError,
  HearthlinkError,
  InvalidRequestError,
  NetworkError,
  NodeUnavailableError,
  OverloadedError,
  PermissionError,
  QuotaExceededError,
  RateLimitError,
  ServerError,
  StreamInterruptedError,
  TimeoutError,
  UserAbortError,
} from './errors.js'
