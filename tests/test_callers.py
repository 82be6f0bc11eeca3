"""Which machine calls the node and what it may do there, by what tailscaled says."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from node.admission.callers import TailnetCallers, roles_of
from node.admission.loopback import LoopbackCallers
from shared.asgi.types import Scope
from shared.contract.errors import ApiError
from shared.tailscale.client import LocalClient
from shared.tailscale.socket import running
from shared.tailscale.whois import WhoIs
from tests.fake_localapi import FakeLocalAPI, text
from tests.open_files import no_more_files
from tests.tailnet.shapes import whois
from tests.waiting import wait_until

GATEWAY = "hearthlink.internal/cap/gateway"
BOTH = frozenset({"infer", "admin"})
INFER = frozenset({"infer"})
NONE = frozenset[str]()


def connection(host: str, port: int) -> Scope:
    """What each request of a new connection from there brings."""
    return {"state": {"listener": "tailnet", "connection": {}}, "client": (host, port)}


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeLocalAPI]:
    async with FakeLocalAPI(tmp_path) as fake:
        fake.whois["100.64.0.1"] = whois(1, "edge", tags=["tag:edge"])
        yield fake


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.rstrip("\n")), format="{level} {message}")
    yield lines
    logger.remove(sink)


@pytest.fixture
async def client(fake: FakeLocalAPI) -> AsyncIterator[LocalClient]:
    async with LocalClient(str(fake.path), seconds=0.5) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "values", "roles"),
    [
        ({"tags": ["tag:edge"]}, None, INFER),
        ({"tags": ["tag:other", "tag:edge"]}, [], INFER),
        ({"tags": ["tag:edges"]}, None, NONE),
        ({}, None, NONE),
        ({"login": "tag:edge"}, None, NONE),
        ({"tags": ["tag:edge"], "Hostinfo": {"ShareeNode": True}}, None, NONE),
        ({}, [{"role": "infer"}], INFER),
        ({}, [{"roles": ["infer"]}], INFER),
        ({}, [{"roles": ["admin"]}], BOTH),
        ({}, [{"role": "admin", "roles": []}], BOTH),
        ({}, [{"role": "infer"}, {"roles": ["admin"]}], BOTH),
        ({"tags": ["tag:edge"]}, [{"role": "admin"}], BOTH),
        ({}, [{"roles": ["chat", "owner"]}], NONE),
        ({}, [{"role": ["infer"]}, {"roles": "infer"}, {"roles": {"infer": True}}], NONE),
        ({}, ["infer", None, 1, ["infer"], {}, {"roles": [None, {"role": "infer"}]}], NONE),
    ],
)  # fmt: skip
def test_roles_come_from_the_tag_and_from_the_sum_of_the_grants(
    fields: dict[str, Any], values: list[Any] | None, roles: frozenset[str]
) -> None:
    login = fields.get("login", "tagged-devices" if fields.get("tags") else "anna@example.com")
    capabilities = None if values is None else {GATEWAY: values}
    answer = whois(3, "phone", **{"login": login, **fields}, capabilities=capabilities)
    assert roles_of(WhoIs.read(answer), GATEWAY) == roles


async def test_another_capability_gives_nothing(fake: FakeLocalAPI, client: LocalClient) -> None:
    grants = {"hearthlink.internal/cap/tester": [{"roles": ["admin"]}], f"{GATEWAY}2": [{"role": "infer"}]}
    fake.whois["100.64.0.3"] = whois(3, "phone", login="anna@example.com", capabilities=grants)
    # What the machine itself has is not what it may do here.
    fake.whois["100.64.0.3"]["Node"]["CapMap"] = {GATEWAY: [{"role": "admin"}]}
    caller = await TailnetCallers(client, GATEWAY).who(connection("100.64.0.3", 50000))
    assert (caller.name, caller.roles) == ("anna@example.com", frozenset())


async def test_a_connection_is_asked_about_once(fake: FakeLocalAPI, client: LocalClient) -> None:
    callers = TailnetCallers(client, GATEWAY)
    scope = connection("100.64.0.1", 50000)
    first = await callers.who(scope)
    assert (first.name, first.roles) == ("edge.tail.test", INFER)
    assert await callers.who(scope) is first
    assert [asked.query for asked in fake.asked] == [{"addr": "100.64.0.1:50000", "proto": "tcp"}]


async def test_the_next_connection_from_a_port_is_another_caller(fake: FakeLocalAPI, client: LocalClient) -> None:
    """In userspace networking everybody comes from 127.0.0.1, and ports are used again."""
    callers = TailnetCallers(client, GATEWAY)
    fake.whois["127.0.0.1"] = whois(1, "edge", tags=["tag:edge"])
    assert (await callers.who(connection("127.0.0.1", 50000))).roles == INFER
    del fake.whois["127.0.0.1"]
    assert (await callers.who(connection("127.0.0.1", 50000))).roles == NONE
    fake.whois["127.0.0.1"] = whois(1, "edge", tags=["tag:edge"])
    assert (await callers.who(connection("127.0.0.1", 50000))).roles == INFER


async def test_an_answer_holds_until_it_says(fake: FakeLocalAPI, client: LocalClient) -> None:
    callers = TailnetCallers(client, GATEWAY, kept=0.05)
    scope = connection("100.64.0.1", 50000)
    first = await callers.who(scope)
    fake.whois["100.64.0.1"] = whois(1, "edge", tags=["tag:gpu"])
    # A timer of uvloop counts whole milliseconds and may end just before the moment it was set for.
    await wait_until(lambda: asyncio.get_running_loop().time() >= first.until)
    assert (await callers.who(scope)).roles == frozenset()


async def test_requests_at_once_share_one_question(fake: FakeLocalAPI, client: LocalClient) -> None:
    callers = TailnetCallers(client, GATEWAY)
    scope = connection("100.64.0.1", 50000)
    fake.running.clear()
    asking = [asyncio.create_task(callers.who(scope)) for _ in range(20)]
    await wait_until(lambda: fake.asked)
    fake.running.set()
    found = await asyncio.gather(*asking)
    assert {caller.roles for caller in found} == {INFER}
    assert len(fake.asked) == 1


async def test_who_asked_first_and_left_takes_no_answer_from_the_others(
    fake: FakeLocalAPI, client: LocalClient
) -> None:
    callers = TailnetCallers(client, GATEWAY)
    fake.running.clear()
    scope = connection("100.64.0.1", 50000)
    asking = [asyncio.create_task(callers.who(scope)) for _ in range(3)]
    await wait_until(lambda: fake.asked)
    asking[0].cancel()
    fake.running.set()
    assert {caller.roles for caller in await asyncio.gather(*asking[1:])} == {INFER}


async def test_an_ipv6_caller_is_asked_about_in_brackets(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.whois["fd7a:115c:a1e0::1"] = fake.whois["100.64.0.1"]
    assert (await TailnetCallers(client, GATEWAY).who(connection("fd7a:115c:a1e0::1", 50000))).roles == INFER
    assert fake.asked[0].query["addr"] == "[fd7a:115c:a1e0::1]:50000"


async def test_nobody_is_a_caller_without_a_name_or_a_role(client: LocalClient) -> None:
    caller = await TailnetCallers(client, GATEWAY).who(connection("192.0.2.7", 50000))
    assert (caller.name, caller.roles) == ("", frozenset())


@pytest.mark.parametrize("state", ["Starting", "Stopped", "NeedsLogin"])
async def test_that_it_knows_nobody_is_not_believed_before_tailscaled_runs(
    fake: FakeLocalAPI, client: LocalClient, state: str
) -> None:
    del fake.whois["100.64.0.1"]
    fake.status["BackendState"] = state
    with pytest.raises(ApiError) as raised:
        await TailnetCallers(client, GATEWAY).who(connection("100.64.0.1", 50000))
    assert raised.value.code == "node_unavailable"


async def test_a_caller_that_is_known_a_moment_later_is_known(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.twist("whois", text(404, "no match for IP:port"))
    assert (await TailnetCallers(client, GATEWAY).who(connection("100.64.0.1", 50000))).roles == INFER


@pytest.mark.parametrize(
    ("trouble", "says"),
    [("gone", "tailscaled"), ("silent", "did not answer"), ("refuses", "access denied"), ("odd", "did not say who")],
)
async def test_trouble_with_tailscaled_is_an_error_and_is_not_remembered(
    fake: FakeLocalAPI, client: LocalClient, trouble: str, says: str
) -> None:
    callers = TailnetCallers(client, GATEWAY)
    scope = connection("100.64.0.1", 50000)
    if trouble == "gone":
        await fake.stop()
    elif trouble == "silent":
        fake.running.clear()
    elif trouble == "refuses":
        fake.twist("whois", text(403, "whois access denied"))
    else:
        fake.twist("whois", text(200, "{}"))
    with pytest.raises(ApiError) as raised:
        await callers.who(scope)
    assert (raised.value.status, raised.value.code) == (503, "node_unavailable")
    assert says in str(raised.value.__cause__)
    assert str(fake.path) not in raised.value.message, "an unknown caller need not read where the socket is"
    if trouble == "gone":
        fake.path.unlink()
        await fake.start()
    fake.running.set()
    assert (await callers.who(scope)).roles == INFER


# -- on a loopback port, where tailscaled brings callers of the tailnet in userspace networking ------------------------

HERE = "127.0.0.1"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """How tailscaled's networking is done is looked at each time."""
    monkeypatch.setattr("node.admission.loopback._LOOKED_EVERY", 0.0)


@pytest.fixture
async def beside(fake: FakeLocalAPI) -> AsyncIterator[LoopbackCallers]:
    """Of a node on loopback beside a tailscaled in userspace networking, which handed a phone's connection over."""
    fake.status |= {"TUN": False}
    fake.whois[HERE] = whois(3, "phone", login="anna@example.com")
    callers = LoopbackCallers(str(fake.path), GATEWAY, kept=0.05)
    yield callers
    await callers.close()


async def test_whom_userspace_networking_brings_to_loopback_needs_a_grant(
    fake: FakeLocalAPI, beside: LoopbackCallers
) -> None:
    caller = await beside.who(connection(HERE, 50000))
    assert (caller.name, caller.roles) == ("anna@example.com", NONE)
    assert [asked.query for asked in fake.asked if "addr" in asked.query] == [{"addr": f"{HERE}:50000", "proto": "tcp"}]
    fake.whois[HERE] = whois(1, "edge", tags=["tag:edge"])
    assert (await beside.who(connection(HERE, 50001))).roles == INFER


@pytest.mark.parametrize("state", ["Running", "Stopped", "NeedsLogin"])
async def test_whom_tailscaled_does_not_know_is_this_machine(
    fake: FakeLocalAPI, beside: LoopbackCallers, state: str
) -> None:
    fake.status["BackendState"] = state
    del fake.whois[HERE]
    caller = await beside.who(connection(HERE, 50000))
    assert (caller.name, caller.roles) == ("", BOTH)


async def test_with_an_interface_of_its_own_tailscaled_brings_nobody_to_loopback(
    fake: FakeLocalAPI, beside: LoopbackCallers
) -> None:
    fake.status |= {"TUN": True}
    for port in range(50000, 50010):
        assert (await beside.who(connection(HERE, port))).roles == BOTH
    assert [asked.path for asked in fake.asked] == ["/localapi/v0/status"], "once in some seconds"


async def test_tailscaled_may_start_after_the_node(fake: FakeLocalAPI, quick: None) -> None:
    callers = LoopbackCallers(str(fake.path), GATEWAY)
    await fake.stop()  # leaves the socket's file
    first = await callers.who(connection(HERE, 50000))
    assert (first.roles, first.until) == (BOTH, math.inf), "who is here already was not brought by it"
    assert callers._client is None, "nothing of tailscale is loaded"
    fake.status |= {"TUN": False}
    fake.whois[HERE] = whois(3, "phone", login="anna@example.com")
    await fake.restart()
    assert (await callers.who(connection(HERE, 50001))).roles == NONE
    await fake.stop()
    assert (await callers.who(connection(HERE, 50002))).roles == BOTH
    await callers.close()


async def test_in_userspace_networking_nobody_is_let_in_unknown(
    fake: FakeLocalAPI, beside: LoopbackCallers, quick: None
) -> None:
    """Not even while tailscaled does not say any more how its networking is done."""
    scope = connection(HERE, 50000)
    await beside.who(scope)
    await asyncio.sleep(0.1)  # for longer than an answer is kept
    fake.twist("status", text(500, "busy"))
    fake.twist("whois", text(500, "busy"))
    with pytest.raises(ApiError) as raised:
        await beside.who(scope)
    assert raised.value.code == "node_unavailable"
    assert (await beside.who(scope)).roles == NONE


async def test_a_tailscaled_that_was_never_heard_keeps_nobody_out_of_loopback(
    fake: FakeLocalAPI, quick: None, log: list[str]
) -> None:
    callers = LoopbackCallers(str(fake.path), GATEWAY)
    for port in (50000, 50001):
        fake.twist("status", text(500, "no backend"))
        assert (await callers.who(connection(HERE, port))).roles == BOTH
    assert len(log) == 1 and "no backend" in log[0]
    await callers.close()


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_no_tailscaled_runs_where_no_socket_is_or_nothing_listens(tmp_path: Path, platform: str) -> None:
    assert running(environ={}, platform=platform, root=str(tmp_path)) == ""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "t.sock"))
    assert running(str(tmp_path / "t.sock")) == ""


async def test_who_uses_up_the_open_files_is_not_taken_for_this_machine(beside: LoopbackCallers, quick: None) -> None:
    assert (await beside.who(connection(HERE, 50000))).roles == NONE
    await beside.close()  # what it has open already would do
    with no_more_files(), pytest.raises(ApiError) as raised:
        await beside.who(connection(HERE, 50001))
    assert raised.value.code == "node_unavailable"
