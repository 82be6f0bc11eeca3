"""Access tokens: ``hlt_<claims>.<signature>``, minutes long, checked without looking anything up.

    claims      JSON, base64url; signed as text, so no other spelling of it verifies
    signature   HMAC-SHA256 (itsdangerous), 43 characters of base64url; the last one carries only four bits, and just
                the spelling whose spare bits are zero is accepted

One token is therefore one text: what differs by a character is another token, and refused.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from itsdangerous import BadSignature, Signer

from edge.plans import LIMITS
from edge.principals import Principal, is_id
from shared.contract.errors import ApiError
from shared.contract.secrets import TOKEN
from shared.signing_keys import LONGEST_TOKEN

# The salt is the purpose: what is signed for another one does not verify here, whatever it claims.
_SALT = b"hearthlink.access.v1"
# Fits every proxy's header limit many times over; a longer text is refused before any work.
MAX_TOKEN_CHARS = 1024
# Clocks of two edges differ by this much at most (reliability §3); only "issued in the future" is forgiven.
_LEEWAY_SECONDS = 30
_TOKEN = re.compile(rf"{TOKEN}[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{{42}}[AEIMQUYcgkosw048]")
_JTI_BYTES = 16  # 128 bits: never drawn twice


class Tokens:
    """Mints and verifies access tokens.

    ``keys`` are signing secrets, such as ``SigningKeys.verifying``: the last signs, all verify, so that rotation drops
    nobody. ``lifetime`` is in seconds. ``now`` gives Unix seconds. Raises ValueError without keys.
    """

    def __init__(self, keys: Sequence[str], lifetime: float, *, now: Callable[[], float] = time.time) -> None:
        if not keys or not all(keys):
            raise ValueError("There is no key to sign tokens with: give at least one that is not empty.")
        # As itsdangerous' key_derivation="hmac" does, but once: a forged token is tried on every key.
        derived = [hmac.digest(key.encode(), _SALT, "sha256") for key in keys]
        self._keys = tuple(derived)
        self._signer = Signer(derived, salt=_SALT, key_derivation="none", digest_method=sha256)
        self._lifetime = lifetime
        self._now = now

    def follows(self, before: Tokens) -> bool:
        """Whether the key that signs in ``before`` still verifies here. It does after every rotation but one for keys
        that leaked."""
        return before._keys[-1] in self._keys

    def mint(self, principal: Principal, *, lifetime: float | None = None, after: int = 0) -> tuple[str, int]:
        """A token for ``principal`` and the seconds until it ends. It never outlives ``principal.expires_at`` and has
        a ``jti`` of its own. What was issued until ``after`` (Unix seconds) is revoked, so it is issued later, if only
        by a second. Raises ValueError for a principal or a lifetime that no token can have."""
        if not is_id(principal.id):
            raise ValueError("A principal's id is 1 to 128 letters, digits or ._:@+- and no spaces.")
        now = int(self._now())
        expires = now + int(self._lifetime if lifetime is None else lifetime)
        if principal.expires_at is not None:
            expires = min(expires, principal.expires_at)
        if expires - now > LONGEST_TOKEN:
            raise ValueError("No token lasts longer than 366 days. Make an API key instead.")
        if expires <= now:
            raise ValueError("The token would be expired at once: its lifetime is at least one second.")
        issued, jti = max(now, after + 1), secrets.token_urlsafe(_JTI_BYTES)
        claims = _claims(principal) | {"jti": jti, "iat": issued, "exp": expires}
        payload = urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode()).rstrip(b"=")
        token = TOKEN + self._signer.sign(payload).decode()
        if len(token) > MAX_TOKEN_CHARS:
            raise ValueError(f"The token would exceed {MAX_TOKEN_CHARS} characters: lock it to fewer chat types.")
        return token, expires - now

    def verify(self, text: str) -> Principal:
        """The principal of ``text``. Raises ApiError ``invalid_token`` or ``token_expired``; neither says more than
        the code, and nothing of ``text`` is repeated. Whether it was revoked is the ledger's to say."""
        if len(text) > MAX_TOKEN_CHARS or _TOKEN.fullmatch(text) is None:
            raise _invalid()
        try:
            payload = self._signer.unsign(text[len(TOKEN) :])
            claims = json.loads(urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
            principal, now = _principal(claims), self._now()
            early, late = claims["iat"] > now + _LEEWAY_SECONDS, claims["exp"] <= now
        except (BadSignature, ValueError, KeyError, TypeError, AttributeError):
            # After a good signature only another version's claims end here.
            raise _invalid() from None
        if early:
            raise _invalid("It was issued in the future: check the clock of the machine that issued it.")
        if late:
            raise ApiError("token_expired", "The access token has expired. Get a new one from POST /v1/token.")
        return principal


def _claims(principal: Principal) -> dict[str, Any]:
    claims: dict[str, Any] = {
        "sub": principal.id,
        "kind": principal.kind,
        "plan": principal.plan,
        "scp": principal.scopes,
    }
    locks = {"org": principal.origin, "cht": principal.chat_types, "max": principal.max_tokens, "use": principal.uses}
    if principal.limits is not None:
        locks["lim"] = [principal.limits[name] for name in LIMITS]
    locks["mor"] = principal.more_plans
    return claims | {name: value for name, value in locks.items() if value is not None}


def _principal(claims: Mapping[str, Any]) -> Principal:
    chat_types, limits, more = claims.get("cht"), claims.get("lim"), claims.get("mor")
    return Principal(
        id=claims["sub"],
        kind=claims["kind"],
        plan=claims["plan"],
        scopes=tuple(claims["scp"]),
        origin=claims.get("org"),
        chat_types=None if chat_types is None else tuple(chat_types),
        max_tokens=claims.get("max"),
        uses=claims.get("use"),
        limits=None if limits is None else dict(zip(LIMITS, limits, strict=True)),
        more_plans=None if more is None else tuple(more),
        jti=claims["jti"],
        issued_at=claims["iat"],
        expires_at=claims["exp"],
    )


def _invalid(why: str = "Get a new one from POST /v1/token.") -> ApiError:
    return ApiError("invalid_token", f"The access token is not valid here. {why}")
