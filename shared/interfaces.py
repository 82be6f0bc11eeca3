"""The addresses of this machine's network interfaces, from getifaddrs(3): the same on Linux and macOS."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator


class _Entry(ctypes.Structure):
    """``struct ifaddrs``, as far as Linux and macOS agree on it."""


_Entry._fields_ = [
    ("next", ctypes.POINTER(_Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]

# Family -> where in its sockaddr the address begins, and its bytes.
_WHERE: dict[int, tuple[int, int]] = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
# macOS writes the length of a sockaddr into its first byte, and the family into the second.
_FAMILY_AT, _FAMILY_TYPE = (1, ctypes.c_uint8) if sys.platform == "darwin" else (0, ctypes.c_uint16)


def addresses_of(name: str) -> tuple[str, ...]:
    """The IPv4 and IPv6 addresses that the network interface ``name`` has now, IPv4 first; none when there is no such
    interface. Link-local ones are left out: they mean nothing without the interface. Raises OSError."""
    found = {address for interface, address in _all() if interface == name and not address.is_link_local}
    return tuple(str(address) for address in sorted(found, key=lambda address: (address.version, address.packed)))


def _all() -> Iterator[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Entry)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        entry = first
        while entry:
            if (address := _address(entry.contents.address)) is not None:
                yield os.fsdecode(entry.contents.name), address
            entry = entry.contents.next
    finally:
        libc.freeifaddrs(first)


def _address(pointer: int | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read ``struct sockaddr_in`` or ``sockaddr_in6``; None for the other families, and for no address."""
    if not pointer:
        return None
    family = _FAMILY_TYPE.from_address(pointer + _FAMILY_AT).value
    if family not in _WHERE:
        return None
    offset, size = _WHERE[family]
    return ipaddress.ip_address(ctypes.string_at(pointer + offset, size))
