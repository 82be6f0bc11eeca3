// Server-sent events in any slices (WHATWG HTML 9.2.6), without I/O. tests/vectors/sse.json holds this parser and the
// servers' own to the same rules.

const LF = 10
const CR = 13
// Bytes of one event; those of a chat have some hundred. Past this the server is broken.
const MAX_EVENT = 1 << 20

export function createParser(limit = MAX_EVENT) {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  let size = 0 // bytes of this event so far, line ends not counted
  let line = ''
  let isFirst = true
  let afterCR
  let fields = {}

  // The events `{data, event?, id?, error?}` that `bytes` completes, in linear time. Throws RangeError past the limit.
  function feed(bytes) {
    const events = []
    let from = afterCR && bytes[0] === LF ? 1 : 0
    for (let at = from; at < bytes.length; at++) {
      const byte = bytes[at]
      if (byte !== LF && byte !== CR) continue
      read(bytes.subarray(from, at))
      endLine(events)
      if (byte === CR && bytes[at + 1] === LF) at++
      from = at + 1
    }
    read(bytes.subarray(from), true)
    if (bytes.length) afterCR = bytes[bytes.length - 1] === CR
    return events
  }

  function read(piece, stream) {
    size += piece.length
    if (size > limit) throw new RangeError(`an event is longer than ${limit} bytes`)
    line += decoder.decode(piece, { stream })
  }

  function endLine(events) {
    const [text, name, value] = /^([^:]*):? ?(.*)$/s.exec(isFirst ? line.replace(/^\ufeff/, '') : line)
    isFirst = false
    line = ''
    if (!text) {
      if ('data' in fields || 'error' in fields) events.push({ data: '', ...fields })
      fields = {}
      size = 0
    } else if (name === 'data') fields.data = 'data' in fields ? `${fields.data}\n${value}` : value
    else if (name === 'event') fields.event = value || undefined
    else if (name === 'error' || (name === 'id' && !value.includes('\0'))) fields[name] = value
  }

  return { feed }
}
