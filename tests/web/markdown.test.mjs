import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Marked } from '../../web/vendor/marked-18.2.1/marked.esm.js'
import { finished } from '../../web/chat/markdown.js'

const marked = new Marked({ breaks: true })

const TEXTS = {
    'paragraphs and lists':
        'One\ntwo\n\n- a\n- b\n  - c\n\n    still c\n\n1. x\n\n   ```js\n   let y\n   ```\n2. z\n\nEnd',
    'a table between': 'Before\n\n| a | b |\n|---|:-:|\n| 1 | `x` |\n| 2 | 3 |\n\nAfter\n# Title\nmore',
    fences: '```py\nprint(1)\n\nprint(2)\n```\ntext\n\n~~~\ntilde\n~~~\n    not code\n\n    code\n\nend',
    'quotes and rules': '> one\n> two\n\n> - three\n\n---\n\nTitle\n=====\n\nmore\n***\nlast',
    HTML: 'a <b>c</b>\n\n<div>\nx\n\n</div>\n\n<!-- y\n\nz -->\n\nend',
    'line ends of Windows': 'One\r\n\r\n- a\r\n- b\r\n\r\nEnd',
}

// As an answer is drawn: piece by piece, with what nothing can change any more cut off in front.
function grow(text, step) {
    let done = 0
    let html = ''
    for (let end = step; ; end += step) {
        const { blocks, length } = finished(text.slice(done, end))
        html += marked.parser(blocks)
        done += length
        if (end >= text.length) return html + marked.parse(text.slice(done))
    }
}

for (const [name, text] of Object.entries(TEXTS)) {
    test(`an answer drawn while it grows is the same as drawn whole: ${name}`, () => {
        const whole = marked.parse(text).replace(/\n+/g, '\n')
        for (const step of [1, 2, 3, 7, 1000])
            assert.equal(grow(text, step).replace(/\n+/g, '\n'), whole, `in steps of ${step}`)
    })
}

test('only the last block stays open', () => {
    const text = 'One\n\nTwo\n\nThree\nand'
    const { blocks, length } = finished(text)
    assert.equal(text.slice(length).trim(), 'Three\nand')
    assert.ok(blocks.length > 0)
    assert.deepEqual(finished(''), { blocks: [], length: 0 })
    assert.deepEqual(finished('One line'), { blocks: [], length: 0 })
})
