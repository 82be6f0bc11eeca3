"""The private beta of docs/tailnet.md, from its policy to a tester's first answer: with the settings that stand there,
under ``infra/tailscale/policy.hujson``."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from shared.contract.sse import Decoder
from tests.doc_examples import alike, blocks, from_json, in_language
from tests.tailnet.deployed import Deployed, edge_on, node_on
from tests.tailnet.member import Member
from tests.tailnet.tailnet import Tailnet

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = (Path(__file__).resolve().parent.parent.parent / "infra" / "tailscale" / "policy.hujson").read_text()
_LOGIN = "tester@example.com"
_QUESTION = "We have an hour and it rains."


@dataclass(frozen=True)
class Beta:
    """``url`` is what ``setup tailnet`` printed, ``host`` the name in it."""

    edge: Deployed
    node: Deployed
    tester: Member
    owner: Member
    url: str
    host: str
    address: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def beta(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Beta]:
    folder = tmp_path_factory.mktemp("beta")
    for name in ("tester", "owner"):
        await tailnet.headscale.cli("users", "create", name, "--email", f"{name}@example.com")
    gpu, edge, tester, owner = await asyncio.gather(
        tailnet.member("gpu", tags=["tag:gpu"]),
        tailnet.member("edge", tags=["tag:edge"]),
        tailnet.member("tester", user="tester"),
        tailnet.member("owner", user="owner"),
    )
    written = tomllib.loads(next(block.text for block in in_language("toml") if "[plans.beta]" in block.text))
    upstreams = {"gpu": {"node": written["edge"]["upstreams"]["gpu"]["node"]}}
    async with node_on(gpu, folder) as node, edge_on(edge, folder, upstreams, plans=written["plans"]) as front:
        await front.ready(40)
        await edge.meets(tester, owner)
        served = json.loads(await front.command("setup", "tailnet", "--json"))
        host = served["url"].removeprefix("http://").rstrip("/")
        yield Beta(front, node, tester, owner, served["url"], host, await edge.address())


@asynccontextmanager
async def as_a_page(beta: Beta, member: Member) -> AsyncIterator[aiohttp.ClientSession]:
    """Asks as a browser does that has the page open."""
    same = {"Host": beta.host, "Origin": f"http://{beta.host}", "Sec-Fetch-Site": "same-origin"}
    async with member.machine.client(headers=same, base_url=f"http://{beta.address}/") as client:
        yield client


async def test_a_tester_opens_the_page_and_is_answered(beta: Beta) -> None:
    """Without a login, an invite or a key: the policy says who they are and how much they may."""
    async with as_a_page(beta, beta.tester) as client:
        async with client.get("/") as response:
            assert response.status == 200
            assert "<!doctype html>" in (await response.text()).lower()
        token = await given_token(client)
        assert (token["principal"]["kind"], token["principal"]["plan"]) == ("tailnet", "beta")
        assert token["limits"] == {
            "requests_per_minute": 30,
            "streams": 2,
            "tokens_per_day": 100_000,
            "tokens_per_request": 2048,
        }
        assert await answer(client, token["token"])


async def test_the_edge_tells_the_way_to_its_node_as_documented(beta: Beta) -> None:
    """The block of docs/api.md; ``path`` and ``relay`` are settled a while after the first packets."""
    written = next(block.text for block in blocks() if block.text.startswith('"tailnet": '))
    health = await beta.edge.health()
    assert alike(from_json("{" + written + "}"), from_json(json.dumps({"tailnet": health["nodes"][0]["tailnet"]})))
    assert health["tailnet"].keys() == {"state", "reason", "machine", "addresses", "serve"}
    assert (health["tailnet"]["machine"], health["tailnet"]["serve"]) == ("edge.tail.test", "unix")


async def test_the_nodes_health_is_told_on_its_machine(beta: Beta) -> None:
    through = aiohttp.UnixConnector(str(beta.node.state / "node.sock"))
    async with aiohttp.ClientSession(connector=through) as client, client.get("http://node/healthz") as response:
        assert response.status == 200
        health = await response.json()
    assert health["tailnet"]["addresses"] == [await beta.node.member.address(version) for version in (4, 6)]


async def test_an_owner_may_administer(beta: Beta) -> None:
    async with as_a_page(beta, beta.owner) as client:
        bearer = {"Authorization": f"Bearer {(await given_token(client))['token']}"}
        async with client.get("/v1/me", headers=bearer) as response:
            me = await response.json()
    assert (me["principal"]["plan"], me["scopes"]) == ("owner", ["chat", "admin"])


async def test_what_is_written_down_about_them(beta: Beta) -> None:
    """As the page says: the login stands in the lines of tokens and nowhere else, an address and what was said
    nowhere."""
    async with as_a_page(beta, beta.tester) as client:
        said = await answer(client, (await given_token(client))["token"])
    await beta.edge.logged('"/v1/chat"')
    naming = [line for line in beta.edge.log_text().splitlines() if _LOGIN in line]
    assert naming and all('"/v1/token"' in line for line in naming)
    for deployed in (beta.edge, beta.node):
        kept = [path.read_bytes() for path in deployed.state.rglob("*") if path.is_file()]
        written = [deployed.log.read_bytes(), *kept]
        assert not any(text.encode() in place for text in (_QUESTION, said) for place in written)
        assert not any(_LOGIN.encode() in place for place in kept)
        assert await beta.tester.address() not in deployed.log_text()
    assert _LOGIN not in beta.node.log_text()


async def test_the_door_is_shut_again(beta: Beta) -> None:
    await beta.edge.command("setup", "tailnet", "--off")
    async with as_a_page(beta, beta.tester) as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.get("/", raise_for_status=True):
                pass


async def given_token(client: aiohttp.ClientSession) -> dict[str, Any]:
    async with client.post("/v1/token", json={}) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def answer(client: aiohttp.ClientSession, token: str) -> str:
    """The streamed words; the stream has to be whole."""
    body = {"stream": True, "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 24}
    async with client.post("/v1/chat", json=body, headers={"Authorization": f"Bearer {token}"}) as response:
        assert response.status == 200, await response.text()
        events = [event.data for event in Decoder().feed(await response.read())]
    assert events.pop() == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
