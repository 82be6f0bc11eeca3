"""The caller's IP address: the socket's peer, or what proxies we trust say about it; and whether it may call."""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from edge.principals import address_block

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

UNKNOWN = "unknown"  # a peer without an address; all of them share one rate
# More proxies than this in a row is a forged header, not a network.
_MAX_HOPS = 16
# What stands between two commas: an address, IPv4 with a port, IPv6 in brackets with or without one. No zone: "%" is
# free text and has no meaning on another machine.
_HOP = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})", re.ASCII)


class ClientAddress:
    """Reads the caller's address from a request.

    ``trusted_proxies`` are addresses or networks, as the settings check them. Only when the socket's peer is one of
    them is X-Forwarded-For read, from the right: each entry was written by the hop after it, so the first that we do
    not trust is the caller, and whatever stands left of it may be forged.
    """

    def __init__(self, trusted_proxies: Sequence[str] = ()) -> None:
        self._trusted = _Networks(trusted_proxies)

    def of(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The caller of a request from ``peer`` (ASGI ``scope["client"][0]``) with ``headers`` (ASGI, names in lower
        case), in canonical form; an IPv4-mapped IPv6 address is its IPv4 address. Never raises."""
        if peer is None:
            return UNKNOWN
        if not self._trusted and ":" not in peer:
            return peer
        caller = _parse(peer.partition("%")[0])
        if caller is None:
            return UNKNOWN
        if not self._trusts(caller):
            return str(caller)
        for hop in _hops_from_the_right(headers):
            address = _parse_hop(hop)
            if address is None:
                break
            caller = address
            if not self._trusts(caller):
                break
        return str(caller)

    def whose_connection(self, peer: str) -> str | None:
        """The caller that a connection from ``peer`` counts for; None where it may be anybody's: a trusted proxy's, or
        one of this machine, through which SSH, tailscaled and others connect for whom they serve."""
        address = _parse(peer.partition("%")[0])
        if address is None or address.is_loopback or self._trusts(address):
            return None
        return address_block(str(address))

    def _trusts(self, address: Address) -> bool:
        return address in self._trusted


class _Networks:
    """Addresses and networks, however many: one look takes a microsecond."""

    def __init__(self, texts: Sequence[str]) -> None:
        networks = [ipaddress.ip_network(text, strict=False) for text in texts]
        fours = ipaddress.collapse_addresses(one for one in networks if isinstance(one, ipaddress.IPv4Network))
        sixes = ipaddress.collapse_addresses(one for one in networks if isinstance(one, ipaddress.IPv6Network))
        self._ranges = {4: _ranges(fours), 6: _ranges(sixes)}

    def __bool__(self) -> bool:
        return any(firsts for firsts, _ in self._ranges.values())

    def __contains__(self, address: Address) -> bool:
        firsts, lasts = self._ranges[address.version]
        place = bisect_right(firsts, number := int(address)) - 1
        return place >= 0 and number <= lasts[place]


def _ranges(networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> tuple[list[int], list[int]]:
    """The first and the last address of each of ``networks``, which are sorted and have none in common."""
    ends = [(int(one.network_address), int(one.broadcast_address)) for one in networks]
    return [first for first, _ in ends], [last for _, last in ends]


class AddressLists:
    """Who may call, by address or network as the settings check them: all but ``denied``, or of ``allowed`` all but
    ``denied``."""

    def __init__(self, allowed: Sequence[str] = (), denied: Sequence[str] = ()) -> None:
        self._allowed, self._denied = _Networks(allowed), _Networks(denied)
        self.empty = not self._allowed and not self._denied

    def allow(self, caller: str) -> bool:
        """Whether the caller at the address ``caller``, as ``ClientAddress.of`` gives it, may call. One whose address
        is not known may not."""
        if self.empty:
            return True
        address = _parse(caller)
        if address is None or address in self._denied:
            return False
        return not self._allowed or address in self._allowed


def behind_serve(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller of a request that Tailscale Serve passed on: it writes X-Forwarded-For itself, one address, no zone.
    Never raises."""
    lines = [value for name, value in headers if name == b"x-forwarded-for"]
    caller = _parse(lines[0].decode("latin-1")) if len(lines) == 1 else None
    return UNKNOWN if caller is None else str(caller)


def _hops_from_the_right(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    # Several header lines are one list, in order (RFC 9110 §5.3).
    lines = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    return [hop.strip(" \t") for hop in ",".join(lines).rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]][::-1] if lines else []


def _parse_hop(text: str) -> Address | None:
    match = _HOP.fullmatch(text)
    return _parse(match[1] or match[2] or match[3]) if match else None


def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    return None if address.scope_id else address.ipv4_mapped or address
