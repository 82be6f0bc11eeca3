"""Closed by the owner: who is told what, what goes on, and how it opens again."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from edge.store.records import Maintenance
from shared.contract.sse import Decoder
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, create_key, question, running_pair
from tests.waiting import wait_until

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
MESSAGE = "A new model is being loaded. Back at 15:00 UTC – promised."


@pytest.fixture
async def admin(pair: Pair) -> dict[str, str]:
    """The header of somebody who may."""
    key = create_key(pair.state, scopes=("chat", "admin"))
    await wait_until(lambda: pair._knows(key))
    return {"Authorization": f"Bearer {key}"}


async def close(pair: Pair, admin: dict[str, str], **body: Any) -> None:
    async with pair.client.put(pair.url + "/admin/maintenance", json=body, headers=admin) as response:
        answer = await response.json()
        assert (response.status, answer["on"]) == (200, True), answer
        assert abs(answer["since"] - time.time()) < 30
    await wait_until(lambda: pair.edge.services.store.records.maintenance is not None)


async def reopen(pair: Pair, admin: dict[str, str]) -> None:
    async with pair.client.delete(pair.url + "/admin/maintenance", headers=admin) as response:
        assert (response.status, await response.json()) == (200, {"on": False})
    await wait_until(lambda: pair.edge.services.store.records.maintenance is None)


async def status_of(pair: Pair, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with pair.client.request(method, pair.url + path, **more) as response:
        return response.status, await response.read()


async def test_everybody_is_told_the_owners_message(pair: Pair, admin: dict[str, str]) -> None:
    """With a good credential, a bad one, or none; on every route that does something."""
    token = await pair.token()
    await close(pair, admin, message=MESSAGE)
    tries = [
        ("POST", NATIVE, pair.bearer()),
        ("POST", OPENAI, {}),
        ("POST", OPENAI, {"Authorization": "Bearer nonsense"}),
        ("POST", NATIVE, admin),
        ("POST", "/v1/token", {"Origin": ORIGIN}),
        ("DELETE", "/v1/token", pair.bearer(token) | {"Origin": ORIGIN}),
        ("GET", "/v1/me", pair.bearer()),
        ("GET", "/v1/models", pair.bearer()),
        ("GET", "/v1/models/fake-model", pair.bearer()),
        ("GET", "/v1/chat/types", pair.bearer()),
        ("DELETE", "/v1/chat/abc", pair.bearer()),
    ]
    for method, path, headers in tries:
        async with pair.client.request(method, pair.url + path, json=question(), headers=headers) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"], error["message"]) == (503, "maintenance", MESSAGE), path
            assert response.headers["retry-after"] == "60"
            assert response.headers["x-should-retry"] == "false"
            if "Origin" in headers:
                assert response.headers["access-control-allow-origin"] == ORIGIN
    await reopen(pair, admin)
    async with pair.post(NATIVE, question()) as response:
        assert response.status == 200
    async with pair.get("/v1/me", key=token, headers={"Origin": ORIGIN}) as response:
        assert response.status == 200, "the token was not ended by the caller who was refused"


async def test_what_stays_open(pair: Pair, admin: dict[str, str]) -> None:
    await close(pair, admin)
    for path in ("/livez", "/readyz", "/"):
        assert (await status_of(pair, "GET", path))[0] == 200
    assert (await status_of(pair, "GET", "/hearthlink.js"))[0] == 200
    async with pair.client.get(pair.url + "/healthz") as response:
        assert (response.status, (await response.json())["status"]) == (503, "maintenance")
    async with pair.client.get(pair.url + "/health") as response:
        assert (response.status, (await response.json())["status"]) == (503, "unhealthy")
    async with pair.client.get(pair.ops_url + "/metrics") as response:
        assert response.status == 200
    async with pair.client.get(pair.url + "/admin/keys", headers=admin) as response:
        assert response.status == 200
    async with pair.client.get(pair.url + "/admin/maintenance", headers=admin) as response:
        answer = await response.json()
        assert (answer["on"], answer["ends_answers"]) == (True, False) and "closed for a while" in answer["message"]
    assert (await status_of(pair, "GET", "/admin/keys"))[0] == 401
    await reopen(pair, admin)
    async with pair.client.get(pair.url + "/healthz") as response:
        assert response.status == 200


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
async def test_running_answers_end_where_the_owner_wants_that(
    runtime: FakeRuntime, pair: Pair, admin: dict[str, str], path: str
) -> None:
    """Within 5 s of the owner's word, with the same error, on each surface; a whole answer that has not come, too."""
    runtime.script = "stall_mid_stream"
    body = question(stream=True) | ({"model": "chat:home"} if path == OPENAI else {})
    async with pair.post(path, body) as response:
        assert response.status == 200
        await response.content.readany()
        whole = asyncio.create_task(self_ended(pair, path, body | {"stream": False}))
        await wait_until(lambda: len(pair.edge.services.chats) == 2)
        await close(pair, admin, message=MESSAGE)
        await asyncio.sleep(1.2)
        assert len(pair.edge.services.chats) == 2, "they go on unless it is wanted"
        began = time.monotonic()
        await close(pair, admin, message=MESSAGE, ends_answers=True)
        rest = await response.content.read()
        assert time.monotonic() - began < 5
    last = Decoder().feed(rest)[-1]
    assert '"code":"maintenance"' in last.data.replace(" ", "") and MESSAGE in last.data and "[DONE]" not in last.data
    status, error = await whole
    assert (status, error["code"], error["message"]) == (503, "maintenance", MESSAGE)
    await pair.idle()
    outcomes = [line.get("outcome") for line in pair.audit if line["route"] == path]
    assert outcomes == ["maintenance", "maintenance"]


async def self_ended(pair: Pair, path: str, body: Any) -> tuple[int, Any]:
    async with pair.post(path, body) as response:
        return response.status, (await response.json())["error"]


async def test_an_edge_that_starts_while_it_is_closed_is_closed(runtime: FakeRuntime, tmp_path: Path) -> None:
    key = create_key(tmp_path, scopes=("chat", "admin"))
    async with running_pair(runtime.url, state=tmp_path) as pair:
        await close(pair, {"Authorization": f"Bearer {key}"}, message=MESSAGE)
    async with running_pair(runtime.url, state=tmp_path) as pair, pair.post(NATIVE, question()) as response:
        assert (response.status, (await response.json())["error"]["message"]) == (503, MESSAGE)


def test_a_message_is_one_line() -> None:
    assert Maintenance.begun(" Soon. ", 7.9, ends_answers=True) == Maintenance("Soon.", 7, True)


async def test_the_log_and_the_metrics_tell_the_owner(pair: Pair, admin: dict[str, str]) -> None:
    said: list[str] = []
    sink = logger.add(said.append, format="{level} {message}", filter="edge.api.maintenance")

    async def gauge() -> float:
        async with pair.client.get(pair.ops_url + "/metrics") as response:
            found = re.search(r"^hearthlink_edge_maintenance (\S+)$", await response.text(), re.MULTILINE)
            assert found
            return float(found[1])

    try:
        assert await gauge() == 0
        await close(pair, admin, message=MESSAGE)
        assert await gauge() == 1
        await wait_until(lambda: len(said) == 1)
        await reopen(pair, admin)
        await wait_until(lambda: len(said) == 2)
    finally:
        logger.remove(sink)
    assert said == [
        f"WARNING the edge is closed to all but admins, who tell callers: {MESSAGE}\n",
        "INFO the edge is open again\n",
    ]
