"""Names that callers may use for an edge, and which texts in Host are such a name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from edge.hosts import Hosts, name_in, names_of
from shared.addresses import is_loopback


@given(some.text(max_size=40))
def test_no_host_of_any_kind_raises(text: str) -> None:
    """And what only this machine may use, only this machine's names open."""
    host = text.encode("utf-8", "surrogatepass")
    assert Hosts(["a.test"], loopback_only=True).admits(host) == (
        name_in(host.decode("latin-1")) == "a.test" or is_loopback(name_in(host.decode("latin-1")))
    )
    assert Hosts(()).admits(host)


def test_names_of_this_machine() -> None:
    closed = Hosts((), loopback_only=True)
    for host in (b"localhost", b"LOCALHOST:8700", b"localhost.", b"127.0.0.1", b"127.9.9.9:1", b"[::1]", b"[::1]:8700"):
        assert closed.admits(host), host
    for host in (b"localhost.test", b"127.0.0.1.test", b"10.0.0.1", b"[::2]", b"0.0.0.0", b"", b"2130706433", None):
        assert not closed.admits(host), host


def test_names_come_from_the_list_and_from_the_public_url() -> None:
    assert names_of([], None) == set()
    assert names_of([], "https://A.test:8443") == {"a.test"}
    assert names_of([], "http://[::1]:8700") == {"::1"}
    assert names_of(["B.test", "[fd00::1]"], "https://a.test") == {"a.test", "b.test", "fd00::1"}
