import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createConversation, messagesOf, paceOf, turnsFor } from '../../web/chat/conversation.js'

const turn = (question, text) => ({ question, answer: { text } })

// A client whose chats give `events`; an Error among them is thrown. `sent` has what was asked.
function clientOf(...chats) {
    const sent = []
    return {
        sent,
        chat(params) {
            sent.push(params)
            const events = chats.shift()
            let cancelled = false
            return {
                requestId: `request-${sent.length}`,
                cancel: () => (cancelled = true),
                final: async () => ({ model: 'a-model' }),
                async *[Symbol.asyncIterator]() {
                    for (const event of events) {
                        await null
                        if (cancelled) throw Object.assign(new Error('stopped'), { code: 'aborted' })
                        if (event instanceof Error) throw event
                        yield event
                    }
                },
            }
        },
    }
}

// The conversation, what it told, and a way to wait for the end of an answer.
function talkWith(client, params = { turns: 20 }) {
    const told = []
    let ended
    const talk = createConversation(
        client,
        () => params,
        (what, turn) => {
            told.push(what)
            if (what === 'ended') ended(turn.answer)
        },
    )
    return { talk, told, end: () => new Promise((resolve) => (ended = resolve)) }
}

const text = (delta) => ({ type: 'text', delta })

test('the last turns are sent along, without those that came to nothing', () => {
    const turns = [turn('one', '1'), turn('two', ''), turn('three', '3'), turn('four', '')]
    const said = messagesOf(turns, 20).map(({ content }) => content)
    assert.deepEqual(said, ['one', '1', 'three', '3', 'four'])
    assert.deepEqual(messagesOf(turns, 1), [{ role: 'user', content: 'four' }])
    assert.equal(
        messagesOf(
            Array.from({ length: 100 }, () => turn('q', 'a')),
            20,
        ).length,
        39,
    )
})

test('a small context gets fewer turns', () => {
    assert.equal(turnsFor(undefined), 20)
    assert.equal(turnsFor(0), 20)
    assert.equal(turnsFor(256), 2)
    assert.equal(turnsFor(1024), 4)
    assert.equal(turnsFor(1 << 20), 20)
})

test('an answer grows, ends, and is sent along with the next question', async () => {
    const usage = { promptTokens: 3, completionTokens: 2, totalTokens: 5 }
    const first = [
        { type: 'queued', position: 1 },
        text('Good '),
        text('day.'),
        { type: 'usage', usage },
        { type: 'done', finishReason: 'stop', usage },
    ]
    const client = clientOf(first, [text('Bye.'), { type: 'done' }])
    const { talk, told, end } = talkWith(client, { turns: 20, chatType: 'home' })
    talk.ask('Hello?')
    assert.ok(talk.busy())
    const answer = await end()
    assert.deepEqual(told, ['asked', 'waits', 'text', 'text', 'ended'])
    assert.equal(answer.state, 'done')
    assert.equal(answer.text, 'Good day.')
    assert.equal(answer.model, 'a-model')
    assert.equal(answer.finishReason, 'stop')
    assert.equal(paceOf(answer).count, 2)
    assert.ok(!talk.busy())
    talk.ask('And then?')
    await end()
    assert.deepEqual(client.sent[1], {
        chatType: 'home',
        messages: [
            { role: 'user', content: 'Hello?' },
            { role: 'assistant', content: 'Good day.' },
            { role: 'user', content: 'And then?' },
        ],
    })
})

test('what came before an error is kept, and retry asks the same again', async () => {
    const broken = Object.assign(new Error('cut'), { code: 'upstream_incomplete', requestId: 'from-the-edge' })
    const client = clientOf([text('Half'), broken], [text('Whole.'), { type: 'done' }])
    const { talk, end } = talkWith(client)
    talk.ask('Hello?')
    const failed = await end()
    assert.deepEqual([failed.state, failed.text, failed.requestId], ['error', 'Half', 'from-the-edge'])
    talk.again()
    assert.equal((await end()).text, 'Whole.')
    assert.deepEqual(client.sent[1].messages, client.sent[0].messages)
    assert.equal(talk.turns.length, 1)
})

test('stop ends the answer at once and keeps what came', async () => {
    const { talk, end } = talkWith(clientOf([text('One'), text('two'), text('three')]))
    talk.ask('Count.')
    const ended = end()
    await null
    talk.stop()
    assert.ok(!talk.busy())
    assert.equal((await ended).state, 'stopped')
})

test('a question taken back takes its answer along, and nothing is heard of it afterwards', async () => {
    const { talk, told } = talkWith(clientOf([text('One'), text('two')]))
    talk.ask('Edit me')
    assert.equal(talk.takeBack(), 'Edit me')
    assert.equal(talk.turns.length, 0)
    await new Promise(setImmediate)
    assert.equal(told.at(-1), 'gone')
})

test('a new question while an answer is written stops that answer', async () => {
    const { talk, end } = talkWith(clientOf([text('Never'), text('ending')], [text('Yes.'), { type: 'done' }]))
    talk.ask('First')
    const first = end()
    talk.ask('Second')
    assert.equal((await first).state, 'stopped')
    assert.equal((await end()).text, 'Yes.')
    assert.ok(!talk.busy())
})

test('an answer in one piece has no pace', () => {
    assert.deepEqual(paceOf({ began: 0, first: 900, chunks: 1, usage: { completionTokens: 50 }, took: 901 }), {
        count: 50,
    })
    assert.equal(paceOf({ began: 0, first: 500, chunks: 11, took: 1500 }).perSecond, 10)
})
