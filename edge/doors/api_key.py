"""The door for programs: an API key, ``hlk_…``."""

from __future__ import annotations

from collections.abc import Callable

from edge.principals import Principal
from shared.contract.errors import ApiError
from shared.contract.secrets import API_KEY


def enter(credential: str | None, lookup: Callable[[str], Principal]) -> Principal:
    """The principal of the key in ``credential`` (see ``credentials.credential``), found by the store's ``lookup``.

    Raises ApiError ``missing_token`` without one, ``invalid_token`` for anything that is no living key.
    """
    if credential is None:
        raise ApiError(
            "missing_token", "No API key was sent. Send 'Authorization: Bearer hlk_…' or 'X-API-Key: hlk_…'."
        )
    if not credential.startswith(API_KEY):
        raise ApiError("invalid_token", f"This is not an API key: those begin with {API_KEY}.")
    return lookup(credential)
