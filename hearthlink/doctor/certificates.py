"""In the groups edge and node: do the certificates of links work, and until when? An edge or node whose own certificate
expired while it ran finds out when the next link is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe, in_thread
from hearthlink.doctor.report import Group, Line

if TYPE_CHECKING:
    from shared.settings import TlsSettings

EDGE, NODE = Group("edge"), Group("node")
_SECONDS = 5.0
# Seconds before the end that leave time to make a new one.
_SOON = 14 * 86400.0


def probes(machine: Machine) -> list[Probe]:
    return [Probe(EDGE, "certificates", lambda: in_thread(lambda: certificates(machine)), _SECONDS)]


def certificates(machine: Machine) -> Sequence[Line]:
    """A line for each section that has any."""
    settings = machine.settings
    found: list[Line] = []
    if machine.has_edge:
        for name, upstream in settings.edge.upstreams.items():
            found += _section(EDGE, f"edge.upstreams.{name}.tls", upstream.tls)
    if machine.has_node:
        found += _section(NODE, "node.tls", settings.node.tls)
    return found


def _section(group: Group, name: str, settings: TlsSettings) -> Iterator[Line]:
    from shared.tls import TlsError, valid_until

    if settings.certificate is None:
        return
    show = f"openssl x509 -in '{settings.certificate}' -noout -dates"
    try:
        ends = valid_until(settings, server_side=group is NODE)
    except TlsError as error:
        yield group.broken("certificates", f"No link with {name}: {error}", show)
        return
    day = datetime.fromtimestamp(ends, UTC).date()
    if ends < time.time() + _SOON:
        text = f"The certificates of {name} end on {day}, and every link with them. Put new ones there, and restart."
        yield group.warning("certificates", text, show)
    else:
        yield group.ok("certificates", f"The certificates of {name} work, until {day}.")
