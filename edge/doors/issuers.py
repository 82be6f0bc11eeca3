"""The doors at which somebody else's word counts, an issuer of signed tokens: opened where the settings name one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.settings_edge import CloudflareAccessSettings, EdgeSettings, OidcSettings

if TYPE_CHECKING:  # their libraries take 0.3 s to import, which nobody else should wait for
    from edge.doors.cloudflare_access import CloudflareAccessDoor
    from edge.doors.oidc import OidcDoor


@dataclass(slots=True)
class Issuers:
    """None is a door that is off."""

    oidc: OidcDoor | None = None
    access: CloudflareAccessDoor | None = None


@asynccontextmanager
async def open_issuers(settings: EdgeSettings, secret: bytes) -> AsyncIterator[Issuers]:
    """The doors that ``settings`` name, which ask their issuers from the start; closed when the block is left.
    ``secret`` is that of ``oidc_id`` and ``access_id``."""
    issuers = Issuers(_oidc(settings.oidc, secret), _access(settings.cloudflare_access, secret))
    try:
        yield issuers
    finally:
        for door in (issuers.oidc, issuers.access):
            if door is not None:
                await door.close()


def _oidc(settings: OidcSettings, secret: bytes) -> OidcDoor | None:
    if settings.issuer is None:
        return None
    from edge.doors.jwks import Jwks
    from edge.doors.oidc import OidcDoor

    keys = Jwks(settings.issuer, settings.jwks_url)
    keys.ask()
    return OidcDoor(
        settings.issuer,
        settings.audience,
        settings.algorithms,
        keys,
        plan=settings.plan,
        plan_claim=settings.plan_claim,
        secret=secret,
    )


def _access(settings: CloudflareAccessSettings, secret: bytes) -> CloudflareAccessDoor | None:
    if settings.team is None:
        return None
    from edge.doors.cloudflare_access import CloudflareAccessDoor, certificates_of, issuer_of
    from edge.doors.jwks import Jwks

    issuer = issuer_of(settings.team)
    keys = Jwks(issuer, certificates_of(settings.team))
    keys.ask()
    return CloudflareAccessDoor(issuer, settings.audience, keys, plan=settings.plan, secret=secret)
