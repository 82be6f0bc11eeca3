"""What the story of an answer needs of a format, whichever API the runtime speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from node.runtime import Inference
from shared.contract.errors import ApiError
from shared.contract.surface import Surface
from shared.link.call import Call, Tally

ErrorOf = Callable[[object], ApiError]


class Reading(Protocol):
    """What is known of an answer so far; shared by the streamed and the whole form. Tokens are counted in ``tally``."""

    tally: Tally
    finish_reason: str | None
    done: bool

    def check_end(self) -> None:
        """At the end of the runtime's stream. Raises ApiError ``upstream_incomplete`` when the answer is cut."""
        ...

    def too_long(self) -> bool:
        """The runtime has passed the longest answer: it is ended here."""
        ...


class Streaming(Protocol):
    """Slices of the runtime's stream in, whole events for the caller out."""

    # The runtime has said something that is no error: its verdict is in.
    heard: bool
    # A fault that stood behind good events of the same slice; it is raised once those have left.
    failure: ApiError | None

    def feed(self, chunk: bytes) -> tuple[bytes, bytes]:
        """(bytes before the first token, bytes of the answer), both whole events. Raises ApiError."""
        ...

    def finish(self, reason: str | None = None) -> bytes:
        """What ends the stream, the surface's terminal marker last. ``reason`` replaces the runtime's own for why the
        answer is over ("stop", "length")."""
        ...


class Collecting(Protocol):
    """Slices of the runtime's stream in, one JSON object at the end."""

    def feed(self, chunk: bytes) -> None:
        """Raises ApiError."""
        ...

    def body(self, extra: Mapping[str, Any], reason: str | None = None) -> bytes:
        """``extra`` fields are added to the object."""
        ...

    def text(self) -> str:
        """What the model said so far, without what it thought and called."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One API. ``reading(call, inference, error_of)``, where ``error_of`` makes an ApiError of whatever a runtime put
    where an error belongs; ``streaming(reading, surface, include_usage)``; ``collecting(reading)``. ``text(events)`` is
    what the model says in events that ``streaming`` gave."""

    reading: Callable[[Call, Inference, ErrorOf], Any]
    streaming: Callable[[Any, Surface, bool], Streaming]
    collecting: Callable[[Any], Collecting]
    text: Callable[[bytes], str]
