// Tools, completions and embeddings with the openai package and the AI SDK in Node, told as JSON. EDGE and KEY are in the
// environment; BRACE is the token that a call of a tool begins with, which makes a toy of a model call one.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embed, generateText, jsonSchema, streamText, tool } from 'ai'
import OpenAI from 'openai'

const { EDGE, KEY, BRACE, EMBEDDINGS } = process.env
const parameters = {
  type: 'object',
  properties: { city: { type: 'string', enum: ['Rome', 'Oslo'] } },
  required: ['city'],
}
const weather = { type: 'function', function: { name: 'get_weather', description: 'The weather.', parameters } }
const openai = new OpenAI({ baseURL: `${EDGE}/v1`, apiKey: KEY, maxRetries: 0 })
const edge = createOpenAICompatible({ name: 'hearthlink', baseURL: `${EDGE}/v1`, apiKey: KEY, includeUsage: true })
const forced = {
  model: 'default',
  messages: [{ role: 'user', content: 'hello' }],
  tools: [weather],
  tool_choice: 'required',
  logit_bias: { [BRACE]: 100 },
  max_tokens: 80,
}
const sdk = {
  model: edge('default'),
  prompt: 'hello',
  tools: { get_weather: tool({ description: 'The weather.', inputSchema: jsonSchema(parameters) }) },
  toolChoice: 'required',
  maxOutputTokens: 80,
  maxRetries: 0,
  providerOptions: { hearthlink: { logit_bias: { [BRACE]: 100 } } },
}

const real = {
  async tools() {
    const { choices } = await openai.chat.completions.create(forced)
    return { reason: choices[0].finish_reason, calls: choices[0].message.tool_calls }
  },
  async streamedTools() {
    const { choices } = await openai.chat.completions.stream({ ...forced, stream: true }).finalChatCompletion()
    return { reason: choices[0].finish_reason, calls: choices[0].message.tool_calls }
  },
  async completion() {
    let text = ''
    const asked = { model: 'default', prompt: 'The rain', max_tokens: 5, temperature: 0 }
    for await (const chunk of await openai.completions.create({ ...asked, stream: true })) text += chunk.choices[0].text
    return { streamed: text, whole: (await openai.completions.create(asked)).choices[0].text }
  },
  async sdkTools() {
    const { finishReason, toolCalls, usage } = await generateText(sdk)
    return { reason: finishReason, calls: toolCalls, total: usage.totalTokens }
  },
  async sdkStreamedTools() {
    const result = streamText(sdk)
    const kinds = []
    for await (const part of result.fullStream) kinds.push(part.type)
    return { reason: await result.finishReason, calls: await result.toolCalls, kinds }
  },
}

const embedding = {
  async openai() {
    const { data, usage } = await openai.embeddings.create({ model: 'fake-model', input: 'hello' })
    return { vector: data[0].embedding, tokens: usage.prompt_tokens }
  },
  async sdk() {
    const { embedding, usage } = await embed({ model: edge.embeddingModel('fake-model'), value: 'hello', maxRetries: 0 })
    return { vector: embedding, tokens: usage.tokens }
  },
}

const told = {}
for (const [name, run] of Object.entries(EMBEDDINGS ? embedding : real)) told[name] = await run()
console.log(JSON.stringify(told))
