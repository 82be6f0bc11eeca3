/** React state for a conversation, with the names of the AI SDK's `useChat`. */

import type { ChatEvent, ChatParams, Client, Usage } from './index.js'

export function useHearthlinkChat(options: UseChatOptions): UseChat

export interface UseChatOptions extends Omit<ChatParams, 'messages'> {
  client: Client
  /** To begin with. */
  messages?: UIMessage[]
  /** An answer is complete. */
  onFinish?: (about: { message: UIMessage; finishReason?: string; usage?: Usage }) => void
  onError?: (error: Error) => void
}

export interface UIMessage {
  id: string
  role: 'user' | 'assistant'
  parts: MessagePart[]
}

export interface MessagePart {
  type: 'text' | 'reasoning'
  text: string
}

export interface UseChat {
  readonly messages: UIMessage[]
  /** `submitted`: asked, nothing of the answer is here yet. */
  readonly status: 'ready' | 'submitted' | 'streaming' | 'error'
  readonly error: Error | undefined
  /** What the answer waits for, while it does. */
  readonly waiting: Extract<ChatEvent, { type: 'queued' | 'loading' }> | undefined
  /**
   * Asks, and resolves when the answer is over, however it ended. With `messageId` the message takes the place of that
   * one and of all behind it; without a message the conversation is asked about as it is.
   */
  sendMessage(
    message?: string | { text: string; messageId?: string } | { parts: MessagePart[]; messageId?: string },
    params?: Partial<ChatParams>,
  ): Promise<void>
  /** The last answer anew, or the one that `messageId` is, or is the question of. */
  regenerate(options?: { messageId?: string } & Partial<ChatParams>): Promise<void>
  /** Ends the answer under way; what came of it stays. */
  stop(): void
  setMessages(messages: UIMessage[] | ((messages: UIMessage[]) => UIMessage[])): void
  clearError(): void
}
