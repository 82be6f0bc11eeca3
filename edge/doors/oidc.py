"""The door for people whom an OpenID Connect issuer knows (Auth0, Keycloak, …): its access token, exchanged for one of
ours.

It is shown here only, so that its length and its issuer's troubles stay out of every other request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edge.doors.jwks import Jwks
from edge.doors.jwt import JwtVerifier
from edge.doors.pages import Page
from edge.plans import Plan
from edge.principals import Principal, oidc_id
from shared.contract.errors import ApiError

# The right to administer comes with an API key or a grant of the tailnet: a claim may be what a user wrote.
_SCOPES = ("chat",)
_MAX_SUBJECT = 255  # characters (OpenID Connect Core 1.0 §2)


class OidcDoor:
    """``plan_claim`` names the claim with the caller's plan; a token without it gets ``plan``. ``secret`` is that of
    ``oidc_id``. It closes ``keys``."""

    def __init__(
        self,
        issuer: str,
        audience: Collection[str],
        algorithms: Collection[str],
        keys: Jwks,
        *,
        plan: str,
        plan_claim: str | None,
        secret: bytes,
    ) -> None:
        self._issuer = issuer
        self._keys = keys
        self._verifier = JwtVerifier(issuer, audience, algorithms, keys)
        self._plan = plan
        self._plan_claim = plan_claim
        self._secret = secret

    async def close(self) -> None:
        await self._keys.close()

    async def enter(
        self, bearer: str, page: Page, *, allowed_origins: Collection[str], plans: Mapping[str, Plan]
    ) -> Principal:
        """Whom the issuer means, locked to the page's origin where a page asks, until the bearer's own end.

        Raises ApiError ``origin_not_allowed``, what ``JwtVerifier.claims`` raises, and ``insufficient_scope`` when
        there is no plan of the name that the token says.
        """
        origin = page.listed_or_program(allowed_origins)
        claims = await self._verifier.claims(bearer)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT:
            raise ApiError("invalid_token", f"The token of {self._issuer} does not say whose it is (sub).")
        plan = self._plan_of(claims, plans)
        return Principal(
            oidc_id(self._secret, self._issuer, subject),
            "oidc",
            plan.name,
            _SCOPES,
            origin=origin,
            expires_at=int(claims["exp"]),
        )

    def _plan_of(self, claims: Mapping[str, Any], plans: Mapping[str, Plan]) -> Plan:
        name = claims.get(self._plan_claim, self._plan) if self._plan_claim is not None else self._plan
        plan = plans.get(name) if isinstance(name, str) else None
        if plan is None:
            text = f"Your token is for the plan {str(name)[:64]!r}, which this edge does not have. Its owner adds it."
            raise ApiError("insufficient_scope", text)
        return plan
