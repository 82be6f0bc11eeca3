"""Answers of tailscaled v1.102.5, field by field as Go writes them; a test says what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

VERSION = "1.102.5"
NO_TIME = "0001-01-01T00:00:00Z"
METRICS = """\
# TYPE tailscaled_inbound_bytes_total counter
# HELP tailscaled_inbound_bytes_total Counts the number of bytes received from other peers
tailscaled_inbound_bytes_total{path="derp"} 20
tailscaled_inbound_bytes_total{path="direct_ipv4"} 156
# TYPE tailscaled_outbound_bytes_total counter
tailscaled_outbound_bytes_total{path="derp"} 22
# TYPE tailscaled_inbound_dropped_packets_total counter
tailscaled_inbound_dropped_packets_total{reason="acl"} 3
"""


def peer(number: int, name: str, *, tags: Sequence[str] = (), user: int = 1, **fields: Any) -> dict[str, Any]:
    """An ``ipnstate.PeerStatus``; ``fields`` are its own, and None takes one out."""
    addresses = [f"100.64.0.{number}", f"fd7a:115c:a1e0::{number}"]
    made = {
        "ID": str(number),
        "NodeID": number,
        "PublicKey": _key(number),
        "HostName": name,
        "DNSName": f"{name}.tail.test.",
        "OS": "linux",
        "UserID": user,
        "TailscaleIPs": addresses,
        "AllowedIPs": [f"{addresses[0]}/32", f"{addresses[1]}/128"],
        "Tags": list(tags) or None,
        "Addrs": None,
        "CurAddr": "",
        "Relay": "test",
        "PeerRelay": "",
        "RxBytes": 0,
        "TxBytes": 0,
        "Created": "2026-11-21T09:36:46.764085496Z",
        "LastWrite": NO_TIME,
        "LastSeen": NO_TIME,
        "LastHandshake": NO_TIME,
        "Online": True,
        "ExitNode": False,
        "ExitNodeOption": False,
        "Active": False,
        "PeerAPIURL": None,
        "TaildropTarget": 0,
        "NoFileSharingReason": "",
        "InNetworkMap": True,
        "InMagicSock": True,
        "InEngine": False,
        **fields,
    }
    return {key: value for key, value in made.items() if key in ("Addrs", "PeerAPIURL") or value is not None}


def node(number: int, name: str, *, tags: Sequence[str] = (), user: int = 1, **fields: Any) -> dict[str, Any]:
    """A ``tailcfg.Node``, as whois and the bus have it."""
    addresses = [f"100.64.0.{number}/32", f"fd7a:115c:a1e0::{number}/128"]
    made = {
        "ID": number,
        "StableID": str(number),
        "Name": f"{name}.tail.test.",
        "User": user,
        "Key": _key(number),
        "Addresses": addresses,
        "AllowedIPs": addresses,
        "Hostinfo": {"OS": "linux", "Hostname": name},
        "Created": "2026-11-21T09:36:46.764085496Z",
        "Cap": 142,
        "Tags": list(tags) or None,
        "Online": True,
        "MachineAuthorized": True,
        "ComputedName": name,
        "ComputedNameWithHost": name,
        **fields,
    }
    return {key: value for key, value in made.items() if value is not None}


def user(number: int, login: str) -> dict[str, Any]:
    return {"ID": number, "LoginName": login, "DisplayName": login}


def whois(
    number: int,
    name: str,
    *,
    login: str = "tagged-devices",
    capabilities: Mapping[str, Sequence[Any]] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """The answer for a caller; ``fields`` are the node's."""
    return {
        "Node": node(number, name, **fields),
        "UserProfile": user(fields.get("user", 1), login),
        "CapMap": capabilities,
    }


def ping(address: str, **fields: Any) -> dict[str, Any]:
    """A ping's answer: ``Endpoint="10.0.0.2:41641"`` is a direct path, ``DERPRegionID=1, DERPRegionCode="test"`` a
    relayed one, ``Err="…"`` none."""
    empty = {"Err": "", "LatencySeconds": 0.001, "Endpoint": "", "PeerRelay": "", "DERPRegionID": 0}
    return {"IP": address, "NodeIP": address, "NodeName": "gpu", **empty, "DERPRegionCode": "", **fields}


def _key(number: int) -> str:
    return f"nodekey:{number:064x}"
