"""In the group edge: whether those whose word counts at its doors can be asked for their keys."""

from __future__ import annotations

from collections.abc import Sequence

from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe
from hearthlink.doctor.report import Group, Line

EDGE = Group("edge")
_SECONDS = 8.0


def probes(machine: Machine) -> list[Probe]:
    return [Probe(EDGE, "issuers", lambda: issuers(machine), _SECONDS)]


async def issuers(machine: Machine) -> Sequence[Line]:
    """A line for each that the settings name."""
    edge = machine.settings.edge
    if not machine.has_edge:
        return []
    found: list[Line] = []
    if edge.oidc.issuer is not None:
        found.append(await _asked(machine, edge.oidc.issuer, edge.oidc.jwks_url))
    if edge.cloudflare_access.team is not None:
        from edge.doors.cloudflare_access import certificates_of, issuer_of

        team = edge.cloudflare_access.team
        found.append(await _asked(machine, issuer_of(team), certificates_of(team)))
    return found


async def _asked(machine: Machine, issuer: str, url: str | None) -> Line:
    from edge.doors.jwks import IssuerUnavailable, Jwks

    keys = Jwks(issuer, url)
    try:
        await keys.fetch()
    except IssuerUnavailable as error:
        text = f"Nobody comes in by {issuer}: {error}"
        return EDGE.broken("issuers", text, machine.edit)
    finally:
        await keys.close()
    return EDGE.ok("issuers", f"{issuer} gives out its keys.")
