"""Ordinary events of a stream, told from those that have to be read, at the cost of three comparisons."""

from __future__ import annotations

import json
import sys

# Any of these in an event and it is read instead of passed on.
_ODD = (
    b'"finish_reason":"',
    b'"finish_reason": "',
    b'"usage":{',
    b'"usage": {',
    b'"error"',
    b'"reasoning"',
    b'"prompt_progress"',
    b"[DONE]",
    b"\n",  # more lines than the one of data: an event name, a comment
)
# What an event may say beside text, and what comes with a text: none can be left out where an answer is collected.
_SAYS_MORE = (b'"reasoning_content":"', b'"tool_calls":[', b'"reasoning_content": "', b'"tool_calls": [')
_NOT_ONLY_TEXT = (*_SAYS_MORE, b'"logprobs":{', b'"logprobs": {')
_OBJECT = (b"data: {", b"data:{")
_STRING = json.JSONDecoder()


class Likeness:
    """Recognises ordinary events of one stream: ``data:`` with nothing of interest but a text, which stands under
    ``key``.

    ``passes(event)`` for those that may be relayed; ``text(event)`` gives the text of one whose rest says nothing, else
    None. Cost: three comparisons where the runtime repeats itself, as all known ones do.
    """

    def __init__(self, key: str = "content") -> None:
        self._text = b'"%s":"' % key.encode()
        # An event without any of these says nothing to the caller, or says it in an unknown way.
        self._says = (self._text, b'"%s": "' % key.encode(), *_SAYS_MORE)
        self._before = b""
        self._after = b""
        self._around = sys.maxsize  # nothing is like what has not been seen

    def passes(self, event: bytes) -> bool:
        return self._same(event) is not None or (
            _ordinary(event) and any(map(event.__contains__, self._says)) and self._learn(event)
        )

    def text(self, event: bytes) -> str | None:
        found = self._same(event)
        if found is not None:
            return found.decode("utf-8", "replace")
        if not _ordinary(event) or any(map(event.__contains__, _NOT_ONLY_TEXT)):
            return None
        at = event.find(self._text)
        if at < 0:
            return None
        self._learn(event)
        try:
            return _STRING.raw_decode(event.decode(), len(event[: at + len(self._text) - 1].decode()))[0]
        except ValueError:
            return None

    def _same(self, event: bytes) -> bytes | None:
        if not (event.startswith(self._before) and event.endswith(self._after) and len(event) >= self._around):
            return None
        text = event[len(self._before) : len(event) - len(self._after)]
        # A quote or backslash needs JSON's rules; the newline would make it two lines of SSE.
        return None if b'"' in text or b"\\" in text or b"\n" in text else text

    def _learn(self, event: bytes) -> bool:
        """Take ``event``, which is ordinary, as the pattern of the next ones; True always."""
        before, key, rest = event.partition(self._text)
        text, quote, after = rest.partition(b'"')
        if quote and b"\\" not in text and not any(map(event.__contains__, _NOT_ONLY_TEXT)):
            self._before, self._after = before + key, quote + after
            self._around = len(self._before) + len(self._after)
        return True


def _ordinary(event: bytes) -> bool:
    return event.startswith(_OBJECT) and event.endswith(b"}") and not any(map(event.__contains__, _ODD))
