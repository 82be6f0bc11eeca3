// Read by tsc, never run: what must compile does, and each @ts-expect-error is a mistake that must not.

import {
  AuthError,
  HearthlinkError,
  StreamInterruptedError,
  createClient,
  createParser,
  type Answer,
  type Chat,
  type ChatEvent,
  type Client,
  type ErrorCode,
  type Usage,
} from '@hearthlink/client'
import * as bundled from '@hearthlink/client/hearthlink.js'

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : never
const same = <A, B>(_: Same<A, B>) => {}

const client: Client = createClient()
createClient({ baseUrl: 'https://edge.example' })
createClient({
  baseUrls: [
    'https://edge.example',
    { url: 'https://edge.tailnet.ts.net' },
    { url: 'http://localhost:1234', kind: 'openai', model: 'qwen' },
  ],
  timeouts: { idle: 1000 },
  retry: { attempts: 1, maxRetryAfter: 5 },
  defaults: { clientId: 'app', chatType: 'home' },
  fetch,
  onEvent(event) {
    if (event.type === 'retry') same<typeof event.delay, number>(true)
    if (event.type === 'done') same<typeof event.usage, Usage | undefined>(true)
    // @ts-expect-error only a retry has a delay
    if (event.type === 'first') event.delay
  },
})
createClient({ getToken: () => 'key' })
createClient({ getToken: async ({ url }) => ({ token: url, expires_in: 600 }) })
createClient({ headers: { 'CF-Access-Client-Id': 'one.access' } })
// @ts-expect-error the life is called expires_in, as the edge calls it
createClient({ getToken: () => ({ token: 'x', expiresIn: 600 }) })
// @ts-expect-error no such timeout
createClient({ timeouts: { read: 1 } })
// @ts-expect-error a model is a plain server's
createClient({ baseUrls: [{ url: 'https://edge.example', model: 'qwen' }] })
// @ts-expect-error keys of others do not belong into a page
createClient({ baseUrls: [{ url: 'http://localhost:1234', kind: 'openai', apiKey: 'sk' }] })

const chat: Chat = client.chat({ messages: [{ role: 'user', content: 'hi' }], stop: 'x', metadata: { a: 1 } })
// @ts-expect-error the system prompt is the chat type's
client.chat({ messages: [{ role: 'system', content: 'hi' }] })
// @ts-expect-error there is nothing to answer
client.chat({ chatType: 'home' })
// @ts-expect-error names are written as JavaScript writes them
client.chat({ messages: [], max_tokens: 5 })

export async function read() {
  for await (const event of chat) {
    same<typeof event, ChatEvent>(true)
    switch (event.type) {
      case 'text':
      case 'reasoning':
        same<typeof event.delta, string>(true)
        break
      case 'queued':
        same<typeof event.position, number>(true)
        break
      case 'usage':
        same<typeof event.usage.totalTokens, number>(true)
        break
      case 'loading':
      case 'connecting':
      case 'done':
        break
      default:
        event satisfies never
    }
  }
  same<string, Awaited<ReturnType<typeof chat.text>>>(true)
  const { text, usage }: Answer = await chat.final()
  same<typeof text, string>(true)
  usage?.promptTokens
  chat.cancel()
  // @ts-expect-error it is what it is
  chat.status = 'done'
  const me = await client.get<{ usage: number }>('/v1/me', { signal: AbortSignal.timeout(5) })
  same<typeof me.usage, number>(true)
  same<string, Awaited<ReturnType<typeof client.token>>>(true)
}

export function show(error: unknown) {
  if (error instanceof StreamInterruptedError) same<typeof error.partial, string | undefined>(true)
  if (error instanceof AuthError || error instanceof HearthlinkError) {
    const seconds: number = error.retryAfter ?? 0
    const code: ErrorCode | (string & {}) | undefined = error.code
    // @ts-expect-error fields are read
    error.code = 'rate_limited'
    return `${error} ${seconds} ${code} ${error.requestId} ${error.status} ${error.retryable}`
  }
  return ''
}

new HearthlinkError('what', { code: 'aborted', cause: new Error() })
same<typeof bundled.createClient, typeof createClient>(true)
createParser()
  .feed(new Uint8Array())
  .map(({ data, event }) => data + (event ?? ''))
