"""API keys and invites as texts, ``<prefix><id>_<secret>``: shown once when made, kept as a hash, found by id."""

from __future__ import annotations

import re
import secrets
from hashlib import sha256
from hmac import compare_digest

from edge.principals import names_a_kind
from edge.store.errors import AdminError

_ID_BYTES = 6  # 12 hex digits: names the code in lists and logs, is no secret
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID = re.compile(r"[0-9a-f]{12}")
# Compared with when the id is unknown, so that the answer takes as long either way.
_NO_DIGEST = bytes(32)


class Code:
    """One kind of code. Its secret has so many random bytes that nobody guesses it, which needs no slow hash."""

    def __init__(self, prefix: str, secret_bytes: int) -> None:
        self._prefix = prefix
        self._secret_bytes = secret_bytes
        letters = -(-secret_bytes * 4 // 3)  # as base64 without padding
        self._form = re.compile(rf"{prefix}([0-9a-f]{{{2 * _ID_BYTES}}})_([A-Za-z0-9_-]{{{letters}}})")

    def make(self) -> tuple[str, str, bytes]:
        """A new one: its id, its text, and the digest to keep."""
        code_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(self._secret_bytes)
        return code_id, f"{self._prefix}{code_id}_{secret}", _digest(secret)

    def split(self, text: str) -> tuple[str, bytes] | None:
        """Id and digest of ``text``; None when it is no code of this kind."""
        found = self._form.fullmatch(text)
        return found and (found[1], _digest(found[2]))


def matches(digest: bytes, kept: bytes | None) -> bool:
    """Whether ``digest`` is the one that is ``kept`` for its id (None: the id is unknown), in the same time always."""
    return compare_digest(digest, _NO_DIGEST if kept is None else kept) and kept is not None


def check_name(name: str, what: str) -> None:
    """Raises AdminError when ``what`` cannot be called ``name``, which is told from every id."""
    if _NAME.fullmatch(name) is None or _ID.fullmatch(name) or names_a_kind(name):
        raise AdminError(
            f"{name[:80]!r} is not a name for {what}: use 1 to 64 letters, digits, '.', '_' or '-', but not 12 hex"
            " digits, nor a caller's id, which begins as token_ does."
        )


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
