// /v1/responses with the openai package in Node, told as JSON. EDGE and KEY are in the environment.

import OpenAI from 'openai'

const { EDGE, KEY } = process.env
const client = new OpenAI({ baseURL: `${EDGE}/v1`, apiKey: KEY, maxRetries: 0 })
const asked = { model: 'default', input: 'Where to?' }

const whole = await client.responses.create(asked)

const stream = client.responses.stream(asked)
const deltas = []
stream.on('response.output_text.delta', ({ delta }) => deltas.push(delta))
const final = await stream.finalResponse()

const refused = await client.responses.create({ ...asked, previous_response_id: 'resp_1' }).catch((error) => error)

console.log(
  JSON.stringify({
    whole: whole.output_text,
    usage: whole.usage.total_tokens,
    deltas,
    final: final.output_text,
    refused: [refused.constructor.name, refused.status, refused.param],
  }),
)
