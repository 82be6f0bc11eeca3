import { createClient } from '@hearthlink/client'
import { useHearthlinkChat, type UIMessage } from '@hearthlink/client/react'

const client = createClient()

export function Chat() {
  const { messages, status, error, waiting, sendMessage, regenerate, stop, setMessages, clearError } =
    useHearthlinkChat({
      client,
      chatType: 'home',
      maxTokens: 100,
      messages: [{ id: '1', role: 'assistant', parts: [{ type: 'text', text: 'Hello.' }] }],
      onFinish: ({ message, usage }) => [message.parts[0]?.text, usage?.totalTokens],
      onError: (error) => error.message,
    })
  void sendMessage({ text: 'hi' }, { chatType: 'whereToGo' })
  void sendMessage('hi')
  void sendMessage()
  void regenerate({ messageId: '1', temperature: 0.5 })
  setMessages((messages: UIMessage[]) => messages.slice(1))
  stop()
  clearError()
  // @ts-expect-error not one of the four
  if (status === 'done') return
  return [messages.map(({ parts }) => parts), error?.message, waiting?.type === 'queued' && waiting.position]
}

// @ts-expect-error a hook without its client
useHearthlinkChat({ chatType: 'home' })
