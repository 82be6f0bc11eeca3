"""What ``LocalClient`` asks of tailscaled and makes of the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.tailscale.bus import Notification
from shared.tailscale.client import LocalClient
from shared.tailscale.metrics import Metrics
from shared.tailscale.nodes import Path as Route
from shared.tailscale.paths import best_path, warm
from shared.tailscale.ping import Ping
from shared.tailscale.prefs import Prefs
from shared.tailscale.socket import Endpoint
from shared.tailscale.states import State
from shared.tailscale.status import Status
from shared.tailscale.whois import WhoIs
from tests.fake_localapi import FakeLocalAPI, Reply, text
from tests.tailnet.shapes import peer, ping, user, whois

GATEWAY = "hearthlink.internal/cap/gateway"


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeLocalAPI]:
    async with FakeLocalAPI(tmp_path) as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeLocalAPI) -> AsyncIterator[LocalClient]:
    async with LocalClient(str(fake.path)) as client:
        yield client


async def test_status_is_read_with_its_peers(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.peers = [
        peer(2, "gpu", tags=["tag:gpu"], CurAddr="10.0.0.2:41641", Active=True, LastHandshake="2026-11-21T09:55:20Z"),
        peer(3, "phone", user=7, Online=False, KeyExpiry="2026-12-01T00:00:00Z", ShareeNode=True),
    ]
    fake.users.append(user(7, "anna@example.com"))
    status = await client.status()
    assert (status.state, status.tun, status.suffix, status.problem) == (State.RUNNING, True, "tail.test", None)
    assert status.addresses == ("100.64.0.1", "fd7a:115c:a1e0::1")
    gpu, phone = status.peers
    assert (gpu.node.name, gpu.node.tags, gpu.node.online) == ("gpu.tail.test", ("tag:gpu",), True)
    assert gpu.node.key_expiry is None
    assert gpu.connection.last_handshake == datetime(2026, 11, 21, 9, 55, 20, tzinfo=UTC)
    assert gpu.connection.path is Route.DIRECT
    assert (phone.node.tags, phone.node.online, phone.node.shared) == ((), False, True)
    assert phone.node.key_expiry == datetime(2026, 12, 1, tzinfo=UTC)
    assert phone.node.last_seen is None, "Go's year 1 is no time"
    assert status.users[phone.node.user].login == "anna@example.com"


async def test_before_the_first_login_nearly_everything_is_null(fake: FakeLocalAPI, client: LocalClient) -> None:
    nothing = {"ID": "", "HostName": "edge", "DNSName": "", "TailscaleIPs": None, "UserID": 0}
    fake.users = []
    fake.status = {
        "BackendState": "NeedsLogin",
        "AuthURL": "https://login.example/a/1",
        "TailscaleIPs": None,
        "Self": nothing,
        "Health": None,
        "CurrentTailnet": None,
        "Peer": None,
        "User": None,
    }
    status = await client.status()
    assert (status.node, status.addresses, status.peers, dict(status.users)) == (None, (), (), {})
    assert status.problem is not None
    assert "https://login.example/a/1" in str(status.problem)
    assert status.problem.auth_url == "https://login.example/a/1"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"CurAddr": "10.0.0.2:41641"}, Route.DIRECT),
        ({"CurAddr": "10.0.0.2:41641", "Active": True}, Route.DIRECT),
        ({"PeerRelay": "10.0.0.9:40000:7", "Active": True}, Route.PEER_RELAYED),
        ({"Active": True}, Route.RELAYED),
        ({}, Route.UNKNOWN),  # `Relay` alone is where the peer is at home
        ({"Relay": "", "Active": True}, Route.UNKNOWN),
    ],
)
async def test_the_path_to_a_peer(fake: FakeLocalAPI, client: LocalClient, fields: dict[str, Any], path: Route) -> None:
    fake.peers = [peer(2, "gpu", **fields)]
    assert (await client.status()).peers[0].connection.path is path


async def test_whois_of_a_tagged_machine(fake: FakeLocalAPI, client: LocalClient) -> None:
    grants = {GATEWAY: [{"role": "infer"}, {"role": "admin"}]}
    fake.whois["100.64.0.1"] = whois(1, "edge", tags=["tag:edge"], capabilities=grants)
    caller = await client.whois("100.64.0.1", 51234)
    assert caller is not None
    assert (caller.name, caller.node.tags, caller.node.id) == ("edge.tail.test", ("tag:edge",), "1")
    assert caller.node.addresses == ("100.64.0.1", "fd7a:115c:a1e0::1")
    assert caller.capabilities == {GATEWAY: ({"role": "infer"}, {"role": "admin"})}


async def test_whois_of_a_person_without_capabilities(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.whois["100.64.0.3"] = whois(3, "phone", login="anna@example.com", user=7, Hostinfo={"ShareeNode": True})
    caller = await client.whois("100.64.0.3")
    assert caller is not None
    assert (caller.name, caller.node.tags, dict(caller.capabilities)) == ("anna@example.com", (), {})
    assert caller.node.shared


@pytest.mark.parametrize(
    ("host", "port", "protocol", "query"),
    [
        ("100.64.0.9", 0, "", {"addr": "100.64.0.9"}),
        ("100.64.0.9", 51234, "", {"addr": "100.64.0.9:51234"}),
        ("fd7a:115c:a1e0::9", 51234, "", {"addr": "[fd7a:115c:a1e0::9]:51234"}),
        ("fd7a:115c:a1e0::9", 0, "", {"addr": "fd7a:115c:a1e0::9"}),
        ("127.0.0.1", 51234, "tcp", {"addr": "127.0.0.1:51234", "proto": "tcp"}),
    ],
)
async def test_whois_of_nobody(
    fake: FakeLocalAPI, client: LocalClient, host: str, port: int, protocol: str, query: dict[str, str]
) -> None:
    assert await client.whois(host, port, protocol=protocol) is None
    assert fake.asked[-1].query == query


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that sends everything through a proxy, which is not there."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("proxies")
async def test_what_is_sent_is_what_tailscaled_demands(fake: FakeLocalAPI, client: LocalClient) -> None:
    await client.status()
    headers = fake.asked[-1].headers
    assert headers["host"] == "local-tailscaled.sock"
    assert not {"origin", "referer", "authorization", "cookie"} & headers.keys()


@pytest.mark.usefixtures("proxies")
async def test_an_app_on_macos_wants_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeLocalAPI(tmp_path, token="feed0123") as fake:
        monkeypatch.setattr("shared.tailscale.client.find", lambda _: Endpoint(port=fake.port, token="feed0123"))
        async with LocalClient() as client:
            assert (await client.status()).state is State.RUNNING
        assert fake.asked[-1].headers["host"] == f"127.0.0.1:{fake.port}"


async def test_pings_tell_the_path(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.pings.extend(
        (
            ping("100.64.0.2", Endpoint="10.0.0.2:41641"),
            ping("100.64.0.2", DERPRegionID=999, DERPRegionCode="test"),
            ping("100.64.0.2", PeerRelay="10.0.0.9:40000:7"),
            ping("100.64.0.2", Err="no matching peer"),
        )
    )
    answers = [await client.ping("100.64.0.2") for _ in range(4)]
    assert [answer.path for answer in answers] == [Route.DIRECT, Route.RELAYED, Route.PEER_RELAYED, Route.UNKNOWN]
    assert (answers[1].region, answers[3].error) == ("test", "no matching peer")
    assert [asked.method for asked in fake.asked] == ["POST"] * 4


async def test_the_best_path_is_looked_for_until_one_is_direct(fake: FakeLocalAPI, client: LocalClient) -> None:
    relayed = ping("100.64.0.2", DERPRegionID=999, DERPRegionCode="test")
    fake.pings.extend((relayed, relayed, ping("100.64.0.2", Endpoint="10.0.0.2:41641"), relayed))
    found = await best_path(client, "100.64.0.2", pause=0)
    assert found is not None
    assert (found.path, len(fake.asked)) == (Route.DIRECT, 3)


async def test_the_best_path_may_be_a_relay(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.pings.extend([ping("100.64.0.2", DERPRegionID=999, DERPRegionCode="test")] * 10)
    found = await best_path(client, "100.64.0.2", pause=0)
    assert found is not None
    assert (found.path, len(fake.asked)) == (Route.RELAYED, 10)


async def test_there_may_be_no_path(fake: FakeLocalAPI, client: LocalClient) -> None:
    found = await best_path(client, "100.64.0.2", pause=0)
    assert found is not None
    assert (found.error, len(fake.asked)) == ("no matching peer", 1)


async def test_a_path_is_warmed_by_both_pings(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.pings.append(ping("100.64.0.2", Endpoint="10.0.0.2:41641"))
    answer = await warm(client, "100.64.0.2")
    assert answer is not None
    assert answer.path is Route.DIRECT
    assert [asked.query["type"] for asked in fake.asked] == ["disco", "TSMP"]


async def test_a_peer_that_has_just_come_is_asked_again(
    fake: FakeLocalAPI, client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.tailscale.paths._WARM_PAUSE", 0)
    fake.pings.extend([ping("100.64.0.2", Err="unknown peer")] * 2 + [ping("100.64.0.2", Endpoint="10.0.0.2:41641")])
    await warm(client, "100.64.0.2")
    assert [asked.query["type"] for asked in fake.asked] == ["disco", "disco", "disco", "TSMP"]
    fake.asked.clear()
    answer = await warm(client, "100.64.0.9")
    assert answer is not None
    assert (answer.error, len(fake.asked)) == ("no matching peer", 4)


async def test_a_peer_that_is_silent_costs_little(
    fake: FakeLocalAPI, client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.tailscale.paths._WARM_PAUSE", 0)
    monkeypatch.setattr("shared.tailscale.paths._ANSWERS_WITHIN", 0.02)
    fake.running.clear()
    assert await warm(client, "100.64.0.2") is None
    assert await best_path(client, "100.64.0.2", tries=2, pause=0) is None


async def test_prefs_change_only_what_is_named(fake: FakeLocalAPI, client: LocalClient) -> None:
    assert (await client.prefs()).shields_up is False
    changed = await client.change_prefs(ShieldsUp=True)
    assert changed.shields_up is True
    assert changed.control_url == "http://10.99.0.1:8080"
    assert fake.asked[-1].body == b'{"ShieldsUp": true, "ShieldsUpSet": true}'


async def test_a_certificate_comes_with_its_key(fake: FakeLocalAPI, client: LocalClient) -> None:
    key = b"-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n"
    chain = b"-----BEGIN CERTIFICATE-----\nAQ==\n-----END CERTIFICATE-----\n" * 2
    fake.certificate = Reply(200, key + chain)
    found = await client.certificate("edge.tail.test", valid_for_hours=720)
    assert (found.key, found.chain) == (key, chain)
    assert "PRIVATE" not in repr(found)
    assert fake.asked[-1].path == "/localapi/v0/cert/edge.tail.test"
    assert fake.asked[-1].query == {"type": "pair", "min_validity": "720h"}


async def test_metrics_are_summed_by_label(client: LocalClient) -> None:
    metrics = await client.metrics()
    assert metrics.total("tailscaled_inbound_bytes_total") == 176
    assert metrics.total("tailscaled_inbound_bytes_total", path="direct_ipv4") == 156
    assert (metrics.relayed_bytes, metrics.dropped_by_policy) == (42, 3)
    assert metrics.total("tailscaled_no_such_thing") == 0


def test_metrics_pass_over_what_is_no_sample() -> None:
    odd = Metrics.read('a{x="1",y="2\\"}"} 3\n# HELP a b\nnot a sample\nb NaNsense\n\u0085c 4\nd +Inf')
    assert [(sample.name, dict(sample.labels)) for sample in odd.samples] == [
        ("a", {"x": "1", "y": '2\\"}'}),
        ("d", {}),
    ]


async def test_features_go_by_the_capability_version(fake: FakeLocalAPI, client: LocalClient) -> None:
    assert client.capability_version == 0
    await client.status()
    assert client.capability_version == 142
    fake.twist("status", text(500, "no"))
    fake.capability_version = 133
    await client.prefs()
    assert client.capability_version == 133


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    "ID NodeID StableID Name Addresses Tags Online KeyExpiry CapMap Hostinfo User UserProfile Node Self Peer Health "
    "TailscaleIPs CurrentTailnet BackendState State InitialStatus SelfChange PeersChanged PeersRemoved UserProfiles "
    "Warnings LatencySeconds DERPRegionID Err CertDomains AdvertiseTags".split()
)
SHAPES = st.recursive(JSON, lambda inner: st.dictionaries(_FIELDS, inner | st.lists(inner, max_size=2), max_size=6))


@settings(max_examples=60)
@given(st.dictionaries(_FIELDS, SHAPES, max_size=6))
def test_no_field_of_any_shape_breaks_the_reading(answer: dict[str, object]) -> None:
    for kind in (Status, WhoIs, Ping, Prefs, Notification):
        kind.read(answer)
