"""A signed token of somebody else (a JWT, RFC 7519, RFC 9068), checked as RFC 8725 asks: the issuer's own keys, a fixed
list of algorithms, the exact issuer, and an audience that is this edge."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from typing import Any

from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError, UnsupportedAlgorithmError
from joserfc.jwk import Key
from joserfc.jws import JWSRegistry, extract_compact, validate_compact
from joserfc.jwt import JWTClaimsRegistry

from edge.doors.jwks import IssuerUnavailable, Jwks
from shared.contract.errors import ApiError
from shared.contract.strict_json import loads_object

# Three parts of base64url, and no more of it than fits beside other headers.
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
MAX_JWT_CHARS = 8192
# The issuer's clock may be this much ahead; an end is an end.
_LEEWAY_SECONDS = 30
# Access tokens, and those of issuers that say nothing of the kind. Never one made for another purpose, such as logout.
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


class JwtVerifier:
    """``issuer`` is compared exactly, one of ``audience`` has to be in the token, ``algorithms`` are the only ones
    (names of ``jwks``). ``keys`` is closed by whoever made it."""

    def __init__(self, issuer: str, audience: Collection[str], algorithms: Collection[str], keys: Jwks) -> None:
        self._issuer = issuer
        self._keys = keys
        self._registry = _Registry(algorithms=frozenset(algorithms), strict_check_header=False)
        self._claims = JWTClaimsRegistry(
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "values": list(audience)},
            exp={"essential": True},
        )

    async def claims(self, text: str) -> dict[str, Any]:
        """What the issuer says of the caller; ``exp`` is a number in the future.

        Raises ApiError ``invalid_token`` or ``token_expired``, which repeat nothing of ``text``, and
        ``node_unavailable`` when the issuer's keys are not to be had.
        """
        if len(text) > MAX_JWT_CHARS or _JWT.fullmatch(text) is None:
            raise self._invalid("It is not a signed JWT.")
        try:
            signed = extract_compact(text.encode())
            head: object = signed.protected  # whatever JSON somebody wrote there
            if not isinstance(head, dict):
                raise self._invalid()
            key = await self._key(head)
            if key is None or not validate_compact(signed, key, registry=self._registry):
                raise self._invalid("No key of the issuer made its signature.")
        except UnsupportedAlgorithmError:
            raise self._invalid("It is signed with another algorithm than this edge takes.") from None
        except (JoseError, ValueError, TypeError):
            raise self._invalid() from None
        claims = self._read(signed.payload)
        self._check(claims)
        return claims

    async def _key(self, head: Mapping[str, Any]) -> Key | None:
        # Extensions that have to be understood (crit) are none that are understood here.
        if "crit" in head or str(head.get("typ", "JWT")).lower() not in _TYPES:
            raise self._invalid("It is a token for another purpose.")
        algorithm, key_id = head.get("alg"), head.get("kid")
        if not isinstance(algorithm, str) or not isinstance(key_id, str | None):
            raise self._invalid()
        self._registry.get_alg(algorithm)
        try:
            return await self._keys.find(key_id, algorithm)
        except IssuerUnavailable as error:
            # Clients take this code for a trouble that passes, and try again or elsewhere.
            text = f"The keys of {self._issuer} cannot be asked for. Try again in a moment; the edge's log has why."
            if error.retry_after is not None:
                text = f"This edge does not know the key of the token yet, and asks {self._issuer} for it again soon."
            raise ApiError("node_unavailable", text, retry_after=error.retry_after) from None

    def _read(self, payload: bytes) -> dict[str, Any]:
        try:
            return loads_object(payload)
        except ApiError:  # it is about a body, and nobody sent this as one
            raise self._invalid() from None

    def _check(self, claims: dict[str, Any]) -> None:
        try:
            self._claims.validate(claims)
        except ExpiredTokenError:
            raise self._expired() from None
        except (InvalidClaimError, MissingClaimError) as error:
            raise self._invalid(f"Its claim {error.claim!r} is missing or not the one that this edge takes.") from None
        if claims["exp"] <= time.time() + 1:  # a token needs a second to live
            raise self._expired()
        if "cnf" in claims:  # whoever shows it would have to prove that they hold a key (RFC 7800)
            raise self._invalid("It is bound to a key of its holder (cnf), which this edge cannot check.")

    def _invalid(self, why: str = "It cannot be read.") -> ApiError:
        return ApiError("invalid_token", f"This is no token of {self._issuer} for this edge. {why}")

    def _expired(self) -> ApiError:
        return ApiError("token_expired", f"The token of {self._issuer} has expired. Get a new one there.")


class _Registry(JWSRegistry):
    def get_alg(self, name: str) -> Any:
        """Without the library's word on the name EdDSA, which RFC 9864 replaces by Ed25519: issuers write it, and what
        it names is the same."""
        if name not in (self.allowed or ()) or name not in self.algorithms:
            raise UnsupportedAlgorithmError("not one of those that are allowed")
        return self.algorithms[name]
