"""Body of ``POST /v1/embeddings``: texts in, one vector for each out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from shared.contract.body import ForeignBody

MAX_INPUTS = 2048  # as OpenAI


def _texts(given: Any) -> Any:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and any(isinstance(item, int | list) for item in given):
        raise ValueError("send texts; token ids differ from model to model and are not supported here")
    return given


class EmbeddingBody(ForeignBody):
    """``encoding_format`` ``base64``: each vector is the base64 of its 32-bit floats, little-endian."""

    input: Annotated[
        list[Annotated[str, Field(min_length=1)]], BeforeValidator(_texts), Field(min_length=1, max_length=MAX_INPUTS)
    ]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    @property
    def asked_tokens(self) -> int | None:
        return 0

    @property
    def parts(self) -> int:
        return len(self.input)
