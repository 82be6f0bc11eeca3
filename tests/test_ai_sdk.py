"""The unmodified AI SDK with its provider for OpenAI-compatible servers, in Node: text and streams with their usage,
typed errors, retries that wait as they are told, and an abort that stops the model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import text, words
from tests.javascript import PACKAGES, install, require_node, run
from tests.pair import Pair, create_key, running_pair
from tests.sdk_cases import PLAN, as_asked, asked

pytestmark = pytest.mark.asyncio(loop_scope="module")

Told = tuple[dict[str, Any], Pair, FakeRuntime]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Told]:
    """What the cases told, and the pair they were told of."""
    require_node()
    await install(PACKAGES)
    state = tmp_path_factory.mktemp("state")
    async with (
        FakeRuntime(as_asked) as runtime,
        running_pair(runtime.url, state=state, plans={"tiny": PLAN}) as pair,
    ):
        key = create_key(state, "tiny")
        said = await run("node", "ai_sdk.js", cwd=PACKAGES, seconds=60, EDGE=pair.url, KEY=key)
        yield json.loads(said), pair, runtime


@pytest.fixture
def cases(told: Told) -> dict[str, Any]:
    return told[0]


async def test_generate_text(cases: dict[str, Any]) -> None:
    answer = cases["answer"]
    assert (answer["text"], answer["finishReason"]) == (text(5), "stop")
    assert [answer["usage"][name] for name in ("inputTokens", "outputTokens", "totalTokens")] == [7, 5, 12]
    assert len(answer["requestID"]) == 22


async def test_stream_text_comes_piece_by_piece(cases: dict[str, Any]) -> None:
    stream = cases["stream"]
    assert stream["pieces"] == words(10)
    assert stream["finishReason"] == "stop"
    assert [stream["usage"][name] for name in ("inputTokens", "outputTokens", "totalTokens")] == [7, 10, 17]
    assert stream["last"] - stream["first"] > 250  # milliseconds; nine more were sent 50 ms apart


async def test_an_abort_stops_the_model(told: Told) -> None:
    cases, pair, runtime = told
    assert cases["aborting"] == "abort"
    left = [chat for chat in runtime.chats if asked(chat) == "endless"]
    assert [chat.outcome for chat in left] == ["aborted"]
    await pair.idle()


@pytest.mark.parametrize(
    ("name", "status", "code", "retryable"),
    [
        ("wrong token", 401, "invalid_token", False),
        ("wrong chat type", 404, "chat_type_not_found", False),
        ("no more today", 429, "quota_exceeded", True),
    ],
)
async def test_errors_are_understood(cases: dict[str, Any], name: str, status: int, code: str, retryable: bool) -> None:
    error = cases[name]
    assert (error["typed"], error["statusCode"], error["isRetryable"]) == (True, status, retryable)
    assert error["data"]["error"]["code"] == code
    assert error["message"] == error["data"]["error"]["message"]
    assert len(error["requestID"]) == 22


async def test_an_error_in_mid_stream(cases: dict[str, Any]) -> None:
    told = cases["cut in mid-stream"]
    assert told["text"] == text(2)
    assert told["finishReason"] == "error"
    assert len(told["errors"]) == 1


async def test_a_429_is_asked_again_when_it_says(cases: dict[str, Any]) -> None:
    told = cases["asked again after 429"]
    assert told["refused"]["data"]["error"]["code"] == "concurrency_limited"
    assert (told["text"], told["busy"]) == (text(5), text(10))
    assert told["waited"] > 1000  # milliseconds; the answer before it took 500
