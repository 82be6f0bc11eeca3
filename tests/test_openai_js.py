"""The unmodified ``openai`` package for JavaScript, in Node and in a page on another allowed origin: it streams, gets
typed errors with the request id, waits as it is told, and leaving its streams stops the model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser import Visitor, visiting
from tests.elsewhere import elsewhere
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import text, words
from tests.javascript import PACKAGES, install, require_node, run
from tests.pair import ORIGIN, Pair, create_key, running_pair
from tests.sdk_cases import PLAN, as_asked, asked

pytestmark = pytest.mark.asyncio(loop_scope="module")

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
# What a page sees of the errors that the cases ask for.
PROVOKED = ("status of 401", "status of 404", "status of 429")
IN_A_PAGE = """async ([edge, origin]) => {
    const { default: OpenAI } = await import(`${origin}/openai/index.mjs`)
    const { allCases } = await import(`${origin}/cases/openai_cases.js`)
    const { createClient } = await import(`${edge}/hearthlink.js`)
    const client = createClient({ baseUrl: edge })
    return allCases({ OpenAI, edge, apiKey: () => client.token() })
}"""


@asynccontextmanager
async def other_site() -> AsyncIterator[str]:
    """A page on another origin, with the package as it comes."""
    await install(PACKAGES)
    async with elsewhere({"openai": PACKAGES / "node_modules" / "openai", "cases": PACKAGES}) as origin:
        yield origin


Told = tuple[dict[str, Any], Pair, FakeRuntime]


@asynccontextmanager
async def pair_for(origin: str, state: Path) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    settings = {"allowed_origins": [origin]}
    plans = {"tiny": PLAN, "anonymous": PLAN}
    async with (
        FakeRuntime(as_asked) as runtime,
        running_pair(runtime.url, state=state, edge=settings, plans=plans) as pair,
    ):
        yield pair, runtime


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def in_node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Told]:
    require_node()
    await install(PACKAGES)
    async with pair_for(ORIGIN, tmp_path_factory.mktemp("state")) as (pair, runtime):
        key = create_key(pair.state, "tiny")
        said = await run("node", "openai_node.js", cwd=PACKAGES, seconds=60, EDGE=pair.url, KEY=key)
        yield json.loads(said), pair, runtime


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def in_a_page(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Told]:
    async with (
        other_site() as origin,
        pair_for(origin, tmp_path_factory.mktemp("state")) as (pair, runtime),
        visiting(chromium) as visitor,
    ):
        page = await visitor.open(origin, pair.url)
        for complaint in PROVOKED:
            visitor.expects(complaint)
        yield await page.evaluate(IN_A_PAGE, [pair.url, origin]), pair, runtime


@pytest.fixture(scope="module", params=["in_node", "in_a_page"])
def told(request: pytest.FixtureRequest) -> Told:
    """What the cases told, and the pair they were told of."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def cases(told: Told) -> dict[str, Any]:
    return told[0]


async def test_a_whole_answer(cases: dict[str, Any]) -> None:
    answer = cases["answer"]
    assert (answer["text"], answer["finish_reason"]) == (text(5), "stop")
    assert answer["usage"].items() >= USAGE.items()
    assert len(answer["requestID"]) == 22


async def test_a_stream_comes_piece_by_piece(cases: dict[str, Any]) -> None:
    stream = cases["stream"]
    assert stream["pieces"] == words(10)
    assert stream["finish_reason"] == "stop"
    assert stream["usage"]["completion_tokens"] == 10
    assert stream["last"] - stream["first"] > 250  # milliseconds; nine more were sent 50 ms apart


async def test_the_streaming_helper(cases: dict[str, Any]) -> None:
    assert cases["helper"] == {"text": text(5), "final": text(5)}


async def test_models(cases: dict[str, Any]) -> None:
    assert cases["models"][:4] == ["chat:home", "chat:somethingFun", "chat:whatToOrder", "chat:whereToGo"]


async def test_leaving_a_stream_stops_the_model(told: Told) -> None:
    cases, pair, runtime = told
    assert cases["breaking"] and cases["aborting"]
    left = [chat for chat in runtime.chats if asked(chat) == "endless"]
    assert [chat.outcome for chat in left] == ["aborted", "aborted"]
    await pair.idle()


@pytest.mark.parametrize(
    ("name", "kind", "status", "code"),
    [
        ("wrong token", "AuthenticationError", 401, "invalid_token"),
        ("wrong chat type", "NotFoundError", 404, "chat_type_not_found"),
        ("wrong model", "NotFoundError", 404, "model_not_found"),
        ("no more today", "RateLimitError", 429, "quota_exceeded"),
    ],
)
async def test_errors_are_typed_and_carry_the_request_id(
    cases: dict[str, Any], name: str, kind: str, status: int, code: str
) -> None:
    error = cases[name]
    assert (error["kind"], error["status"], error["code"]) == (kind, status, code)
    assert len(error["requestID"]) == 22
    assert error["message"]


async def test_an_error_in_mid_stream(cases: dict[str, Any]) -> None:
    error = cases["cut in mid-stream"]
    assert (error["kind"], error["code"]) == ("APIError", "upstream_incomplete")


async def test_a_429_is_asked_again_when_it_says(cases: dict[str, Any]) -> None:
    told = cases["asked again after 429"]
    assert told["refused"]["code"] == "concurrency_limited"
    assert told["refused"]["retryAfter"] == "1"
    assert told["text"] == text(5)
    assert told["waited"] > 1000  # milliseconds; the answer before it took 500


async def test_a_429_for_the_day_is_not_asked_again(told: Told) -> None:
    cases, pair, _ = told
    assert cases["no more today"]["shouldRetry"] == "false"
    assert [line["outcome"] for line in pair.audit if line["status"] == 429].count("quota_exceeded") == 1


async def test_a_page_elsewhere_is_refused(module_pair: tuple[Pair, FakeRuntime], visitor: Visitor) -> None:
    pair, runtime = module_pair
    async with other_site() as origin:
        page = await visitor.open(origin, pair.url)
        visitor.expects("blocked by CORS policy")
        visitor.expects("net::ERR_FAILED")
        said = await page.evaluate(
            """async ([edge, key]) => {
                const { default: OpenAI } = await import('/openai/index.mjs')
                const { createClient } = await import(`${edge}/hearthlink.js`)
                const options = { baseURL: `${edge}/v1`, apiKey: key, dangerouslyAllowBrowser: true, maxRetries: 0 }
                const openai = await new OpenAI(options).models.list().catch((error) => error)
                const client = createClient({ baseUrl: edge, retry: { attempts: 1 } })
                const ours = await client.token().catch((error) => error)
                return [openai.constructor.name, ours.name, ours.message]
            }""",
            [pair.url, pair.key],
        )
    assert said[:2] == ["APIConnectionError", "NetworkError"]
    assert "edge.allowed_origins" in said[2]
    assert runtime.chats == []
