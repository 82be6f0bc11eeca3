"""The parameters of a request's query, bounded."""

from __future__ import annotations

from urllib.parse import parse_qsl

from shared.asgi.types import Scope
from shared.contract.errors import ApiError

_MOST = 16
_LONGEST = 2048  # bytes, of all together


def read_query(scope: Scope) -> dict[str, str]:
    """By name; of two with one name the last. Raises ApiError ``invalid_request`` for what is too long."""
    query = scope["query_string"]
    try:
        if len(query) > _LONGEST:
            raise ValueError
        return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST))
    except ValueError:
        text = f"The query has more than {_MOST} parameters, or {_LONGEST} bytes."
        raise ApiError("invalid_request", text) from None
