/** Talk to a local model behind a Hearthlink edge. */

/** A client of one edge, or of several addresses in order. Keep one per page or process. */
export function createClient(options?: ClientOptions): Client

export interface ClientOptions {
  /** Where the edge is, without `/v1`. The page's own origin unless given. */
  baseUrl?: string
  /**
   * Several addresses instead, in order of preference. The next one is used when one cannot be reached or has no node
   * (network error, no answer in `timeouts.connect`, 502, 503 `node_unavailable` or `draining`); the first one again as
   * soon as it answers a probe, sent at most every 60 s.
   */
  baseUrls?: Address[]
  /**
   * Where tokens come from when the edge does not give one to this page (`POST /v1/token`), and in programs, where it
   * may return an API key. A text is used for one request, an empty one means none; `{token, expires_in}` is kept, and
   * renewed at 80 % of its life.
   */
  getToken?: (about: { url: string }) => TokenAnswer | Promise<TokenAnswer>
  /**
   * Sent with every request to an edge: the service token that a program passes Cloudflare Access with. A plain
   * OpenAI-compatible server gets none of them. A page must not hold such a secret.
   */
  headers?: Record<string, string>
  /** What `chat()` takes for every chat, such as `clientId`. */
  defaults?: Partial<ChatParams>
  timeouts?: Partial<Timeouts>
  retry?: Partial<Retry>
  /** Hears what happens. It runs in between, so it should be quick, and what it throws is not caught. */
  onEvent?: (event: ClientEvent) => void
  /** Instead of the global one. */
  fetch?: typeof globalThis.fetch
}

/** An edge's URL, or a plain OpenAI-compatible server, which gets no token, no chat type and no metadata. */
export type Address =
  string | { url: string; kind?: 'hearthlink'; model?: never } | { url: string; kind: 'openai'; model?: string }

export type TokenAnswer = string | { token: string; /** Seconds. */ expires_in: number }

/** All in milliseconds. */
export interface Timeouts {
  /** Until a token is there, and until the headers of a stream or a list are: 10 000. */
  connect: number
  /** From there to the first byte of the answer: 60 000. An edge writes one every 10 s, also while a chat is queued. */
  firstByte: number
  /** Between two bytes: 45 000. */
  idle: number
  /** For an answer without a stream, tries and all: 30 000. */
  total: number
}

/** Before the first event only; what was shown once is never asked for again. */
export interface Retry {
  /** Tries in all: 3. */
  attempts: number
  /** Milliseconds, doubled with each try, and its bound: 500 and 8000. The wait is a random part of that. */
  minDelay: number
  maxDelay: number
  /** Seconds. When the server asks for more patience than this, the error comes at once: 60. */
  maxRetryAfter: number
}

export interface Client {
  /** Sends nothing yet; reading the chat does. */
  chat(params: ChatParams & { stream?: boolean }): Chat
  /** Any list or object of the edge, such as `/v1/me`, `/v1/models` and `/v1/chat/types`. */
  get<T = unknown>(path: string, options?: { signal?: AbortSignal }): Promise<T>
  /** A token that is good now, for other libraries: `apiKey: () => client.token()`. */
  token(): Promise<string>
  /** Stops listening to other tabs. */
  close(): void
}

export interface ChatParams {
  messages: Message[]
  /** One of `/v1/chat/types`; `home` without it. */
  chatType?: string
  model?: string
  maxTokens?: number
  temperature?: number
  topP?: number
  stop?: string | string[]
  seed?: number
  /** Up to 4 KiB of JSON; the keys that the chat type declares reach the prompt. */
  metadata?: Record<string, unknown>
  /** `[A-Za-z0-9._-]{1,64}`, for the edge's audit line. */
  clientId?: string
  /** Aborting is the same as `cancel()`. */
  signal?: AbortSignal
  /** `false`: one JSON answer, read in the same way. */
  stream?: boolean
}

export interface Message {
  role: 'user' | 'assistant'
  content: string
}

/** One answer. Read it once: by `for await`, or with `text()` or `final()`, which may also stand beside a loop. */
export interface Chat extends AsyncIterable<ChatEvent> {
  readonly status: 'idle' | 'connecting' | 'queued' | 'loading' | 'streaming' | 'done' | 'error' | 'cancelled'
  /** Quote it when something went wrong. It is known from the start; a server may give another. */
  readonly requestId: string
  /** The running answer's, once the edge has said it. */
  readonly id?: string
  /** Of the last try, for its headers. */
  readonly response?: Response
  text(): Promise<string>
  final(): Promise<Answer>
  /** Aborts and tells the server to stop. Leaving the loop does the same. */
  cancel(): void
}

export type ChatEvent =
  | { type: 'text'; delta: string }
  | { type: 'reasoning'; delta: string }
  | { type: 'queued'; position: number; etaSeconds: number | null }
  | { type: 'loading'; model?: string; progress?: number }
  | { type: 'connecting' }
  | { type: 'usage'; usage: Usage }
  | { type: 'done'; finishReason?: string; usage?: Usage }

export interface Usage {
  promptTokens: number
  completionTokens: number
  totalTokens: number
}

export interface Answer {
  id?: string
  requestId: string
  model?: string
  text: string
  reasoning: string
  finishReason?: string
  usage?: Usage
}

/** `ms` counts from the moment that the chat was begun. */
export type ClientEvent =
  | { type: 'request'; requestId: string; url: string; ms: number }
  | { type: 'first'; requestId: string; ms: number }
  | { type: 'done'; requestId: string; ms: number; usage?: Usage }
  | { type: 'error'; requestId: string; ms: number; error: Error }
  | { type: 'retry'; url: string; attempt: number; /** Milliseconds. */ delay: number; error: Error }
  | { type: 'refresh'; url: string }
  | { type: 'fallback'; url: string; error?: Error }

/** What the server said, or one of this client's own. */
export type ErrorCode =
  | 'invalid_json'
  | 'invalid_request'
  | 'context_length_exceeded'
  | 'missing_token'
  | 'invalid_token'
  | 'token_expired'
  | 'token_revoked'
  | 'token_exhausted'
  | 'origin_not_allowed'
  | 'address_not_allowed'
  | 'insufficient_scope'
  | 'model_not_allowed'
  | 'chat_type_not_allowed'
  | 'not_found'
  | 'model_not_found'
  | 'chat_type_not_found'
  | 'not_supported'
  | 'method_not_allowed'
  | 'request_timeout'
  | 'resume_expired'
  | 'payload_too_large'
  | 'uri_too_long'
  | 'unsupported_media_type'
  | 'rate_limited'
  | 'concurrency_limited'
  | 'quota_exceeded'
  | 'headers_too_large'
  | 'internal_error'
  | 'runtime_error'
  | 'upstream_invalid'
  | 'node_unavailable'
  | 'overloaded'
  | 'draining'
  | 'model_loading'
  | 'maintenance'
  | 'first_token_timeout'
  | 'upstream_incomplete'
  | 'upstream_stalled'
  | 'slow_consumer'
  | 'server_draining'
  | 'network_error'
  | 'connect_timeout'
  | 'first_byte_timeout'
  | 'idle_timeout'
  | 'total_timeout'
  | 'stream_interrupted'
  | 'aborted'

/** Base of all errors of this client. `String(error)` has the request id. */
export class HearthlinkError extends Error {
  constructor(message: string, fields?: Partial<Omit<HearthlinkError, 'name' | 'message' | 'stack' | 'toString'>>)
  /** The HTTP status, if the error had one. */
  readonly status?: number
  readonly code?: ErrorCode | (string & {})
  /** OpenAI's error type. */
  readonly type?: string
  /** The field that is wrong. */
  readonly param?: string | null
  readonly requestId?: string
  /** Seconds until it makes sense to ask again. */
  readonly retryAfter?: number
  /** The same request may succeed later. */
  readonly retryable: boolean
  /** The text that had come. */
  readonly partial?: string
}

export class AuthError extends HearthlinkError {}
export class PermissionError extends HearthlinkError {}
export class RateLimitError extends HearthlinkError {}
export class QuotaExceededError extends HearthlinkError {}
export class OverloadedError extends HearthlinkError {}
export class NodeUnavailableError extends HearthlinkError {}
export class InvalidRequestError extends HearthlinkError {}
export class ServerError extends HearthlinkError {}
export class TimeoutError extends HearthlinkError {}
export class NetworkError extends HearthlinkError {}
export class StreamInterruptedError extends HearthlinkError {}
export class UserAbortError extends HearthlinkError {}

/** Server-sent events in any slices. `limit` is in bytes of one event, 1 MiB unless given. */
export function createParser(limit?: number): {
  /** The events that `bytes` completes. Throws RangeError past the limit. */
  feed(bytes: Uint8Array): ServerSentEvent[]
}

export interface ServerSentEvent {
  data: string
  event?: string
  id?: string
  /** Of a non-standard `error:` field, which some runtimes write. */
  error?: string
}
