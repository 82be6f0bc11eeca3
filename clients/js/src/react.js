import { useEffect, useState, useSyncExternalStore } from 'react'
import { createConversation } from './conversation.js'

// A conversation as React state, with the names of the AI SDK's useChat. `options`: `client`, `messages` to begin with,
// `onFinish`, `onError`, and all that chat() takes. Leaving the page stops an answer that is under way.
export function useHearthlinkChat(options) {
  const [conversation] = useState(() => createConversation(options))
  const { subscribe, state, configure, stop, ...actions } = conversation
  useEffect(() => void configure(options))
  useEffect(() => stop, [stop])
  return { ...useSyncExternalStore(subscribe, state, state), stop, ...actions }
}
