"""The bus of tailscaled, and the watcher that holds what is true now."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.tailscale import tailnet as module
from shared.tailscale.bus import Mask, Notification, read_notifications
from shared.tailscale.client import LocalClient
from shared.tailscale.errors import NotAnswering, NotRunning, Refused, UnexpectedAnswer, Unreachable
from shared.tailscale.states import State
from shared.tailscale.tailnet import Tailnet
from shared.tailscale.view import View, after
from tests.fake_localapi import FakeLocalAPI, text
from tests.tailnet.shapes import node, peer, user
from tests.waiting import HANGS, wait_until

MESSAGES: list[dict[str, Any]] = [
    {"Version": "1", "SessionID": "s", "State": 6, "ErrMessage": None},
    {"Version": "1", "PeersChanged": [node(2, "g\u0085p\u2028u", tags=["tag:gpu"])], "PeersRemoved": [3]},
    {"Version": "1", "Health": {"Warnings": {"w": {"Severity": "high", "Title": "T", "ImpactsConnectivity": True}}}},
]


async def cut(data: bytes, at: list[int]) -> AsyncIterator[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    for start, end in itertools.pairwise(places):
        yield data[start:end]


async def read(data: bytes, at: list[int] | None = None) -> list[Notification]:
    """What can be read before the stream ends."""
    found: list[Notification] = []
    with contextlib.suppress(Unreachable):
        async for notification in read_notifications(cut(data, at or [])):
            found.append(notification)
    return found


@given(st.lists(st.integers(min_value=0, max_value=4000), max_size=12))
def test_messages_are_whole_however_the_stream_is_cut(at: list[int]) -> None:
    data = b"".join(json.dumps(message, ensure_ascii=False).encode() + b"\n" for message in MESSAGES)
    first, second, third = asyncio.run(read(data, at))
    assert (first.session, first.state, first.state_told) == ("s", State.RUNNING, True)
    assert (second.state_told, second.removed, [peer.tags for peer in second.changed]) == (False, (3,), [("tag:gpu",)])
    assert second.changed[0].host_name == "g\u0085p\u2028u"
    assert third.warnings is not None
    assert third.warnings["w"].impacts_connectivity


async def test_a_stream_that_ends_is_an_error() -> None:
    with pytest.raises(Unreachable, match="restarted"):
        async for _ in read_notifications(cut(b'{"Version":"1"}\n{"Vers', [])):
            pass


@pytest.mark.parametrize("line", [b"<html>\n", b"[]\n", b'"x"\n', b"{\n"])
async def test_what_is_no_bus(line: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        await read(line)


async def test_a_line_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.tailscale.bus._LONGEST_LINE", 1000)
    with pytest.raises(UnexpectedAnswer, match="longer"):
        await read(b"x" * 1001)


async def test_a_session_of_another_user_is_a_state() -> None:
    (told,) = await read(b'{"State": 1, "ErrMessage": "Tailscale already in use by otto"}\n')
    assert told.state is State.IN_USE_OTHER_USER


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.02)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeLocalAPI]:
    async with FakeLocalAPI(tmp_path) as fake:
        fake.peers = [peer(2, "gpu", tags=["tag:gpu"]), peer(3, "phone")]
        yield fake


class Seen:
    """A watcher that runs, and every view it had."""

    def __init__(self, client: LocalClient) -> None:
        self.tailnet = Tailnet(client)
        self.views: list[View] = [self.tailnet.view]
        self.tailnet.listen(self._changed)

    def _changed(self, before: View, after: View) -> None:
        assert before == self.views[-1], "each change begins where the last one ended"
        self.views.append(after)

    async def until(self, wanted: Callable[[View], bool]) -> View:
        async with asyncio.timeout(HANGS):
            return await self.tailnet.until(wanted)


@pytest.fixture
async def seen(fake: FakeLocalAPI) -> AsyncIterator[Seen]:
    async with LocalClient(str(fake.path), seconds=0.5) as client:
        seen = Seen(client)
        task = asyncio.create_task(seen.tailnet.run())
        yield seen
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def running(seen: Seen, fake: FakeLocalAPI) -> View:
    view = await seen.until(lambda view: view.problem is None)
    await wait_until(lambda: fake.watchers)
    return view


async def test_the_first_view_is_whole(fake: FakeLocalAPI, seen: Seen) -> None:
    view = await running(seen, fake)
    assert view.node is not None
    assert (view.node.name, view.addresses) == ("edge.tail.test", ("100.64.0.1", "fd7a:115c:a1e0::1"))
    assert {number: peer.name for number, peer in view.peers.items()} == {2: "gpu.tail.test", 3: "phone.tail.test"}
    assert isinstance(seen.views[0].problem, NotAnswering)
    watch = next(asked for asked in fake.asked if asked.path.endswith("watch-ipn-bus"))
    assert watch.query == {"mask": "20610"}


async def test_peers_change_come_and_go(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    await fake.tell(PeersChanged=[node(2, "gpu", tags=["tag:gpu"], Online=False)])
    view = await seen.until(lambda view: view.peers[2].online is False)
    assert view.peers[2].tags == ("tag:gpu",)
    await fake.tell(PeersChanged=[node(4, "other")], PeersRemoved=[3], UserProfiles={"9": user(9, "otto")})
    view = await seen.until(lambda view: 4 in view.peers)
    assert sorted(view.peers) == [2, 4]
    assert view.users[9].login == "otto"


async def test_warnings_are_replaced_as_a_whole(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    await fake.tell(Health={"Warnings": {"no-derp": {"Title": "No relay", "Severity": "medium"}}})
    view = await seen.until(lambda view: bool(view.warnings))
    assert view.warnings["no-derp"].title == "No relay"
    await fake.tell(Health={"Warnings": None})
    await seen.until(lambda view: not view.warnings)


async def test_an_address_that_changes_is_told(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    fake.own = peer(7, "edge", tags=["tag:edge"])
    fake.peers = [peer(8, "gpu", tags=["tag:gpu"])]
    await fake.tell(SelfChange=node(7, "edge", tags=["tag:edge"]), PeersChanged=[node(8, "gpu", tags=["tag:gpu"])])
    view = await seen.until(lambda view: view.addresses == ("100.64.0.7", "fd7a:115c:a1e0::7"))
    assert list(view.peers) == [8], "those that the new network map has not are gone, though nobody named them"


async def test_a_new_state_is_asked_about(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    fake.status = {"BackendState": "NeedsLogin", "AuthURL": "https://login.example/a/2"}
    await fake.tell(State=2)
    view = await seen.until(lambda view: view.state is State.NEEDS_LOGIN)
    assert isinstance(view.problem, NotRunning)
    assert view.problem.auth_url == "https://login.example/a/2"
    fake.status = {}
    await fake.tell(State=6)
    assert (await seen.until(lambda view: view.problem is None)).auth_url == ""


async def test_a_login_page_is_told(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    await fake.tell(BrowseToURL="https://login.example/a/3")
    await seen.until(lambda view: view.auth_url == "https://login.example/a/3")


async def test_what_is_not_known_is_passed_over(fake: FakeLocalAPI, seen: Seen) -> None:
    before = await running(seen, fake)
    await fake.tell(Engine={"RBytes": 1}, PeersChanged=None, Health="odd", NewThing=[1])
    await fake.tell(PeersRemoved=[3])
    assert await seen.until(lambda view: 3 not in view.peers) != before
    assert seen.views[-2] == before, "the odd one changed nothing and told nobody"


async def test_tailscaled_restarts(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    await fake.stop()
    gone = await seen.until(lambda view: view.failure is not None)
    assert isinstance(gone.problem, Unreachable)
    assert sorted(gone.peers) == [2, 3], "what was known is kept"
    fake.peers = [peer(5, "new")]
    await fake.restart()
    view = await seen.until(lambda view: view.problem is None)
    assert list(view.peers) == [5]


async def test_one_failure_is_told_once(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    await fake.stop()
    fake.path.unlink()
    await seen.until(lambda view: "There is no tailscaled" in str(view.failure))
    told = len(seen.views)
    await asyncio.sleep(0.2)  # some ten attempts
    assert len(seen.views) == told


async def test_a_watcher_that_fell_behind_begins_again(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    fake.peers = [peer(5, "new")]
    await fake.send_away()
    view = await seen.until(lambda view: list(view.peers) == [5])
    assert view.problem is None
    assert all(view.failure is None for view in seen.views[1:]), "nobody was told of trouble"


async def test_a_bus_that_is_refused_is_told(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    fake.twist("watch-ipn-bus", *[text(400, "bad mask")] * 50)
    await fake.send_away()
    view = await seen.until(lambda view: view.failure is not None)
    assert isinstance(view.failure, Refused)
    fake._twists.clear()
    await seen.until(lambda view: view.problem is None)


async def test_tailscaled_boots(tmp_path: Path) -> None:
    async with FakeLocalAPI(tmp_path) as fake, LocalClient(str(fake.path), seconds=0.1) as client:
        fake.running.clear()
        seen = Seen(client)
        task = asyncio.create_task(seen.tailnet.run())
        await seen.until(lambda view: "did not answer within" in str(view.failure))
        fake.running.set()
        await seen.until(lambda view: view.problem is None)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_old_tailscaled_is_asked_at_each_hint(tmp_path: Path) -> None:
    async with FakeLocalAPI(tmp_path) as fake, LocalClient(str(fake.path)) as client:
        fake.capability_version = 133
        seen = Seen(client)
        task = asyncio.create_task(seen.tailnet.run())
        await running(seen, fake)
        assert next(asked.query for asked in fake.asked if asked.query.get("mask")) == {"mask": "10"}
        fake.peers = [peer(5, "new")]
        await fake.tell(NetMap={"Peers": []})
        await seen.until(lambda view: list(view.peers) == [5])
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_cancelling_the_watcher_closes_its_stream(fake: FakeLocalAPI) -> None:
    async with LocalClient(str(fake.path)) as client:
        seen = Seen(client)
        task = asyncio.create_task(seen.tailnet.run())
        await running(seen, fake)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until(lambda: fake.watchers == 0)


async def test_leaving_a_watch_closes_its_stream(fake: FakeLocalAPI) -> None:
    async with LocalClient(str(fake.path)) as client:
        async with client.watch(Mask.INITIAL_STATE) as notifications:
            async for notification in notifications:
                assert notification.state is State.RUNNING
                break
        await wait_until(lambda: fake.watchers == 0)


async def test_a_listener_can_leave(fake: FakeLocalAPI, seen: Seen) -> None:
    await running(seen, fake)
    seen.tailnet.unlisten(seen._changed)
    told = len(seen.views)
    await fake.tell(PeersRemoved=[3])
    await seen.until(lambda view: 3 not in view.peers)
    assert len(seen.views) == told


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("tag:gpu", [2, 4]),
        ("gpu", [2]),
        ("gpu.tail.test", [2]),
        ("GPU.tail.test.", [2]),
        ("100.64.0.3", [3]),
        ("fd7a:115c:a1e0::4", [4]),
        ("FD7A:115C:A1E0:0::4", [4]),
        ("gpu.other.test", []),
        ("tag:edge", []),
        ("100.64.0.1", []),
    ],
)
async def test_peers_are_found_by_name_tag_and_address(tmp_path: Path, wanted: str, found: list[int]) -> None:
    async with FakeLocalAPI(tmp_path) as fake, LocalClient(str(fake.path)) as client:
        fake.peers = [peer(2, "gpu", tags=["tag:gpu"]), peer(3, "phone"), peer(4, "gpu-1", tags=["tag:gpu"])]
        view = View.of(await client.status())
    assert [node.number for node in view.find(wanted)] == found


def test_a_status_replaces_everything() -> None:
    old = View(auth_url="https://login.example", peers={9: View().peers.get(9)})  # pyright: ignore[reportArgumentType]
    new = after(old, Notification.read({"State": 6, "InitialStatus": {"BackendState": "Running", "Peer": None}}))
    assert (new.state, new.auth_url, dict(new.peers)) == (State.RUNNING, "", {})
