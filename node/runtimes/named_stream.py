"""A stream whose server says which model answers: another one than was asked for is no answer."""

from __future__ import annotations

import re
from collections.abc import Collection

from node.runtime import RuntimeStream
from shared.contract.errors import ApiError

_MODEL = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.)*)"')
# A name comes in the first event, before any text; a stream that begins with more than this has none.
_WITHIN = 64 << 10


class NamedStream:
    """A ``RuntimeStream`` over another, which stays its maker's. Reading raises ApiError ``model_not_found`` before the
    first byte when the stream names one of ``others`` as its model. Any other name is taken as it is: servers shorten
    what they were asked for."""

    def __init__(self, stream: RuntimeStream, others: Collection[str]) -> None:
        self._stream = stream
        self._others = others
        self._seen = bytearray()
        self._checked = False

    @property
    def content_type(self) -> str:
        return self._stream.content_type

    @property
    def at_end(self) -> bool:
        return self._stream.at_end and not self._seen

    async def read(self) -> bytes:
        if self._checked:
            return await self._stream.read()
        while not self._checked and (piece := await self._stream.read()):
            self._take(piece)
        return self._given()

    async def read_slowly(self, seconds: float) -> bytes:
        piece = await self._stream.read_slowly(seconds)
        if self._checked:
            return piece
        self._take(piece)
        return self._given() if self._checked or self._stream.at_end else b""

    def _take(self, piece: bytes) -> None:
        self._seen += piece
        found = _MODEL.search(self._seen)
        if found is not None and found[1].decode("utf-8", "replace").replace("\\/", "/") in self._others:
            raise ApiError(
                "model_not_found",
                "The runtime answered with another model than the one asked for, which is probably not loaded any "
                "more. GET /v1/models lists what there is.",
                param="model",
            )
        self._checked = found is not None or len(self._seen) > _WITHIN

    def _given(self) -> bytes:
        whole = bytes(self._seen)
        self._seen.clear()
        self._checked = True
        return whole
