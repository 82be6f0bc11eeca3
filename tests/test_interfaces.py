"""The addresses of network interfaces, as the kernel has them."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
import sys

import pytest

from shared.interfaces import addresses_of

# In a network namespace of its own, so that the machine's interfaces stay as they are.
SCRIPT = """
set -e
ip link set lo up
ip link add wg9 type veth peer name far9
ip link set far9 up
python=$1
$python -c 'from shared.interfaces import addresses_of; print(*addresses_of("wg9"))'
ip link set wg9 up
ip address add 10.9.0.2/24 dev wg9
ip address add 10.9.0.1/24 dev wg9
ip -6 address add fd09::1/64 dev wg9 nodad
$python -c 'from shared.interfaces import addresses_of; print(*addresses_of("wg9"))'
ip address del 10.9.0.2/24 dev wg9
$python -c 'from shared.interfaces import addresses_of; print(*addresses_of("wg9"))'
"""


def test_loopback_has_its_address() -> None:
    name = "lo0" if sys.platform == "darwin" else "lo"
    assert "127.0.0.1" in addresses_of(name)


def test_an_interface_that_is_not_there_has_none() -> None:
    assert addresses_of("nothing0") == ()


def test_every_address_is_one_that_can_be_listened_on() -> None:
    for _, name in socket.if_nameindex():
        for address in addresses_of(name):
            version = ipaddress.ip_address(address).version
            with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET) as sock:
                sock.bind((address, 0))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
)
def test_addresses_come_and_go_ipv4_first_and_link_local_left_out() -> None:
    command = ["unshare", "--net", "sh", "-c", SCRIPT, "sh", sys.executable]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == ["", "10.9.0.1 10.9.0.2 fd09::1", "fd09::1"]
