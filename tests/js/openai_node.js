// The cases in Node, with a token that an API key was changed for. EDGE and KEY are in the environment.

import OpenAI from 'openai'
import { allCases } from './openai_cases.js'

const { EDGE, KEY } = process.env

async function apiKey() {
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${KEY}` }
  const response = await fetch(`${EDGE}/v1/token`, { method: 'POST', headers, body: '{}' })
  return (await response.json()).token
}

console.log(JSON.stringify(await allCases({ OpenAI, edge: EDGE, apiKey })))
