"""The answer of ``status``: this machine, its tailnet, and every peer with how it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.tailscale.errors import NotRunning
from shared.tailscale.nodes import Connection, Node, User
from shared.tailscale.reading import Json, flag, mapping, name, text, texts
from shared.tailscale.states import State, not_running


@dataclass(frozen=True, slots=True)
class Peer:
    node: Node
    connection: Connection


@dataclass(frozen=True, slots=True)
class Status:
    """``addresses`` are this machine's in the tailnet, v4 and v6, none before the first login. ``tun`` False is
    userspace networking: no interface has them. ``node`` is this machine, None before the first login; ``suffix`` the
    MagicDNS domain; ``certificate_names`` those that certificates are given for; ``health`` sentences of trouble."""

    version: str
    state: State | None
    auth_url: str
    tun: bool | None
    addresses: tuple[str, ...]
    node: Node | None
    peers: tuple[Peer, ...]
    users: Mapping[int, User]
    tailnet: str
    suffix: str
    magic_dns: bool | None
    certificate_names: tuple[str, ...]
    health: tuple[str, ...]

    @property
    def problem(self) -> NotRunning | None:
        """Why this machine is not in its tailnet; None when it is."""
        return not_running(self.state, self.auth_url, expired=self.node is not None and self.node.expired)

    @classmethod
    def read(cls, answer: Json) -> Status:
        own = mapping(answer.get("Self"))
        tailnet = mapping(answer.get("CurrentTailnet"))
        users = [User.from_profile(mapping(profile)) for profile in mapping(answer.get("User")).values()]
        return cls(
            version=text(answer.get("Version")),
            state=State.read(answer.get("BackendState")),
            auth_url=text(answer.get("AuthURL")),
            tun=flag(answer.get("TUN")),
            addresses=texts(answer.get("TailscaleIPs")),
            node=Node.from_status(own) if text(own.get("ID")) else None,
            peers=tuple(
                Peer(Node.from_status(mapping(peer)), Connection.from_status(mapping(peer)))
                for peer in mapping(answer.get("Peer")).values()
            ),
            users={user.id: user for user in users},
            tailnet=text(tailnet.get("Name")),
            suffix=name(tailnet.get("MagicDNSSuffix") or answer.get("MagicDNSSuffix")),
            magic_dns=flag(tailnet.get("MagicDNSEnabled")),
            certificate_names=tuple(name(item) for item in texts(answer.get("CertDomains"))),
            health=texts(answer.get("Health")),
        )
