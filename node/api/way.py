"""What a surface does with a request: the words in which ``node.api.ways`` says it, one row each.

    body ── write() ──> Prompt ── compose() ──> Inference ── the runtime ──> its events ── Format ──> the caller
                                                                  └─ or one JSON object ── shape() ──> Reply

To add a surface:

1. its body in ``shared/contract`` (an ``AnyBody``), and its row of ``shared.contract.surface.SURFACES``;
2. ``write(body, asking) -> Prompt`` in a module of its own here, ``compose_<name>.py``: what the runtime is asked, all
   text of the caller through ``asking.clean`` or ``asking.clean_all``, that of messages through ``said.clean_said``,
   and the request's own parameters in names of ``PARAMETERS``. Models, chat types, defaults, forced and stripped
   parameters, caps, turns and usage are not its business. ``system.system_prompt`` gives a chat type's prompt;
3. a ``Format`` in ``node/formats`` where the runtime streams this API, or ``shape`` where it answers with one object;
4. its row in ``node/api/ways.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from node.formats.format import Format
from node.prompts import ChatType
from node.runtime import PARAMETERS, Api, Inference
from node.services import Services
from shared.contract.snapshot import ModelInfo
from shared.contract.usage import Usage
from shared.link.call import Call


@dataclass(frozen=True, slots=True)
class Asking:
    """What ``write`` may know besides the body. ``model`` is the one that will answer; ``max_tokens`` the longest
    answer that plan, node and chat type allow. ``held`` is what the row's ``before`` gave."""

    call: Call
    node: Services
    chat_type: ChatType | None
    model: ModelInfo
    max_tokens: int
    held: Any = None

    @property
    def path(self) -> str:
        """The route, for sentences."""
        return self.call.surface.path

    def strips(self, name: str) -> bool:
        """Whether the owner has that parameter taken out of this request."""
        kind = self.chat_type
        return (kind is not None and name in kind.strip) or name in self.node.models.defaults(self.model.id).stripped

    def clean(self, text: str) -> str:
        """``text`` of a caller without the model's control tokens."""
        return self.node.neutraliser.clean(text)

    def clean_joined(self, texts: Sequence[str]) -> list[str]:
        """``texts`` of a caller without the model's control tokens, neither in one nor across some of them."""
        return self.node.neutraliser.clean_joined(texts)

    def clean_all(self, value: Any) -> Any:
        """A JSON value of a caller with every string in it cleaned, keys too."""
        return self.node.neutraliser.clean_all(value)


@dataclass(slots=True)
class Prompt:
    """What a caller asks, in the words of the row's ``api``.

    ``content`` and ``parameters`` are as in ``Inference``: cleaned text, names of ``PARAMETERS``, no None. ``fields``
    are added to an answer that leaves as one object, ``first`` (whole events) stands in front of a stream's.
    ``fit(inference)`` gives one that is short enough as far as that is known: asked before it queues, and again once
    its model had to be loaded. ``shorten(inference)`` gives a shorter one than the runtime refused, None when there is
    none. ``tokens`` of the prompt, where the caller's body does not hold all of it. ``heard(text)`` is told the
    answer's text once, when it has ended well or was stopped, before the caller is told so: an ApiError of it ends the
    answer instead.
    """

    content: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    first: bytes = b""
    fit: Callable[[Inference], Awaitable[Inference]] | None = None
    shorten: Callable[[Inference], Inference | None] | None = None
    tokens: int = 0
    heard: Callable[[str], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a caller gets as one JSON object, and what it cost."""

    body: bytes
    usage: Usage


@dataclass(frozen=True, slots=True)
class Way:
    """One row. ``api`` is the runtime's route. ``write(body, asking)`` raises ApiError ``invalid_request``. Exactly one
    of ``format``, for what the runtime streams, and ``shape(answer, body, inference)``, for what it answers as one
    object; that raises ApiError ``upstream_invalid``. ``before(body, call, node)`` is entered before ``write`` and left
    when the answer has ended. ``parameters`` are those that the API has a word for."""

    api: Api
    write: Callable[[Any, Asking], Prompt]
    format: Format | None = None
    shape: Callable[[Mapping[str, Any], Any, Inference], Reply] | None = None
    before: Callable[[Any, Call, Services], AbstractAsyncContextManager[Any]] | None = None
    parameters: frozenset[str] = frozenset(PARAMETERS)
