"""Which credential a request shows: one, in one header."""

from __future__ import annotations

import re

from shared.contract.errors import ApiError

_BEARER = re.compile(r"bearer +([^\s,]+)", re.IGNORECASE)


def credential(authorization: str | None, api_key: str | None) -> str | None:
    """The secret in ``Authorization: Bearer`` or ``X-API-Key``, None when there is neither.

    Raises ApiError ``invalid_request`` when both are there (two checks could each pick another one), ``invalid_token``
    for another scheme than Bearer.
    """
    if authorization is None:
        return api_key
    if api_key is not None:
        raise ApiError(
            "invalid_request", "Both Authorization and X-API-Key were sent. Send one of them.", param="X-API-Key"
        )
    match = _BEARER.fullmatch(authorization)
    if match is None:
        raise ApiError(
            "invalid_token", "The Authorization header is not understood. Send 'Authorization: Bearer <token or key>'."
        )
    return match[1]
