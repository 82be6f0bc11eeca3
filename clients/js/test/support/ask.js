import { createClient } from '../../src/index.js'

export const MESSAGES = [{ role: 'user', content: 'hi' }]

// One chat with `server`, tried once unless `options` say more.
export function ask(server, params, options) {
  const client = createClient({ baseUrl: server.url, getToken: () => 'key', retry: { attempts: 1 }, ...options })
  return client.chat({ messages: MESSAGES, ...params })
}

export async function all(chat) {
  const events = []
  for await (const event of chat) events.push(event)
  return events
}
