"""What the doctor says of the server that edges share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.store.redis.admin import RedisAdmin
from hearthlink.doctor import disk
from hearthlink.doctor.machine import Machine
from hearthlink.doctor.report import Line
from hearthlink.doctor.store import store
from tests.local_app import free_port
from tests.pair import settings_for
from tests.redis_server import running_redis
from tests.tcp_proxy import TcpProxy


async def found(state: Path, url: str, **edge: Any) -> Sequence[Line]:
    sections: Mapping[str, Mapping[str, Any]] = {"edge": {"store": url, "store_timeout": "5s", **edge}}
    async with Machine(settings_for(state, sections)) as machine:
        return await store(machine)


async def test_a_store_that_is_well_is_told_with_its_round_trip(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis", appendonly="yes") as server:
        [line] = await found(tmp_path, server.url)
    assert line.state == "ok" and "ms" in line.text


async def test_no_file_is_missed_where_the_store_is_a_server(tmp_path: Path) -> None:
    for url, lines in (("redis://127.0.0.1:1/0", 0), ("sqlite", 1)):
        async with Machine(settings_for(tmp_path, {"edge": {"store": url}})) as machine:
            assert len(disk.database(machine)) == lines


async def test_an_edge_of_its_own_has_no_such_store(tmp_path: Path) -> None:
    assert await found(tmp_path, "sqlite") == []


@pytest.mark.case("E60")
async def test_a_store_that_may_throw_counts_away_is_told(tmp_path: Path) -> None:
    options = {"maxmemory": "100mb", "maxmemory_policy": "allkeys-lfu"}
    async with running_redis(tmp_path / "redis", **options) as server:
        [line] = await found(tmp_path, server.url)
        assert line.state == "broken" and "allkeys-lfu" in line.text
        assert line.mend == f"redis-cli -h 127.0.0.1 -p {server.port} CONFIG SET maxmemory-policy noeviction"
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        assert [line.state for line in await found(tmp_path, server.url)] == ["warning"]


async def test_a_store_without_a_journal_is_a_doubt(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis") as server:
        [line] = await found(tmp_path, server.url)
    assert line.state == "warning" and line.mend.endswith("CONFIG SET appendonly yes")


async def test_a_store_that_needs_most_of_a_requests_time_is_a_doubt(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis", appendonly="yes") as server, TcpProxy() as proxy:
        proxy.target = server.port
        proxy.bytes_per_second = 20_000
        [line] = await found(tmp_path, f"redis://127.0.0.1:{proxy.port}/0", store_timeout=0.005)
    assert line.state == "warning" and "waits 5 ms at most" in line.text


async def test_a_key_whose_plan_is_gone_is_told(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis", appendonly="yes") as server:
        admin = RedisAdmin(server.url)
        await admin.open()
        await admin.create_key("ci", "club", ["chat"])
        await admin.create_key("other", "member", ["chat"])
        await admin.close()
        lines = await found(tmp_path, server.url)
    assert [(line.check, line.state) for line in lines] == [("plans", "broken"), ("store", "ok")]
    assert "club" in lines[0].text


async def test_the_doctor_leaves_an_empty_store_empty(tmp_path: Path) -> None:
    async with running_redis(tmp_path / "redis", appendonly="yes") as server:
        await found(tmp_path, server.url)
        assert server.ask("DBSIZE") == "0"


async def test_a_store_that_is_not_there_is_told_without_the_password(tmp_path: Path) -> None:
    [line] = await found(tmp_path, f"redis://edge:secret@127.0.0.1:{free_port()}/0")
    assert line.state == "broken" and "secret" not in line.text + line.mend
