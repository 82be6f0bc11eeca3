"""The members of a tailnet: who one is, and how it is reached now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from shared.tailscale.reading import (
    Json,
    capabilities,
    flag,
    host,
    mapping,
    moment,
    name,
    number,
    text,
    texts,
)


class Path(StrEnum):
    """How packets get to a peer. ``UNKNOWN``: there is no traffic to tell from."""

    DIRECT = "direct"
    PEER_RELAYED = "peer-relayed"
    RELAYED = "relayed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine as the control server describes it, the same from status, whois and bus.

    ``id`` is stable and opaque, ``number`` is what removals on the bus name. ``name`` is the MagicDNS name without a
    dot at its end; ``host_name`` is what the machine calls itself and not unique. A machine with ``tags`` belongs to
    nobody. ``online`` is the control server's opinion, which may lag behind the path. ``capabilities`` are those of
    the machine itself, not what it may do here: that is ``WhoIs.capabilities``. ``shared``: it is of another tailnet.
    """

    id: str
    number: int
    key: str = field(repr=False)
    name: str
    host_name: str
    os: str
    user: int
    addresses: tuple[str, ...]
    tags: tuple[str, ...]
    online: bool | None
    expired: bool
    key_expiry: datetime | None
    last_seen: datetime | None
    capabilities: Mapping[str, tuple[Any, ...]] = field(repr=False)
    shared: bool

    @classmethod
    def from_status(cls, peer: Json) -> Node:
        """Of an ``ipnstate.PeerStatus``."""
        return cls(
            id=text(peer.get("ID")),
            number=number(peer.get("NodeID")),
            key=text(peer.get("PublicKey")),
            name=name(peer.get("DNSName")),
            host_name=text(peer.get("HostName")),
            os=text(peer.get("OS")),
            user=number(peer.get("UserID")),
            addresses=texts(peer.get("TailscaleIPs")),
            tags=texts(peer.get("Tags")),
            online=flag(peer.get("Online")),
            expired=peer.get("Expired") is True,
            key_expiry=moment(peer.get("KeyExpiry")),
            last_seen=moment(peer.get("LastSeen")),
            capabilities=capabilities(peer.get("CapMap")),
            shared=peer.get("ShareeNode") is True,
        )

    @classmethod
    def from_node(cls, node: Json) -> Node:
        """Of a ``tailcfg.Node``, as whois and the bus have it."""
        machine = mapping(node.get("Hostinfo"))
        return cls(
            id=text(node.get("StableID")),
            number=number(node.get("ID")),
            key=text(node.get("Key")),
            name=name(node.get("Name")),
            host_name=text(machine.get("Hostname")),
            os=text(machine.get("OS")),
            user=number(node.get("User")),
            addresses=tuple(host(address) for address in texts(node.get("Addresses"))),
            tags=texts(node.get("Tags")),
            online=flag(node.get("Online")),
            expired=node.get("Expired") is True,
            key_expiry=moment(node.get("KeyExpiry")),
            last_seen=moment(node.get("LastSeen")),
            capabilities=capabilities(node.get("CapMap")),
            shared=machine.get("ShareeNode") is True,
        )


@dataclass(frozen=True, slots=True)
class Connection:
    """How a peer is reached, as of one status. ``active``: something was sent to it within 45 s. ``address`` is
    "ip:port" of a direct path; ``relay`` the region the peer is at home in, whichever path is used; ``peer_relay``
    "ip:port:vni". Bytes count since tailscaled started."""

    active: bool
    address: str
    relay: str
    peer_relay: str
    last_handshake: datetime | None
    received_bytes: int
    sent_bytes: int

    @classmethod
    def from_status(cls, peer: Json) -> Connection:
        return cls(
            active=peer.get("Active") is True,
            address=text(peer.get("CurAddr")),
            relay=text(peer.get("Relay")),
            peer_relay=text(peer.get("PeerRelay")),
            last_handshake=moment(peer.get("LastHandshake")),
            received_bytes=number(peer.get("RxBytes")),
            sent_bytes=number(peer.get("TxBytes")),
        )

    @property
    def path(self) -> Path:
        """One sample: a path flaps for some seconds when it changes, so believe two or three that agree."""
        if self.peer_relay:
            return Path.PEER_RELAYED
        if self.address:
            return Path.DIRECT
        return Path.RELAYED if self.active and self.relay else Path.UNKNOWN


@dataclass(frozen=True, slots=True)
class User:
    """A person, or the placeholder that all tagged machines have: decide by ``Node.tags``, never by the login."""

    id: int
    login: str
    name: str
    picture: str = field(repr=False)
    groups: tuple[str, ...]

    @classmethod
    def from_profile(cls, profile: Json) -> User:
        return cls(
            id=number(profile.get("ID")),
            login=text(profile.get("LoginName")),
            name=text(profile.get("DisplayName")),
            picture=text(profile.get("ProfilePicURL")),
            groups=texts(profile.get("Groups")),
        )
