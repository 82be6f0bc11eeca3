"""Body of ``POST /v1/rerank``, as Jina, Cohere, llama.cpp and vLLM have it: which documents answer a query best."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from shared.contract.body import ForeignBody

# A search brings some hundred candidates; each is a prompt of its own for the model.
MAX_DOCUMENTS = 1024
# Of text that costs as much as a message of nothing but its frame: six tokens of three bytes (``edge.api.permission``).
_BYTES_PER_PART = 18


def _text_of(document: Any) -> Any:
    """Jina and Cohere also take {"text": "..."}."""
    return document.get("text") if isinstance(document, dict) else document


Document = Annotated[str, BeforeValidator(_text_of), Field(min_length=1)]


class RerankBody(ForeignBody):
    """``top_n`` results at most, the best first; all of them when it is missing."""

    query: str = Field(min_length=1)
    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False

    @property
    def asked_tokens(self) -> int | None:
        return 0

    @property
    def parts(self) -> int:
        """The query is read again with every document."""
        return len(self.documents) * (1 + len(self.query.encode()) // _BYTES_PER_PART)
