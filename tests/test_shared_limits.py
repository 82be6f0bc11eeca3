"""What callers of a plan share, as they see it: its tokens of a day and its seats."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, question, running_pair

PAGE = {"Origin": ORIGIN}
SURFACES = ("/v1/chat", "/v1/chat/completions")


async def refused(pair: Pair, path: str, token: str, ip: str) -> dict[str, Any]:
    """The error of a chat that is refused for a reason that is ours."""
    headers = {**PAGE, "X-Forwarded-For": ip}
    async with pair.post(path, question(model="chat:home"), key=token, headers=headers) as response:
        assert response.status == 503, await response.text()
        assert response.headers["x-should-retry"] == "false"
        assert int(response.headers["retry-after"]) >= 1
        assert "x-request-id" in response.headers
        return (await response.json())["error"]


async def token(pair: Pair, ip: str) -> str:
    """An anonymous caller's, at ``ip``."""
    headers = {**PAGE, "X-Forwarded-For": ip}
    async with pair.client.post(pair.url + "/v1/token", json={}, headers=headers) as response:
        return (await response.json())["token"]


@pytest.mark.parametrize("path", SURFACES)
async def test_anonymous_callers_share_one_budget(runtime: FakeRuntime, path: str) -> None:
    """Whoever calls from many addresses spends what all of them have together, and no more."""
    plans = {"anonymous": {"tokens_per_day_together": 1}}
    async with running_pair(runtime.url, edge={"trusted_proxies": ["127.0.0.1"]}, plans=plans) as pair:
        for ip in ("192.0.2.1", "192.0.2.2"):
            error = await refused(pair, path, await token(pair, ip), ip)
            assert error["code"] == "overloaded" and "'anonymous'" in error["message"]
        async with pair.post(path, question(model="chat:home")) as response:
            assert response.status == 200, "other plans go on"
        assert len(runtime.chats) == 1
        await pair.idle()


@pytest.mark.parametrize("path", SURFACES)
async def test_a_plan_serves_as_many_callers_as_it_has_seats(runtime: FakeRuntime, path: str) -> None:
    async with running_pair(runtime.url, plans={"beta": {"seats": 1}}) as pair:
        first, second = await pair.new_key("beta"), await pair.new_key("beta")
        for _ in range(2):
            async with pair.post(path, question(model="chat:home"), key=first) as response:
                assert response.status == 200, await response.text()
        error = await refused(pair, path, second, "192.0.2.1")
        assert error["code"] == "overloaded" and "seats" in error["message"]
        async with pair.get("/v1/me", key=second) as response:
            assert response.status == 503
        await pair.idle()
