import assert from 'node:assert/strict'
import { test } from 'node:test'
import { duration, pace, quotaWords, stateWords } from '../../web/chat/connection.js'

test('durations as people say them', () => {
    assert.deepEqual([0.2, 42, 119, 120, 3000, 7200, 53_287].map(duration), [
        '1 s',
        '42 s',
        '119 s',
        '2 min',
        '50 min',
        '2 h',
        '15 h',
    ])
})

test('states in words', () => {
    assert.equal(stateWords({ name: 'queued', position: 2, etaSeconds: 8 }), 'In the queue: place 2, about 8 s')
    assert.equal(stateWords({ name: 'queued', position: 1, etaSeconds: null }), 'In the queue: place 1')
    assert.equal(stateWords({ name: 'loading', model: 'qwen3-4b', progress: 0.4 }), 'Loading qwen3-4b, 40 %')
    assert.equal(stateWords({ name: 'loading' }), 'Loading the model…')
    assert.equal(stateWords({ name: 'generating' }), 'Writing… ')
    assert.equal(
        stateWords({ name: 'generating', perSecond: 41.3, first: 300 }),
        'Writing… 41 tokens/s, first word after 0.3 s',
    )
    assert.equal(stateWords({ name: 'limited' }, 41.2), 'Limited: again in 42 s')
    assert.equal(stateWords({ name: 'limited' }, -1), 'Limited: again now')
    assert.equal(stateWords({ name: 'offline', device: true }, 5), 'You are offline')
    assert.equal(stateWords({ name: 'offline' }, 5), 'Server out of reach, looking again in 5 s')
    assert.equal(stateWords({ name: 'asleep' }, NaN), 'The model is asleep, looking again')
    assert.equal(stateWords({ name: 'closed' }, 5), 'Closed for a while, looking again in 5 s')
    assert.equal(stateWords({ name: 'ready', back: true }), 'Back again')
})

test('how an answer went', () => {
    assert.equal(pace({ count: 1 }), '1 token')
    assert.equal(pace({ first: 11.2 }), 'first word after 12 ms')
    assert.equal(
        pace({ count: 1200, perSecond: 7.25, first: 12_000 }),
        '1,200 tokens, 7.3 tokens/s, first word after 12.0 s',
    )
})

test('what is left today', () => {
    const tokens = { limit: 20_000, used: 800, remaining: 19_200, reset: 3000 }
    assert.equal(quotaWords({ tokens }), '19,200 tokens left today')
    assert.equal(quotaWords({ tokens: { ...tokens, remaining: 0 } }), 'Nothing left today, more in 50 min')
    assert.equal(quotaWords({ tokens: { limit: null, remaining: null } }), '')
})
