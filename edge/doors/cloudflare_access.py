"""The door for whoever Cloudflare Access let through: people who logged in there, and programs with a service token.

Access adds a signed token to each request that it passes on. The edge checks it, so that a request that found a way
around Access is not believed (developers.cloudflare.com/cloudflare-one/access-controls/applications/http-apps/
authorization-cookie/validating-json).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edge.doors.jwks import Jwks
from edge.doors.jwt import JwtVerifier
from edge.doors.pages import Page
from edge.plans import Plan
from edge.principals import Principal, access_id
from shared.contract.errors import ApiError

_ALGORITHMS = ("RS256",)
_CERTIFICATES = "/cdn-cgi/access/certs"
_SCOPES = ("chat",)
_MAX_NAME = 255  # characters; Access's are UUIDs and ids of 39


def issuer_of(team: str) -> str:
    """As tokens of the team ``example.cloudflareaccess.com`` name it."""
    return f"https://{team}"


def certificates_of(team: str) -> str:
    return issuer_of(team) + _CERTIFICATES


class CloudflareAccessDoor:
    """``issuer`` as ``issuer_of``; ``audience`` are tags (AUD) of applications. ``secret`` is that of ``access_id``. It
    closes ``keys``. ``HEADER`` is where Access puts its token."""

    HEADER = b"cf-access-jwt-assertion"

    def __init__(self, issuer: str, audience: Collection[str], keys: Jwks, *, plan: str, secret: bytes) -> None:
        self._issuer = issuer
        self._keys = keys
        self._verifier = JwtVerifier(issuer, audience, _ALGORITHMS, keys)
        self._plan = plan
        self._secret = secret

    async def close(self) -> None:
        await self._keys.close()

    async def enter(
        self, assertion: str, page: Page, *, allowed_origins: Collection[str], plans: Mapping[str, Plan]
    ) -> Principal:
        """Who logged in, or the service token's name, until the assertion's end.

        Raises ApiError as ``OidcDoor.enter`` does.
        """
        # The browser sends Access's cookie with what any page asks, so the page has to be one of ours.
        origin = page.listed_or_program(allowed_origins)
        claims = await self._verifier.claims(assertion)
        # A person has an id in sub; a service token has its client id in common_name, and an empty sub.
        subject, name = claims.get("sub") or "", claims.get("common_name") or ""
        who = ("person", subject) if subject else ("service", name)
        if claims.get("type") != "app" or not isinstance(who[1], str) or not 0 < len(who[1]) <= _MAX_NAME:
            raise ApiError("invalid_token", "The token of Cloudflare Access is not one for an application's user.")
        plan = plans.get(self._plan)
        if plan is None:
            text = f"There is no plan {self._plan!r} here, which callers from Cloudflare Access are on: add it."
            raise ApiError("insufficient_scope", text)
        return Principal(
            access_id(self._secret, self._issuer, *who),
            "access",
            plan.name,
            _SCOPES,
            origin=origin,
            expires_at=int(claims["exp"]),
        )
