"""What is true of the tailnet at one moment, and how a notification changes it. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shared.tailscale.bus import HealthWarning, Notification
from shared.tailscale.errors import TailscaleError
from shared.tailscale.nodes import Node, User
from shared.tailscale.states import State, not_running
from shared.tailscale.status import Status


@dataclass(frozen=True, slots=True)
class View:
    """``failure`` is why tailscaled cannot be asked; the rest is then what it last said. ``node`` is this machine and
    ``addresses`` its own; ``peers`` by their number. What each means is said at ``Status``."""

    failure: TailscaleError | None = None
    state: State | None = None
    auth_url: str = ""
    tun: bool | None = None
    node: Node | None = None
    addresses: tuple[str, ...] = ()
    suffix: str = ""
    peers: Mapping[int, Node] = field(default_factory=dict)
    users: Mapping[int, User] = field(default_factory=dict)
    warnings: Mapping[str, HealthWarning] = field(default_factory=dict)

    @property
    def problem(self) -> TailscaleError | None:
        """Why nothing can go through the tailnet now; None when it can."""
        if self.failure is not None:
            return self.failure
        return not_running(self.state, self.auth_url, expired=self.node is not None and self.node.expired)

    def find(self, wanted: str) -> tuple[Node, ...]:
        """The peers meant by an address, by a tag ("tag:gpu"), or by a MagicDNS name, whole or its first part."""
        if wanted.startswith("tag:"):
            return tuple(peer for peer in self.peers.values() if wanted in peer.tags)
        try:
            address = str(ipaddress.ip_address(wanted))  # as Go writes it
        except ValueError:
            name = wanted.removesuffix(".").lower()
            names = {name, f"{name}.{self.suffix}".lower()}
            return tuple(peer for peer in self.peers.values() if peer.name.lower() in names)
        return tuple(peer for peer in self.peers.values() if address in peer.addresses)

    @classmethod
    def of(cls, status: Status, warnings: Mapping[str, HealthWarning] | None = None) -> View:
        return cls(
            state=status.state,
            auth_url=status.auth_url,
            tun=status.tun,
            node=status.node,
            addresses=status.addresses,
            suffix=status.suffix,
            peers={peer.node.number: peer.node for peer in status.peers},
            users=status.users,
            warnings=warnings or {},
        )


def after(view: View, notification: Notification) -> View:
    """``view`` with what ``notification`` says. Its status, where it has one, replaces everything else."""
    told = notification
    if told.status is not None:
        view = View.of(told.status)
    if told.state_told:
        # Where a login was asked for, its address is of no use any more once the state has moved on.
        view = replace(view, state=told.state, auth_url=view.auth_url if told.state is State.NEEDS_LOGIN else "")
    if told.browse_to:
        view = replace(view, auth_url=told.browse_to)
    if told.node is not None:
        view = replace(view, node=told.node, addresses=told.node.addresses)
    if told.changed or told.removed:
        changed = {peer.number: peer for peer in told.changed}
        kept = {number: peer for number, peer in view.peers.items() if number not in told.removed}
        view = replace(view, peers={**kept, **changed})
    if told.users:
        view = replace(view, users={**view.users, **told.users})
    return view if told.warnings is None else replace(view, warnings=told.warnings)
