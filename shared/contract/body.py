"""Request bodies of the surfaces: what they have in common, and how they are read.

Unknown fields are an error on our own routes and dropped (and named to the caller) on those that others defined,
because SDKs and front ends send parameters of their own there.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Protocol, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from shared.contract.errors import ApiError
from shared.contract.strict_json import loads_object

# A conversation longer than this is a transcript, not a chat; contexts end long before.
MAX_MESSAGES = 512
MAX_STOP = 4  # as OpenAI
MAX_TOKENS = 1_000_000
# Names of parameters without effect that a caller is told, and characters of each: they stand in a header and events.
_MAX_DROPPED = 32
_MAX_DROPPED_NAME = 64
# For estimates only: English has about four, three is on the safe side for other languages.
BYTES_PER_TOKEN = 3
MODEL = r"^[^\s\x00-\x1f]{1,256}$"


def _stop_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=64)]], BeforeValidator(_stop_list), Field(max_length=MAX_STOP)
]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class AnyBody(Protocol):
    """What edge and node ask of the body of any surface.

    ``stream`` None: what the Accept header says. ``model`` is what the caller wrote for one: an id, an alias,
    ``default``, ``chat:<type>``, or None. ``asked_tokens`` is the longest answer that the caller wants, None without a
    wish, 0 where there is no answer to count. ``parts`` are messages, or what stands for them in an estimate of the
    prompt; ``images`` are in it, ``image_bytes`` of the body are theirs. ``dropped`` are names of parameters that are
    unknown here, few and short. ``include_usage``: a stream ends in what it cost.
    """

    @property
    def stream(self) -> bool | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def chat_type(self) -> str | None: ...
    @property
    def client_id(self) -> str | None: ...
    @property
    def include_usage(self) -> bool: ...
    @property
    def asked_tokens(self) -> int | None: ...
    @property
    def parts(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def image_bytes(self) -> int: ...
    @property
    def dropped(self) -> list[str]: ...


class ForeignBody(BaseModel):
    """A body of a surface that others defined: an ``AnyBody`` that drops what it does not know."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(default="default", pattern=MODEL)
    stream: bool | None = None

    @property
    def chat_type(self) -> str | None:
        """The chat type that ``model: "chat:<type>"`` names, or None for a raw model."""
        return self.model.removeprefix("chat:") if self.model.startswith("chat:") else None

    @property
    def client_id(self) -> str | None:
        return None

    @property
    def include_usage(self) -> bool:
        return True

    @property
    def asked_tokens(self) -> int | None:
        return None

    @property
    def parts(self) -> int:
        return 1

    @property
    def images(self) -> int:
        return len(self._images())

    @property
    def image_bytes(self) -> int:
        return sum(map(len, self._images()))

    def _images(self) -> list[str]:
        """The text of each image; a surface that takes some says where they stand."""
        return []

    @property
    def dropped(self) -> list[str]:
        names = (name for name in self.model_extra or () if name.isidentifier() and name.isascii())
        return [_short(name) for name in itertools.islice(names, _MAX_DROPPED)]


def _short(name: str) -> str:
    return name if len(name) <= _MAX_DROPPED_NAME else f"{name[:_MAX_DROPPED_NAME]}..."


Body = TypeVar("Body")


def parse_body(kind: type[Body], raw: bytes | bytearray) -> Body:
    """Read ``raw`` as ``kind``, a pydantic model. Raises ApiError ``invalid_json`` or ``invalid_request`` naming the
    first wrong field; the message never quotes what the caller wrote."""
    fields = loads_object(raw)
    model = cast("type[BaseModel]", kind)
    try:
        return cast(Body, model.model_validate(fields))
    except ValidationError as error:
        raise _refusal(model, error) from None


def _refusal(kind: type[BaseModel], error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "extra_forbidden":
        known = sorted(field for field in kind.model_fields if len(first["loc"]) == 1)
        hint = f" Known: {', '.join(known)}." if known else ""
        return ApiError("invalid_request", f"Unknown field {place[:80]!r}.{hint}", param=place[:80])
    if place.endswith("role") and (hint := getattr(kind, "ROLES", "")):
        return ApiError("invalid_request", f"{place}: {hint}", param=place[:80])
    return ApiError("invalid_request", f"{place[:80] or 'body'}: {_words(first)}.", param=place[:80] or None)


def _words(found: ErrorDetails) -> str:
    """What is wrong, for somebody who knows nothing of how bodies are read."""
    if found["type"] == "string_pattern_mismatch":
        return "this text has characters or a length that it may not have"
    if found["type"] in ("model_type", "dict_type"):
        return "this is no object"
    return found["msg"].removeprefix("Value error, ").replace(" after validation", "")
