// What was asked and answered, without DOM. A turn is {question, answer: {state, text, reasoning, …}}; its state is
// waiting, streaming, done, stopped or error. `tell(what, turn)` hears: asked, waits (for what), text, ended, gone.

// Turns sent along at most, and tokens of context for each.
const TURNS = 20
const TOKENS_PER_TURN = 256

export const turnsFor = (context) => Math.min(TURNS, Math.max(2, Math.floor(context / TOKENS_PER_TURN) || TURNS))

// The last `limit` turns, without those that came to nothing.
export function messagesOf(turns, limit) {
  const last = turns.at(-1)
  return turns
    .filter((turn) => turn === last || turn.answer.text)
    .slice(-limit)
    .flatMap(({ question, answer }) => [
      { role: 'user', content: question },
      { role: 'assistant', content: answer.text },
    ])
    .slice(0, -1)
}

// `params()` gives `turns`, the limit, and what else chat() takes.
export function createConversation(client, params, tell) {
  const turns = []
  let chat // the one under way

  function ask(question) {
    stop()
    turns.push({ question })
    again()
  }

  // The last question once more: after an error, or for another answer.
  async function again() {
    stop()
    const turn = turns.at(-1)
    const { turns: limit, ...rest } = params()
    const said = (turn.answer = { state: 'waiting', text: '', reasoning: '', began: performance.now(), chunks: 0 })
    const mine = (chat = client.chat({ ...rest, messages: messagesOf(turns, limit) }))
    tell('asked', turn)
    try {
      for await (const event of mine) read(event, turn)
      said.state = 'done'
      said.model = (await mine.final()).model
    } catch (error) {
      said.state = error.code === 'aborted' ? 'stopped' : 'error'
      said.error = error
    }
    said.took = performance.now() - said.began
    said.requestId = said.error?.requestId ?? mine.requestId
    if (chat === mine) chat = undefined
    if (turns.includes(turn) && turn.answer === said) tell('ended', turn)
  }

  function read(event, turn) {
    const said = turn.answer
    if (event.delta) {
      said.first ??= performance.now() - said.began
      said.chunks++
      said[event.type] += event.delta
      said.state = 'streaming'
      tell('text', turn)
    } else if (event.usage || event.finishReason) Object.assign(said, event)
    else if (event.type !== 'done') tell('waits', turn, event)
  }

  // Takes the last turn back and gives its question, to be edited.
  function takeBack() {
    stop()
    const turn = turns.pop()
    tell('gone', turn)
    return turn.question
  }

  function stop() {
    chat?.cancel()
    chat = undefined
  }

  function clear() {
    while (turns.length) takeBack()
  }

  return { ask, again, takeBack, stop, clear, busy: () => chat !== undefined, turns }
}

// For `pace` of connection.js, now or at the end.
export function paceOf({ began, first, chunks, usage, took = performance.now() - began }) {
  const count = usage?.completionTokens ?? chunks
  const seconds = (took - first) / 1000
  // An answer in one piece has none.
  return chunks > 1 && seconds > 0.05 ? { count, first, perSecond: (count - 1) / seconds } : { count }
}
