"""The JavaScript client's own tests, its types, its example, and the client against a live pair."""

from __future__ import annotations

import json
import re

import pytest

from shared import __version__
from shared.contract.errors import ApiError
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.javascript import NODE_TEST, install, require_node, run
from tests.pair import ORIGIN, Pair, running_pair
from tests.processes import ROOT
from tests.waiting import wait_until

CLIENT = ROOT / "clients" / "js"
EXAMPLE = CLIENT / "examples" / "vite"

needs_node = pytest.mark.usefixtures("node")


@pytest.fixture
def node() -> None:
    """Node 20 or later with npm; continuous integration must have them."""
    require_node()


def names(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(CLIENT)) for path in CLIENT.glob(pattern))


@needs_node
async def test_its_own_tests() -> None:
    await install(CLIENT)
    said = await run(*NODE_TEST, *(name for name in names("test/*.test.js") if "live" not in name), cwd=CLIENT)
    counts = dict(re.findall(r"^# (tests|pass) (\d+)$", said, re.MULTILINE))
    assert int(counts["pass"]) == int(counts["tests"]) > 200, said


@needs_node
async def test_types() -> None:
    await install(CLIENT)
    await run("node", "node_modules/typescript/bin/tsc", "--project", "test/types", cwd=CLIENT)


@needs_node
async def test_example_builds() -> None:
    await install(EXAMPLE)
    await run("npm", "run", "build", cwd=EXAMPLE, VITE_AI_API_BASE_URL="http://edge.test", VITE_AI_CLIENT_ID="a-name")
    built = "".join(path.read_text() for path in (EXAMPLE / "dist" / "assets").glob("*.js"))
    assert "http://edge.test" in built
    assert "a-name" in built


async def expired_token(pair: Pair) -> str:
    """A token of a page on ORIGIN that was good until a moment ago."""
    tokens = pair.edge.services.tokens
    token, _ = tokens.mint(tokens.verify(await pair.token()), lifetime=1)

    def is_over() -> bool:
        try:
            tokens.verify(token)
        except ApiError as error:
            return error.code == "token_expired"
        return False

    await wait_until(is_over)
    return token


@needs_node
async def test_against_a_live_pair() -> None:
    async with FakeRuntime(normal(n=20, delay=0.02)) as runtime, running_pair(runtime.url) as pair:
        said = await run(
            *NODE_TEST,
            "test/live.test.js",
            cwd=CLIENT,
            HEARTHLINK_LIVE_URL=pair.url,
            HEARTHLINK_LIVE_ORIGIN=ORIGIN,
            HEARTHLINK_LIVE_EXPIRED_TOKEN=await expired_token(pair),
        )
        assert re.search(r"^# skipped 0$", said, re.MULTILINE), said
        await pair.idle()  # what was stopped has given back its slot
        outcomes = [line["outcome"] for line in pair.audit if line["route"] == "/v1/chat" and line["status"] == 200]
        assert [outcome for outcome in outcomes if outcome != "stop"] in (["stopped"], ["cancelled"])
        assert "live-test" in [line.get("client_id") for line in pair.audit]


def test_version_is_the_projects() -> None:
    assert json.loads((CLIENT / "package.json").read_text())["version"] == __version__
