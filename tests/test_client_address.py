"""Whose address counts: the peer's, or what listed proxies wrote, and never what a caller wrote."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.client_address import UNKNOWN, AddressLists, ClientAddress
from edge.principals import address_block

PROXIES = ClientAddress(["127.0.0.1", "10.0.0.0/8", "fd00::/8"])
CALLER = "203.0.113.7"


def forwarded(*lines: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"host", b"edge.example.com"),
        *((b"x-forwarded-for", line.encode("latin-1", "replace")) for line in lines),
    ]


@pytest.mark.parametrize("peer", ["198.51.100.9", "2001:db8::9", "100.64.0.1"])
def test_a_peer_that_is_no_proxy_is_the_caller(peer: str) -> None:
    for who in (PROXIES, ClientAddress()):
        assert who.of(peer, forwarded("1.2.3.4")) == peer


def test_without_listed_proxies_even_loopback_is_not_believed() -> None:
    assert ClientAddress().of("127.0.0.1", forwarded(CALLER)) == "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "lines", "caller"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [CALLER], CALLER),
        ("127.0.0.1", [f"1.2.3.4, {CALLER}"], CALLER),  # what the caller sent stands left
        ("127.0.0.1", ["1.2.3.4", CALLER], CALLER),  # two header lines are one list
        ("127.0.0.1", [f"{CALLER}, 10.1.1.1", "10.2.2.2"], CALLER),
        ("127.0.0.1", [f"1.2.3.4,{CALLER},10.1.1.1"], CALLER),
        ("127.0.0.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),  # proxies all the way
        ("127.0.0.1", [f"{CALLER}:4711"], CALLER),
        ("127.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("127.0.0.1", ["[2001:db8::7]"], "2001:db8::7"),
        ("127.0.0.1", ["[2001:DB8:0::7]:4711"], "2001:db8::7"),
        ("127.0.0.1", [f"::ffff:{CALLER}"], CALLER),
        ("::ffff:127.0.0.1", [CALLER], CALLER),
        ("fd00::1", [CALLER], CALLER),
        ("fd00::1%eth0", [CALLER], CALLER),
        ("127.0.0.1", [f" \t{CALLER}\t "], CALLER),
    ],
)
def test_the_walk_from_the_right(peer: str, lines: list[str], caller: str) -> None:
    assert PROXIES.of(peer, forwarded(*lines)) == caller


@pytest.mark.parametrize(
    "garbage",
    ["", "unknown", "_hidden", "localhost", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.4:port", "1.2.3.4\0",
     "2001:db8::7:x", "[2001:db8::7", "2001:db8::7]", "fe80::1%eth0", "[fe80::1%25eth0]", "1.2.3.4;x", "'1.2.3.4'",
     "١.2.3.4", "::", "1" * 5000],
)  # fmt: skip
def test_garbage_stops_the_walk_at_the_last_hop_that_is_sure(garbage: str) -> None:
    stop = "::" if garbage == "::" else "10.1.1.1"  # "::" is an address, if an odd one
    assert PROXIES.of("127.0.0.1", forwarded(f"{CALLER}, {garbage}, 10.1.1.1")) == stop


def test_other_headers_are_not_read() -> None:
    headers = [(b"x-real-ip", b"1.2.3.4"), (b"forwarded", b"for=1.2.3.4"), (b"x_forwarded_for", b"1.2.3.4")]
    assert PROXIES.of("127.0.0.1", headers) == "127.0.0.1"


@pytest.mark.case("B30")
@given(st.lists(st.text(max_size=40) | st.ip_addresses().map(str), max_size=30))
def test_nothing_a_caller_writes_changes_its_address(written: list[str]) -> None:
    header = ",".join([*written, CALLER, "10.0.0.9"]).encode("utf-8", "replace")
    assert PROXIES.of("127.0.0.1", [(b"x-forwarded-for", header)]) == CALLER
    assert PROXIES.of(CALLER, [(b"x-forwarded-for", header)]) == CALLER


ADDRESS = st.ip_addresses().map(str)
PROXY = st.sampled_from(["127.0.0.1", "10.0.0.1", "10.255.255.254", "fd00::1", "fdff::9"])


def spellings(address: str) -> st.SearchStrategy[str]:
    """Other ways to write ``address`` that proxies use."""
    if ":" in address:
        ways = [address, f"[{address}]", f"[{address}]:443", address.upper(), ip_address(address).exploded]
    else:
        ways = [address, f"{address}:51234", f"::ffff:{address}", f"[::ffff:{address}]:1"]
    return st.sampled_from(ways)


@pytest.mark.case("B30")
@given(st.lists(st.text(max_size=20) | ADDRESS, max_size=5), st.lists(PROXY, max_size=5), st.data())
def test_a_caller_is_the_same_however_its_address_is_written_and_the_header_is_cut(
    forged: list[str], proxies: list[str], data: st.DataObject
) -> None:
    caller = data.draw(st.sampled_from([CALLER, "2001:db8::7"]))
    hops = [*forged, *(data.draw(spellings(hop)) for hop in (caller, *proxies))]
    lines, line = [], hops[:1]
    for hop in hops[1:]:  # each comma may as well be a new header line
        if data.draw(st.booleans()):
            lines.append(",".join(line))
            line = []
        line.append(data.draw(st.sampled_from(["", " ", "\t"])) + hop)
    found = PROXIES.of("127.0.0.1", forwarded(*lines, ",".join(line)))
    assert address_block(found) == address_block(caller)


@pytest.mark.case("B30")
@given(PROXY | ADDRESS, st.lists(PROXY | ADDRESS | st.sampled_from(["", "unknown", "1.2.3", "x:1"]), max_size=16))
def test_the_caller_is_the_first_from_the_right_that_nobody_trusts(peer: str, hops: list[str]) -> None:
    """As a plain reading of the rule has it, over chains of any make."""

    def trusted(address: str) -> bool:
        return any(ip_address(address) in ip_network(block) for block in ("127.0.0.1", "10.0.0.0/8", "fd00::/8"))

    caller, chain = peer, list(hops)
    while trusted(caller) and chain and is_address(chain[-1]):
        caller = chain.pop()
    assert address_block(PROXIES.of(peer, forwarded(",".join(hops)))) == address_block(str(ip_address(caller)))


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@pytest.mark.case("B30")
@given(st.binary(max_size=300))
def test_any_bytes_give_an_address(value: bytes) -> None:
    assert PROXIES.of("127.0.0.1", [(b"x-forwarded-for", value)])


def test_a_long_chain_of_listed_proxies_ends() -> None:
    chain = ",".join([CALLER, *(f"10.0.{n // 250}.{n % 250}" for n in range(4000))])
    assert PROXIES.of("127.0.0.1", forwarded(chain)).startswith("10.0.")


def test_a_peer_without_an_address_is_called_so() -> None:
    assert PROXIES.of(None, forwarded("1.2.3.4")) == UNKNOWN
    assert PROXIES.of("not-an-address", forwarded("1.2.3.4")) == UNKNOWN


@pytest.mark.parametrize(
    ("ip", "block"),
    [
        (CALLER, CALLER),
        ("::ffff:203.0.113.7", CALLER),
        ("2001:db8:1:2::7", "20010db800010002/64"),
        ("2001:db8:1:2:ffff::", "20010db800010002/64"),
        ("2001:db8:1:3::7", "20010db800010003/64"),
        ("fe80::1%eth0", "fe80000000000000/64"),
        (UNKNOWN, UNKNOWN),
        ("a:b", "a:b"),
        ("::\0", "::\0"),
    ],
)
def test_what_counts_as_one_caller(ip: str, block: str) -> None:
    assert address_block(ip) == block


def test_lists_of_addresses() -> None:
    everybody = AddressLists()
    assert everybody.empty and everybody.allow("203.0.113.7") and everybody.allow("unknown")
    some_denied = AddressLists(denied=["203.0.113.0/24", "2001:db8::/32"])
    assert some_denied.allow("198.51.100.1") and some_denied.allow("2001:db9::1")
    for ip in ("203.0.113.7", "2001:db8::1", "::ffff:203.0.113.7", "unknown", ""):
        assert not some_denied.allow(ip), ip
    few = AddressLists(allowed=["203.0.113.0/24", "::1"], denied=["203.0.113.9"])
    assert few.allow("203.0.113.7") and few.allow("::1")
    for ip in ("203.0.113.9", "198.51.100.1", "::2", "unknown"):
        assert not few.allow(ip), ip


def test_connections_count_for_their_address_but_not_for_a_proxy_or_this_machine() -> None:
    whose = PROXIES.whose_connection
    assert whose("203.0.113.7") == whose("::ffff:203.0.113.7") == "203.0.113.7"
    assert whose("2001:db8:1:2::1") == whose("2001:db8:1:2:ffff::1%eth0") != whose("2001:db8:1:3::1")
    for peer in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.1.2.3", "fd00::1", "nonsense"):
        assert whose(peer) is None, peer


_FOUR = st.builds(
    lambda number, bits: f"{ip_address(0xCB007100 + number)}/{bits}", st.integers(0, 255), st.integers(24, 32)
)
_SIX = st.builds(
    lambda number, bits: f"{ip_address((0x20010DB8 << 96) + number)}/{bits}", st.integers(0, 255), st.integers(120, 128)
)


@given(st.lists(_FOUR | _SIX), st.lists(_FOUR | _SIX), st.integers(-2, 257), st.booleans())
def test_lists_are_looked_up_as_one_network_after_the_other_would_be(
    allowed: list[str], denied: list[str], number: int, six: bool
) -> None:
    """However they overlap, touch or repeat."""
    caller = ip_address((0x20010DB8 << 96) + number if six else 0xCB007100 + number)
    within = [any(caller in ip_network(text, strict=False) for text in texts) for texts in (allowed, denied)]
    expected = (within[0] or not allowed) and not within[1]
    assert AddressLists(allowed, denied).allow(str(caller)) == expected
