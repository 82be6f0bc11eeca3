"""The public keys of an issuer (a JWKS, RFC 7517): asked for over HTTPS, kept, asked for again when they rotate.

fresh for ten minutes   a key that the issuer took back opens nothing after that
an unknown key id       asks again at once, but not twice within half a minute: anybody can invent one, and until then
                        nobody knows whether the issuer has it by now
the issuer is down      the keys of the last answer serve on, for a day
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import httpx2
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, RSAKey
from loguru import logger

from shared import __version__
from shared.addresses import https_or_loopback, is_loopback

# Seconds.
_FRESH = 600.0
_SERVED_STALE = 86_400.0
_BETWEEN_ASKS = 30.0
_AFTER_FAILURE = 2.0  # when a 503 tells callers to come back
_WITHIN = 5.0  # for all requests of one ask
_MAX_ANSWER = 256 * 1024  # bytes; Auth0's is 6 KiB
_MAX_KEYS = 100
_MIN_RSA_BITS = 2048  # NIST SP 800-131A, and what RFC 7518 §3.3 demands
_DISCOVERY = "/.well-known/openid-configuration"
# What a public key is made of and marked with. A private key that somebody published by mistake is read as its public
# half.
_PUBLIC = frozenset({"kty", "crv", "n", "e", "x", "y", "kid", "use", "alg"})
# Algorithm to the type and the curve of its keys (RFC 7518 §3.1, RFC 8037). None of them takes a shared secret.
_KINDS: Mapping[str, tuple[str, str | None]] = MappingProxyType(
    {
        **dict.fromkeys(("RS256", "RS384", "RS512", "PS256"), ("RSA", None)),
        "ES256": ("EC", "P-256"),
        "ES384": ("EC", "P-384"),
        "EdDSA": ("OKP", "Ed25519"),
    }
)


class IssuerUnavailable(Exception):
    """The issuer's keys are not to be had; the text says why, for the owner. ``retry_after`` are the seconds until they
    are asked for again, where that is held back."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Published:
    """One key of the set, as the issuer marked it."""

    key: Key
    key_id: str | None
    algorithm: str | None
    kind: tuple[str, str | None]

    def verifies(self, algorithm: str) -> bool:
        return self.kind == _KINDS[algorithm] and self.algorithm in (None, algorithm)


class Jwks:
    """The keys at ``url``, or without it where the discovery document of ``issuer`` says (OpenID Connect Discovery 1.0
    §4). Whoever makes it closes it; on one event loop. ``monotonic`` gives seconds."""

    def __init__(self, issuer: str, url: str | None = None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._url = url
        self._monotonic = monotonic
        self._keys: list[_Published] = []
        self._fetched_at = -math.inf
        self._asked_at = -math.inf
        self._fault: str | None = None  # why the last ask failed
        self._asking: asyncio.Task[None] | None = None
        # A proxy of the environment is for other machines. A redirect would be another issuer's word.
        local = is_loopback(urlsplit(url or issuer).hostname or "")
        self._http = httpx2.AsyncClient(
            trust_env=not local,
            follow_redirects=False,
            timeout=_WITHIN,
            headers={"User-Agent": f"hearthlink/{__version__}", "Accept": "application/json"},
        )

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._http.aclose()

    def ask(self) -> None:
        """Begin to fetch the keys, so that the first caller finds them. Needs a running loop; what goes wrong is
        logged."""
        if self._asking is None or self._asking.done():
            self._asked_at = self._monotonic()
            self._asking = asyncio.create_task(self._refresh())

    async def find(self, key_id: str | None, algorithm: str) -> Key | None:
        """The key that signs ``algorithm`` under ``key_id``; without an id, the only one that could. None when the
        issuer has none. Raises IssuerUnavailable when that cannot be said."""
        now = self._monotonic()
        if now - self._fetched_at > _SERVED_STALE:
            self._keys = []
        found = self._pick(key_id, algorithm)
        if found is not None and now - self._fetched_at <= _FRESH:
            return found
        failing = self._fault is not None
        if now - self._asked_at >= (_AFTER_FAILURE if failing else _BETWEEN_ASKS):
            self.ask()
        held_back = self._asking is None or self._asking.done()
        # While the issuer is down, nobody waits for it who can be answered from what it said before.
        if self._asking is not None and not (failing and found is not None):
            await asyncio.shield(self._asking)
            found = self._pick(key_id, algorithm)
        if found is None and self._fault is not None:
            raise IssuerUnavailable(self._fault)
        if held_back and found is None and key_id is not None and all(one.key_id != key_id for one in self._keys):
            text = f"{self._issuer} was asked a moment ago and had no such key."
            raise IssuerUnavailable(text, self._asked_at + _BETWEEN_ASKS - now)
        return found

    def _pick(self, key_id: str | None, algorithm: str) -> Key | None:
        fitting = [one for one in self._keys if one.verifies(algorithm)]
        if key_id is None:
            return fitting[0].key if len(fitting) == 1 else None
        return next((one.key for one in fitting if one.key_id == key_id), None)

    async def fetch(self) -> None:
        """Ask for the keys now. Raises IssuerUnavailable, keeping those of before."""
        try:
            async with asyncio.timeout(_WITHIN):
                url = self._url or await self._discover()
                keys = _read(await self._get(url))
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise IssuerUnavailable(_sentence(self._url or self._issuer, error)) from None
        if not keys:
            raise IssuerUnavailable(f"There is no key at {url} that could have signed a token.")
        self._keys, self._fetched_at = keys, self._monotonic()

    async def _refresh(self) -> None:
        try:
            await self.fetch()
        except IssuerUnavailable as error:
            if str(error) != self._fault:
                logger.warning("the keys of {} are not to be had: {}", self._issuer, error)
            self._fault = str(error)
            return
        if self._fault is not None:
            logger.info("the keys of {} are there again", self._issuer)
        self._fault = None

    async def _discover(self) -> str:
        url = self._issuer.rstrip("/") + _DISCOVERY
        document = await self._get(url)
        if document.get("issuer") != self._issuer:  # else one issuer could speak for another (§4.3)
            raise IssuerUnavailable(
                f"{url} is the document of {str(document.get('issuer'))[:200]!r}, not of {self._issuer!r}: write"
                " edge.oidc.issuer exactly as it stands there."
            )
        try:
            return https_or_loopback(str(document.get("jwks_uri")))
        except ValueError as error:
            raise IssuerUnavailable(f"The jwks_uri in {url} {error}.") from None

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._http.stream("GET", url) as response:
            if response.status_code != 200:
                raise IssuerUnavailable(f"{url} answered HTTP {response.status_code}. Is it the right address?")
            raw = bytearray()
            async for piece in response.aiter_bytes():
                raw += piece
                if len(raw) > _MAX_ANSWER:
                    raise IssuerUnavailable(f"{url} answered with more than {_MAX_ANSWER // 1024} KiB.")
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise IssuerUnavailable(f"{url} did not answer with a JSON object. Is it the right address?")
        return document


def _read(document: Mapping[str, Any]) -> list[_Published]:
    """Those keys of a set that can verify a signature. One that is odd does not take the others with it."""
    listed = document.get("keys")
    keys = listed[:_MAX_KEYS] if isinstance(listed, list) else []
    return [published for one in keys if isinstance(one, dict) and (published := _published(one)) is not None]


def _published(data: Mapping[str, Any]) -> _Published | None:
    if data.get("use", "sig") != "sig" or data.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if data["kty"] == "RSA" and len(str(data.get("n"))) * 6 < _MIN_RSA_BITS:  # the library would warn of it, and go on
        return None
    try:
        key = JWKRegistry.import_key({name: value for name, value in data.items() if name in _PUBLIC})
    except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError):
        return None
    if isinstance(key, RSAKey) and key.raw_value.key_size < _MIN_RSA_BITS:
        return None
    curve = None if data["kty"] == "RSA" else str(data.get("crv"))
    return _Published(key, data.get("kid"), data.get("alg"), (data["kty"], curve))


def _sentence(url: str, error: Exception) -> str:
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return f"{url} did not answer within {_WITHIN:g} s."
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    why = cause.strerror if isinstance(cause, OSError) else str(error) or type(error).__name__
    return f"{url} cannot be reached ({why}). Check it in the settings, and the network."
