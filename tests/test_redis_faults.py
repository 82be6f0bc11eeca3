"""The store of many edges while its server is gone, slow, read-only, emptied or full: what goes on, what does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from redis.exceptions import ConnectionError as RedisConnectionError

from edge.plans import Plan
from edge.store.errors import StoreError, StoreNotYet
from edge.store.ledger import Cost, Grant
from edge.store.redis.admin import RedisAdmin
from edge.store.redis.remembered import Remembered
from edge.store.redis.scripts import Script
from edge.store.redis.server import TAG
from edge.store.redis.store import RedisStore
from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from shared.signing_keys import LONGEST_TOKEN
from tests.local_app import free_port
from tests.redis_server import RedisServer, running_redis
from tests.store.callers import IP, caller, refused, used
from tests.store.kinds import Clock
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until

QUOTA = Plan("member", requests_per_minute=60, tokens_per_day=1000)
FREE = Plan("free")
# A server that is well gets this much of a machine that has other work, too.
GENEROUS = 5.0
BURST = 1000  # calls of one edge at once
# What is kept outlives a kill.
KEPT = {"appendonly": "yes", "appendfsync": "always"}
# Of the user in docs/many-edges.md.
RIGHTS = (f"~{TAG}*", "+@read", "+@write", "+@scripting", "+@connection", "+time", "-@dangerous", "+info")


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, **{"requests_per_minute_per_ip": 1000, "budget": GENEROUS, **options})
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def administering(url: str) -> AsyncIterator[RedisAdmin]:
    admin = RedisAdmin(url)
    await admin.open()
    try:
        yield admin
    finally:
        await admin.close()


async def noticed(store: RedisStore, away: bool = True, seconds: float = 10.0) -> None:
    await wait_until(lambda: store.answering is not away, seconds, what=lambda: store.problem)


# 57: the server is gone


@pytest.mark.case("E57")
async def test_without_the_server_credentials_are_known_and_a_quota_is_not_guessed(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        async with administering(server.url) as admin:
            _, key = await admin.create_key("ci", "member", ["chat"])
            await admin.revoke_token("gone", 4_000_000_000)
            _, invite = await admin.create_invite("member", 5, int(time.time()) + 600)
        await wait_until(lambda: "gone" in store.records.tokens and store.lookup(key))
        server.stop()
        assert (await refused(store.admit(IP, caller(), QUOTA, Cost(1), "a"))).status == 503
        await noticed(store)
        assert store.lookup(key).plan == "member"
        assert store.revoked(caller(jti="gone")) and not store.revoked(caller())
        error = await refused(store.admit(IP, caller(), QUOTA, Cost(1), "b"))
        assert (error.code, error.retry_after) == ("overloaded", 5.0)
        early = store.refusal(IP, caller(), QUOTA)
        assert early is not None and early.code == "overloaded"
        assert (await refused(store.enter_invite(invite, IP, None))).code == "overloaded"
        assert (await refused(store.usage_today(caller(), QUOTA))).code == "overloaded"
        await store.admit(IP, caller(), FREE, Cost(1), "c")
        assert await store.settle("c", Usage(1, 1))
        assert store.problem is not None and server.url not in store.problem and str(server.port) in store.problem


@pytest.mark.case("E57")
async def test_alone_an_edge_lets_half_of_a_rate_through(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis") as server, opened(server.url, requests_per_minute_per_ip=20) as store:
        server.stop()
        for limit, passes in ((12, 6), (1, 1)):
            plan, whom = Plan("free", requests_per_minute=limit), caller(f"caller{limit}")
            for _ in range(passes):
                await store.charge_request("192.0.2.1", whom, plan)
            error = await refused(store.charge_request("192.0.2.1", whom, plan))
            assert (error.code, error.status) == ("rate_limited", 429)
        for number in range(10):
            await store.charge_request("192.0.2.2", caller(str(number)), QUOTA)
        assert (await refused(store.charge_request("192.0.2.2", caller("next"), QUOTA))).code == "rate_limited"


@pytest.mark.case("E57")
async def test_an_edge_may_be_told_to_count_for_itself(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis") as server, opened(server.url, without_store="count") as store:
        server.stop()
        await store.admit(IP, caller(), QUOTA, Cost(900), "a")
        assert await store.settle("a", Usage(0, 950))
        assert (await refused(store.admit(IP, caller(), QUOTA, Cost(51), "b"))).code == "quota_exceeded"
        await store.admit(IP, caller(), QUOTA, Cost(50), "c")
        once = caller(uses=1)
        assert (await refused(store.admit(IP, once, QUOTA, Cost(1), "d"))).code == "overloaded"


@pytest.mark.case("E57")
async def test_what_an_edge_counted_for_itself_counts_for_the_whole_day(tmp_path: Path) -> None:
    """However long its caller was quiet."""
    clock = Clock()
    options: dict[str, Any] = {"without_store": "count", "monotonic": lambda: clock.elapsed}
    async with running_redis(tmp_path / "redis") as server, opened(server.url, **options) as store:
        server.stop()
        await store.admit(IP, caller(), QUOTA, Cost(1000), "a")
        assert await store.settle("a", Usage(0, 1000))
        clock.advance(3600)
        store._upkeep()
        assert (await refused(store.admit(IP, caller(), QUOTA, Cost(1), "b"))).code == "quota_exceeded"


@pytest.mark.case("E57")
async def test_a_server_that_is_back_has_what_ended_meanwhile_once(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis", **KEPT) as server, opened(server.url) as store:
        await store.admit(IP, caller(), QUOTA, Cost(400), "a")
        await store.admit(IP, caller(), QUOTA, Cost(300), "b")
        server.stop()
        assert await store.settle("a", Usage(0, 100))
        assert not await store.settle("a", Usage(0, 100))
        await noticed(store)
        server.start()
        await noticed(store, away=False)
        await wait_until(lambda: not len(store._settlements), 10)
        assert await used(store, QUOTA, caller()) == (100, 300)
        assert await store.settle("b", None)
        assert await used(store, QUOTA, caller()) == (100, 0)


# 58: the server is slow


@pytest.mark.case("E58")
async def test_a_server_that_says_nothing_costs_a_few_requests_a_moment_and_the_others_nothing(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis") as server, opened(server.url, budget=0.05) as store:
        await noticed(store, away=False)
        server.pause()
        try:
            began = time.monotonic()
            for number in range(2):  # which the server may have counted: nobody counts them again
                assert (await refused(store.admit(IP, caller(), FREE, Cost(1), f"late{number}"))).code == "overloaded"
            for number in range(200):
                await store.admit(IP, caller(), FREE, Cost(1), f"chat{number}")
            # One after the other, each waiting for its own 50 ms, they would take 10 s.
            assert time.monotonic() - began < 3
            assert not store.answering
            assert (await refused(store.admit(IP, caller(), QUOTA, Cost(1), "a"))).code == "overloaded"
        finally:
            server.resume()
        await noticed(store, away=False)
        for number in range(200):
            assert await store.settle(f"chat{number}", Usage(0, 1))
        await given_back(store, server)


async def given_back(store: RedisStore, server: RedisServer) -> None:
    """Wait until the server holds no reservation of ``store``, those included whose replies were lost. Two beats."""
    await wait_until(lambda: server.ask("HLEN", f"{TAG}:chats") == "0", 20, what=lambda: store.problem)
    assert server.ask("HLEN", f"{TAG}:running") == "0"


async def test_an_admission_whose_reply_was_lost_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.store.redis.store.BEAT_SECONDS", 0.2)
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store, opened(server.url) as other:
        question = store._question(IP, caller(), QUOTA, 500)
        await store._take(question, "lost")  # and nobody hears of it
        await other.admit(IP, caller(), QUOTA, Cost(100), "kept")
        await wait_until(lambda: server.ask("HLEN", f"{TAG}:chats") == "1", 10)
        assert await used(other, QUOTA, caller()) == (0, 100)


async def test_a_reply_that_nobody_asked_for_is_nobodys(tmp_path: Path) -> None:
    """A connection that has more to say than it was asked is not used; nor is what it said."""
    async with running_redis(tmp_path / "redis") as server, TcpProxy() as name:
        name.target = server.port
        async with opened(f"redis://127.0.0.1:{name.port}/0") as store:
            await store.admit(IP, caller(), QUOTA, Cost(10), "a")
            for number in range(10):
                name.connections = [carried for carried in name.connections if not carried.client.is_closing()]
                name.inject(b"*7\r\n$1\r\n1\r\n:1\r\n:1\r\n:999\r\n:999\r\n:9\r\n$1\r\n1\r\n", "client")
                if number % 2:
                    await asyncio.sleep(0.01)
                with contextlib.suppress(ApiError):  # in doubt nothing is said
                    assert await used(store, QUOTA, caller()) == (0, 10)
            await noticed(store, away=False)
            assert await used(store, QUOTA, caller()) == (0, 10)


async def test_whoever_gives_up_waiting_never_leaves_a_reply_to_the_next(tmp_path: Path) -> None:
    """The connection of a call that was cancelled goes with it, at whatever moment that was."""
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        for number in range(20):
            await store.admit(IP, caller(str(number)), QUOTA, Cost(number + 1), f"chat{number}")

        async def ask(number: int, give_up: float | None) -> None:
            async with asyncio.timeout(give_up):
                assert await used(store, QUOTA, caller(str(number))) == (0, number + 1)

        chance = random.Random(1)
        for _ in range(100):
            asked = [ask(number, chance.choice((None, 0.0, chance.random() / 200))) for number in range(20)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert all(one is None or isinstance(one, TimeoutError) for one in found), found
        assert store.problem is None


@pytest.mark.case("E58")
async def test_a_burst_on_a_server_that_is_well_is_counted_there_and_nowhere_else(tmp_path: Path) -> None:
    """Calls that wait for one another are not the server's fault: all of them take longer than one may. The time of one
    is more than an edge gives it by default, since a busy machine can hold the server up for longer than that."""
    plan = Plan("test", requests_per_minute=100)
    async with (
        running_redis(tmp_path / "redis") as server,
        opened(server.url, budget=0.25) as one,
        opened(server.url, budget=0.25) as two,
    ):
        asked = [store.charge_request(None, caller(), plan) for store in (one, two) for _ in range(BURST)]
        began = time.monotonic()
        found = await asyncio.gather(*asked, return_exceptions=True)
        took = time.monotonic() - began
        assert took > 0.25
        # One more may pass every 0.6 s.
        assert 100 <= sum(isinstance(each, Grant) for each in found) <= 100 + took // 0.6
        assert {each.code for each in found if isinstance(each, ApiError)} == {"rate_limited"}
        assert one.problem is None and two.problem is None


async def test_a_server_far_away_whose_connections_are_lost_is_not_lost_with_them(tmp_path: Path) -> None:
    """A dial there takes longer than a call may: it has a time of its own."""
    async with (
        running_redis(tmp_path / "redis", requirepass="secret") as server,
        TcpProxy() as way,
        contextlib.AsyncExitStack() as stack,
    ):
        way.target, way.latency = server.port, 0.015
        store = await stack.enter_async_context(opened(f"redis://:secret@127.0.0.1:{way.port}/1", budget=0.05))
        await store.charge_request(IP, caller(), QUOTA)
        environment = {**os.environ, "REDISCLI_AUTH": "secret"}
        kill = ("redis-cli", "-p", str(server.port), "CLIENT", "KILL", "TYPE", "normal")
        killed = await asyncio.create_subprocess_exec(*kill, env=environment, stdout=asyncio.subprocess.DEVNULL)
        assert await killed.wait() == 0
        for _ in range(3):
            await store.charge_request(IP, caller(), QUOTA)
        assert store.problem is None


# 59: another server takes over


@pytest.mark.case("E59")
async def test_a_failover_costs_no_request(tmp_path: Path) -> None:
    """The name leads to a primary, which becomes the other's replica; the next call is refused there and made again."""
    async with (
        running_redis(tmp_path / "one") as one,
        running_redis(tmp_path / "two", replicaof=f"127.0.0.1 {one.port}") as two,
        TcpProxy() as name,
    ):
        name.target = one.port
        async with opened(f"redis://127.0.0.1:{name.port}/0") as store:
            await store.admit(IP, caller(), QUOTA, Cost(300), "a")
            await wait_until(lambda: two.ask("HLEN", f"{TAG}:chats") == "1", 10)
            two.ask("REPLICAOF", "NO", "ONE")
            name.target = two.port
            one.ask("REPLICAOF", "127.0.0.1", str(two.port))
            await store.admit(IP, caller(), QUOTA, Cost(200), "b")
            assert two.ask("HLEN", f"{TAG}:chats") == "2"
            assert await used(store, QUOTA, caller()) == (0, 500)


@pytest.mark.case("E59")
async def test_a_connection_that_breaks_costs_no_request(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis") as server, TcpProxy() as name:
        name.target = server.port
        async with opened(f"redis://127.0.0.1:{name.port}/0") as store:
            for number in range(20):
                name.cut()
                await store.admit(IP, caller(), QUOTA, Cost(10), f"chat{number}")
            assert await used(store, QUOTA, caller()) == (0, 200)


@pytest.mark.case("E59")
async def test_what_was_done_and_not_heard_of_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks behind the request and before its reply, so that it is made once more."""
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        heard = store._server._once
        replies: list[object] = []

        async def deaf(script: Script, args: tuple[str | int, ...], patience: Any) -> object:
            replies.append(await heard(script, args, patience))
            if len(replies) == 1:
                raise RedisConnectionError("reset")
            return replies[-1]

        monkeypatch.setattr(store._server, "_once", deaf)
        grant = await store.admit(IP, caller(), QUOTA, Cost(100), "a")
        assert grant.requests is not None and grant.requests.remaining == 59
        assert await used(store, QUOTA, caller()) == (0, 100)
        replies.clear()
        assert await store.settle("a", Usage(0, 60))
        assert await used(store, QUOTA, caller()) == (60, 0)
        assert len(replies) > 2
        replies.clear()
        grant = await store.charge_request(IP, caller(), QUOTA)
        assert grant.requests is not None and grant.requests.remaining == 58 and len(replies) == 2


@pytest.mark.case("E59")
async def test_a_server_that_became_a_replica_for_good_is_as_one_that_is_gone(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        server.ask("REPLICAOF", "127.0.0.1", str(free_port()))
        assert (await refused(store.admit(IP, caller(), QUOTA, Cost(1), "a"))).code == "overloaded"
        await noticed(store)
        assert "replica" in (store.problem or "")
        server.ask("REPLICAOF", "NO", "ONE")
        await noticed(store, away=False)
        await store.admit(IP, caller(), QUOTA, Cost(1), "b")


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[RedisServer, RedisServer]]:
    """Two primaries; the first has all slots."""
    enabled = {"cluster_enabled": "yes", "cluster_node_timeout": "2000"}
    buses = [str(free_port()) for _ in range(2)]
    async with (
        running_redis(folder / "one", cluster_port=buses[0], **enabled) as one,
        running_redis(folder / "two", cluster_port=buses[1], **enabled) as two,
    ):
        one.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        one.ask("CLUSTER", "MEET", "127.0.0.1", str(two.port), buses[1])
        for server in (one, two):
            await wait_until(lambda server=server: "cluster_state:ok" in server.ask("CLUSTER", "INFO"), 20)
            await wait_until(lambda server=server: "cluster_known_nodes:2" in server.ask("CLUSTER", "INFO"), 20)
        yield one, two


@pytest.mark.case("E59")
async def test_a_cluster_works_and_a_slot_that_moves_costs_no_request(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (one, two), opened(two.url.removesuffix("/0")) as store:
        await store.admit(IP, caller(), QUOTA, Cost(300), "a")
        assert await store.settle("a", Usage(0, 30))
        assert await used(store, QUOTA, caller()) == (30, 0)
        async with administering(one.url.removesuffix("/0")) as admin:
            _, key = await admin.create_key("ci", "member", ["chat"])
            assert (await admin.standing("caller")).used == 30
        await wait_until(lambda: _opens(store, key))
        await store._server.drop_connections()
        _move_slot(one, two, one.ask("CLUSTER", "KEYSLOT", TAG))
        await store.admit(IP, caller(), QUOTA, Cost(200), "b")
        assert await used(store, QUOTA, caller()) == (30, 200)
        assert await store.settle("b", Usage(0, 20))
        assert await used(store, QUOTA, caller()) == (50, 0)


async def test_a_user_with_few_rights_is_enough_in_a_cluster(tmp_path: Path) -> None:
    async with cluster(tmp_path) as servers:
        for server in servers:
            server.ask("ACL", "SETUSER", "edge", "on", ">secret", *RIGHTS, "+cluster|slots")
        async with opened(f"redis://edge:secret@127.0.0.1:{servers[1].port}") as store:
            await store.admit(IP, caller(), QUOTA, Cost(1), "a")
            assert await store.settle("a", Usage(0, 1))
            assert store.problem is None


def _opens(store: RedisStore, key: str) -> bool:
    try:
        return bool(store.lookup(key))
    except Exception:
        return False


def _move_slot(source: RedisServer, target: RedisServer, slot: str) -> None:
    ids = [server.ask("CLUSTER", "MYID") for server in (source, target)]
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, "1000").split("\n")
    source.ask("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)
    for server in (target, source):
        server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[1])


# 60: the server forgets


@pytest.mark.case("E60")
async def test_a_server_that_may_throw_counts_away_is_refused_at_the_start(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis", maxmemory="100mb", maxmemory_policy="allkeys-lru") as server:
        for made in (RedisStore(server.url, requests_per_minute_per_ip=None), RedisAdmin(server.url)):
            with pytest.raises(StoreError, match="set maxmemory-policy noeviction"):
                await made.open()
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        async with opened(server.url):
            pass


@pytest.mark.case("E60")
async def test_a_server_that_begins_to_throw_away_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.store.redis.store._CHECK_SECONDS", 0.2)
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        server.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru", "maxmemory", "100mb")
        await noticed(store)
        assert "volatile-lru" in (store.problem or "")
        assert (await refused(store.admit(IP, caller(), QUOTA, Cost(1), "a"))).code == "overloaded"
        await store.admit(IP, caller(), FREE, Cost(1), "b")
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await noticed(store, away=False)
        await store.admit(IP, caller(), QUOTA, Cost(1), "c")


@pytest.mark.case("E60")
@pytest.mark.parametrize("loss", ["everything", "the counts of today"])
async def test_a_quota_never_begins_anew_without_a_word(tmp_path: Path, loss: str) -> None:
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        keys = store.records.signing_keys
        await store.admit(IP, caller(), QUOTA, Cost(1000), "a")
        assert await store.settle("a", Usage(0, 1000))
        assert await used(store, QUOTA, caller()) == (1000, 0)
        _lose(server, loss)
        error = await refused(store.admit(IP, caller("other"), QUOTA, Cost(1), "b"))
        assert error.code == "overloaded"
        await noticed(store)
        assert "lost" in (store.problem or "")
        await store.admit(IP, caller("other"), FREE, Cost(1), "c")
        async with administering(server.url) as admin:  # who only looks
            await admin.list_keys()
        async with opened(server.url) as another:
            if loss != "everything":  # data of its own, else
                assert not another.answering
                assert (await refused(another.admit(IP, caller(), QUOTA, Cost(1), "d"))).code == "overloaded"
            await store._beat()
            await store._look()
            # Another's data is not taken for its own: tokens that are out stay good, and counts are not begun anew.
            assert store.records.signing_keys == keys and not store.answering
    async with running_redis(tmp_path / "redis") as server:
        async with opened(server.url) as store:
            await store.admit(IP, caller(), QUOTA, Cost(1000), "a")
        _lose(server, loss)
        async with opened(server.url) as again:  # all edges were stopped: the owner has decided
            await again.admit(IP, caller(), QUOTA, Cost(1000), "b")


def _lose(server: RedisServer, loss: str) -> None:
    if loss == "everything":
        server.ask("FLUSHALL")
    else:
        server.ask("DEL", *server.ask("KEYS", f"{TAG}:used:*").split("\n"))


@pytest.mark.case("E60")
async def test_a_server_that_comes_back_with_older_data_says_how_old(tmp_path: Path) -> None:
    lines: list[str] = []
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        server.ask("SAVE")
        await asyncio.sleep(0.1)
        await store._beat()
        sink = logger.add(lines.append, level="ERROR", format="{message}")
        try:
            server.stop()
            server.start()
            await store._beat()
        finally:
            logger.remove(sink)
    assert [line for line in lines if "has the data of" in line], lines


@pytest.mark.case("E60")
async def test_counts_that_come_back_as_they_were_are_no_older_data(tmp_path: Path) -> None:
    lines: list[str] = []
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        sink = logger.add(lines.append, level="ERROR", format="{message}")
        try:
            server.ask("RENAME", f"{TAG}:meta", "elsewhere")
            await store._beat()
            await asyncio.sleep(0.01)
            await store._beat()
            server.ask("RENAME", "elsewhere", f"{TAG}:meta")
            await store._beat()
        finally:
            logger.remove(sink)
        assert store.problem is None
    assert not [line for line in lines if "has the data of" in line], lines


async def test_a_server_whose_memory_is_full_is_as_one_that_is_gone(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis", maxmemory_policy="noeviction") as server, opened(server.url) as store:
        server.ask("CONFIG", "SET", "maxmemory", "1")
        assert (await refused(store.admit(IP, caller(), QUOTA, Cost(1), "a"))).code == "overloaded"
        await noticed(store)
        assert "memory is full" in (store.problem or "")
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await noticed(store, away=False)


# Who may come in there


async def test_a_user_with_few_rights_is_enough(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis") as server:
        server.ask("ACL", "SETUSER", "edge", "on", ">secret word", *RIGHTS)
        server.ask("ACL", "SETUSER", "default", "off")
        for wrong in ("edge:wrong", ":secret", ""):
            with pytest.raises(StoreError, match="user or password"):
                await RedisStore(_with(server, wrong), requests_per_minute_per_ip=None).open()
        async with opened(_with(server, "edge:secret%20word")) as store:
            await store.admit(IP, caller(), QUOTA, Cost(1), "a")
            assert await store.settle("a", Usage(0, 1))
            assert await used(store, QUOTA, caller()) == (1, 0)
            async with administering(_with(server, "edge:secret%20word")) as admin:
                assert (await admin.standing("caller")).used == 1


def _with(server: RedisServer, user: str) -> str:
    return f"redis://{user}@127.0.0.1:{server.port}/0" if user else server.url


async def test_it_is_reached_by_tls_whose_certificate_is_checked(tmp_path: Path) -> None:
    from tests.certificates import Authority

    authority = Authority(tmp_path)
    made = authority.issue("localhost")
    port = free_port()
    options = {
        "tls_port": str(port), "tls_cert_file": str(made.certificate), "tls_key_file": str(made.key),
        "tls_ca_cert_file": str(authority.certificate), "tls_auth_clients": "no",
    }  # fmt: skip
    async with running_redis(tmp_path / "redis", **options):
        url = f"rediss://localhost:{port}/0"
        with pytest.raises(StoreError, match="certificate") as caught:
            await RedisStore(url, requests_per_minute_per_ip=None).open()
        assert not isinstance(caught.value, StoreNotYet), "waiting does not mend it"
        async with opened(f"{url}?ssl_ca_certs={authority.certificate}") as store:
            await store.admit(IP, caller(), QUOTA, Cost(1), "a")


async def test_a_server_that_is_not_there_says_so_without_the_password() -> None:
    url = f"redis://edge:secret@127.0.0.1:{free_port()}/0"
    with pytest.raises(StoreError, match="Start that server") as caught:
        await RedisStore(url, requests_per_minute_per_ip=None).open()
    assert "secret" not in str(caught.value)


# Edges that die


async def test_what_a_dead_edge_held_is_settled_at_its_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first who needs it, 20 s after the edge was heard of; here by a clock that is moved by hand."""
    moment = time.time()
    plan = Plan("test", streams=1, tokens_per_day=1000)
    async with running_redis(tmp_path / "redis") as server:
        options: dict[str, Any] = {"now": lambda: moment, "requests_per_minute_per_ip": None, "budget": GENEROUS}
        dead, alive = RedisStore(server.url, **options), RedisStore(server.url, **options)
        await dead.open()
        await alive.open()
        await dead.admit(IP, caller(), plan, Cost(600), "a")
        await _die(dead)
        for _ in range(2):
            moment += 9
            await alive._beat()
            assert (await refused(alive.admit(IP, caller(), plan, Cost(1), "b"))).code == "concurrency_limited"
            alive._remembered.clear()
        moment += 9
        await alive.admit(IP, caller(), plan, Cost(400), "c")
        assert await used(alive, plan, caller()) == (600, 400)
        await alive.close()
        assert server.ask("HLEN", f"{TAG}:chats") == "0"


async def _die(store: RedisStore) -> None:
    """As kill -9: no word to the server."""
    for task in store._tasks:
        task.cancel()
    await asyncio.wait(store._tasks)
    await store._server.close()


async def test_a_server_that_was_away_for_long_takes_no_living_edge_for_dead(tmp_path: Path) -> None:
    moment = time.time()
    plan = Plan("test", streams=1, tokens_per_day=1000)
    async with running_redis(tmp_path / "redis") as server:
        options: dict[str, Any] = {"now": lambda: moment, "requests_per_minute_per_ip": None, "budget": GENEROUS}
        async with opened(server.url, **options) as one, opened(server.url, **options) as two:
            await one.admit(IP, caller(), plan, Cost(600), "a")
            moment += 3600
            await two._beat()
            assert (await refused(two.admit(IP, caller(), plan, Cost(1), "b"))).code == "concurrency_limited"
            assert await used(two, plan, caller()) == (0, 600)


@pytest.mark.case("E66")
async def test_a_server_whose_clock_is_set_back_locks_nobody_out(tmp_path: Path) -> None:
    clock, plan = Clock(), Plan("test", requests_per_minute=20, streams=1)
    options: dict[str, Any] = {
        "now": lambda: clock.unix, "monotonic": lambda: clock.elapsed, "requests_per_minute_per_ip": 50
    }  # fmt: skip
    async with running_redis(tmp_path / "redis") as server, opened(server.url, **options) as alive:
        dead = RedisStore(server.url, budget=GENEROUS, **options)
        await dead.open()
        await dead.admit(IP, caller(), plan, Cost(1), "a")
        await _die(dead)
        clock.unix -= 3600
        error = await refused(alive.charge_request(IP, caller(), plan))
        assert error.retry_after is not None and error.retry_after <= 60
        for _ in range(10):
            clock.advance(6)
            await alive._beat()
        await alive.charge_request(IP, caller(), plan)
        await alive.admit(IP, caller(), plan, Cost(1), "b")


# What callers and their edges cost each other


async def test_a_caller_who_gives_its_token_back_makes_no_edge_read_all_again(tmp_path: Path) -> None:
    plan = Plan("test", requests_per_minute=1)
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as one, opened(server.url) as two:
        await two.charge_request(IP, caller(), plan)
        assert (await refused(two.charge_request(IP, caller(), plan))).code == "rate_limited"
        known = two.records.limits
        gone = caller("other", jti="gone", expires_at=int(time.time()) + 600)
        await one.revoke(gone)
        await wait_until(lambda: two.revoked(gone), 10)
        assert two.records.limits is known and len(two._remembered) == 1


async def test_a_request_writes_no_more_than_one_call_of_what_an_outage_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.store.redis.store.POLL_SECONDS", 60.0)
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        await store.admit(IP, caller(), QUOTA, Cost(1), "a")
        store._settlements._waiting.update({f"left{number}": 1 for number in range(1000)})
        before = _scripts_run(server)
        await used(store, QUOTA, caller())
        assert await store.settle("a", Usage(5, 0))
        assert _scripts_run(server) - before <= 3
        assert await used(store, QUOTA, caller()) == (5, 0)


async def test_revocations_of_callers_whose_tokens_have_all_ended_are_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    async with running_redis(tmp_path / "redis") as server:
        async with opened(server.url, now=lambda: clock.unix) as store:
            admin = RedisAdmin(server.url, now=lambda: clock.unix)
            await admin.open()
            await admin.revoke_principal("caller")
            clock.unix += LONGEST_TOKEN + 86_400
            await admin.revoke_principal("other")
            await store.admit(IP, caller(), QUOTA, Cost(1), "a")  # the first of its day
            await admin.close()
        assert server.ask("HKEYS", f"{TAG}:revoked-principals") == "other"


# A flood


async def test_a_flood_of_what_is_refused_does_not_reach_the_server(tmp_path: Path) -> None:
    plan = Plan("test", requests_per_minute=3, tokens_per_day=100)
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        await store.admit(IP, caller("full"), plan, Cost(100), "a")
        await store.settle("a", Usage(0, 100))
        for call in (_charge(store, "quick", plan), _admit(store, "full", plan)):
            await asyncio.gather(*(call() for _ in range(4)), return_exceptions=True)
            before = _scripts_run(server)
            for _ in range(500):
                error = await refused(call())
                assert error.status == 429 and dict(error.extra_headers)
            # The upkeep, twice a second, is all that it heard of.
            assert _scripts_run(server) - before < 50


def _charge(store: RedisStore, name: str, plan: Plan) -> Callable[[], Any]:
    return lambda: store.charge_request(None, caller(name), plan)


def _admit(store: RedisStore, name: str, plan: Plan) -> Callable[[], Any]:
    return lambda: store.admit(None, caller(name), plan, Cost(1), "x")


def _scripts_run(server: RedisServer) -> int:
    stats = server.ask("INFO", "commandstats")
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in stats.splitlines() if "cmdstat_evalsha" in line)


def test_what_is_remembered_is_bounded_and_ends() -> None:
    moment = 0.0
    remembered = Remembered(lambda: moment, most=3)
    for number in range(10):
        remembered.keep(number, number, lambda left: ApiError("rate_limited", f"{left:g} s"), Grant())
    assert len(remembered) == 3 and remembered.find(6) is None
    moment = 7.5
    assert remembered.find(7) is None
    found = remembered.find(9)
    assert found is not None and found.message == "1.5 s"
    remembered.sweep()
    assert len(remembered) == 2


async def test_an_answer_that_ended_makes_room_for_the_next_at_once(tmp_path: Path) -> None:
    """Its end goes along with the next admission, in one call."""
    plan = Plan("test", streams=1)
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        for number in range(100):
            await store.admit(None, caller(), plan, Cost(1), f"chat{number}")
            assert await store.settle(f"chat{number}", Usage(0, 1))
        assert _scripts_run(server) < 150


async def test_it_needs_no_script_that_the_server_keeps(tmp_path: Path) -> None:
    """A server that was restarted, or emptied of scripts, is given them again."""
    async with running_redis(tmp_path / "redis") as server, opened(server.url) as store:
        await store.admit(IP, caller(), QUOTA, Cost(1), "a")
        server.ask("SCRIPT", "FLUSH")
        await store.admit(IP, caller(), QUOTA, Cost(1), "b")
        assert store.problem is None
