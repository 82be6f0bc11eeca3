"""Tailscale Serve in front of the edge, in a real tailnet: the door knows the person on the other end, and nobody can
write who that is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import expect

from edge.doors.grants import example
from shared.tailscale.client import LocalClient
from tests.browser import Visitor, require_chromium, running_chromium, visiting
from tests.chat_page import ChatPage
from tests.tailnet.deployed import OPS, PUBLIC, Deployed, edge_on, node_on
from tests.tailnet.member import Member
from tests.tailnet.tailnet import PERSON, Tailnet, policy

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAPABILITY = "hearthlink.internal/cap/tester"
NAME = "edge.tail.test"
# A person without a grant.
OTHER = "bo"
# The plan of a grant, and a limit in place of the plan's own.
BETA = {"plan": "beta", "roles": ["chat"], "limits": {"streams": 7}}
PLANS = {"beta": {"requests_per_minute": 600, "streams": 1, "tokens_per_day": 5000, "tokens_per_request": 64}}
# Seconds for what the control server must first tell others.
_SOON = 30.0


def allowing(*values: Any) -> dict[str, Any]:
    """A policy in which the person's grant has these values; all may knock at the edge's ports."""
    everybody = {"src": ["*"], "dst": ["tag:edge"], "ip": ["tcp:80", "tcp:8700-8702"]}
    person = {"src": [f"{PERSON}@"], "dst": ["tag:edge"], "ip": ["tcp:80"], "app": {CAPABILITY: list(values)}}
    return policy(everybody, *([person] if values else []))


POLICY = allowing(BETA)


@dataclass(frozen=True)
class Members:
    """``house`` runs the edge; ``other`` is a phone of somebody without a grant, ``gpu`` a tagged machine."""

    house: Member
    phone: Member
    other: Member
    gpu: Member


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def members(tailnet: Tailnet) -> Members:
    house, phone, other, gpu = await asyncio.gather(
        tailnet.member("edge", tags=["tag:edge"]),
        tailnet.member("phone", user=PERSON),
        tailnet.member("other", user=OTHER),
        tailnet.member("gpu", tags=["tag:gpu"]),
    )
    await house.meets(phone, other, gpu)
    return Members(house, phone, other, gpu)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(members: Members, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployed]:
    """An edge with a node, both on the house's machine, served to the tailnet by the command that the owner runs."""
    folder = tmp_path_factory.mktemp("door")
    async with (
        node_on(members.house, folder, listen="127.0.0.1:8001"),
        edge_on(members.house, folder, {"default": {"url": "ws://127.0.0.1:8001/link"}}, plans=PLANS) as edge,
    ):
        await edge.ready(40)
        await edge.logged("Tailscale Serve may call at unix:")
        served = json.loads(await edge.command("setup", "tailnet", "--json"))
        assert (served["url"], served["https"]) == (f"http://{NAME}/", False)
        yield edge


@dataclass(frozen=True)
class Answer:
    status: int
    json: dict[str, Any]

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


async def ask(
    caller: Member, at: str, method: str, path: str, headers: Mapping[str, str] | None = None, **body: Any
) -> Answer:
    """From ``caller`` to the address ``at``, by the name of the house."""
    named = {"Host": NAME, **(headers or {})}
    async with (
        caller.machine.client() as client,
        client.request(method, f"http://{at}{path}", headers=named, **body) as response,
    ):
        return Answer(response.status, json.loads(await response.text()))


async def mint(caller: Member, house: Member, headers: Mapping[str, str] | None = None, port: int = 80) -> Answer:
    """``POST /v1/token`` as the page sends it."""
    page = {"Origin": f"http://{NAME}", **(headers or {})}
    return await ask(caller, f"{await house.address()}:{port}", "POST", "/v1/token", page, json={})


async def until_minted(caller: Member, house: Member, wanted: Any, of: Any) -> Answer:
    """The first answer of which ``of`` gives ``wanted``: a policy takes a moment to arrive."""
    async with asyncio.timeout(_SOON):
        while of(answer := await mint(caller, house)) != wanted:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.2)
    return answer


async def test_a_person_is_logged_in_with_no_form(members: Members, edge: Deployed) -> None:
    house = await members.house.address()
    answer = await mint(members.phone, members.house)
    assert answer.status == 200, answer.json
    assert (answer.json["principal"]["kind"], answer.json["principal"]["plan"]) == ("tailnet", "beta")
    assert answer.json["limits"] == {**PLANS["beta"], "streams": 7}, "the grant's own limit, the others of its plan"
    bearer = {"Authorization": f"Bearer {answer.json['token']}", "Origin": f"http://{NAME}"}
    me = await ask(members.phone, house, "GET", "/v1/me", bearer)
    assert (me.json["principal"], me.json["scopes"]) == (answer.json["principal"], ["chat"])
    said = {"messages": [{"role": "user", "content": "Hi"}], "stream": False}
    chat = await ask(members.phone, house, "POST", "/v1/chat", bearer, json=said)
    assert chat.status == 200, chat.json
    assert chat.json["usage"]["completion_tokens"] > 0
    await edge.logged(f'"login":"{PERSON}"')


async def test_a_person_is_the_same_on_both_addresses(members: Members, edge: Deployed) -> None:
    over_ipv4 = await mint(members.phone, members.house)
    at = f"[{await members.house.address(6)}]"
    over_ipv6 = await ask(members.phone, at, "POST", "/v1/token", {"Origin": f"http://{NAME}"}, json={})
    assert over_ipv6.status == 200, over_ipv6.json
    assert over_ipv6.json["principal"] == over_ipv4.json["principal"]


async def test_a_person_without_a_grant_is_told_what_the_owner_adds(members: Members, edge: Deployed) -> None:
    answer = await mint(members.other, members.house)
    assert (answer.status, answer.code) == (403, "insufficient_scope")
    assert json.dumps(example(OTHER, "tag:edge", 80, CAPABILITY)) in answer.json["error"]["message"]


async def test_a_tagged_machine_is_nobody(members: Members, edge: Deployed) -> None:
    forged = {"Tailscale-User-Login": PERSON, "X-Forwarded-For": await members.phone.address()}
    for headers in ({}, forged):
        answer = await mint(members.gpu, members.house, headers)
        assert (answer.status, answer.code) == (401, "missing_token")
    answer = await mint(members.house, members.house)
    assert (answer.status, answer.code) == (401, "missing_token"), "Serve names nobody for its own machine"


async def test_serve_takes_forged_headers_away(members: Members, edge: Deployed) -> None:
    forged = {
        "Tailscale-User-Login": PERSON,
        "X-Forwarded-For": await members.phone.address(),
        "X-Forwarded-Host": "evil.example",
        "Tailscale-App-Capabilities": json.dumps({CAPABILITY: [{"plan": "owner"}]}),
    }
    answer = await mint(members.other, members.house, forged)
    assert (answer.status, answer.code) == (403, "insufficient_scope")
    assert answer.json["error"]["message"].startswith(f"{OTHER} has no grant")
    own = await mint(members.phone, members.house, {**forged, "Tailscale-User-Login": OTHER})
    assert own.json["principal"] == (await mint(members.phone, members.house)).json["principal"]


async def test_forged_headers_do_nothing_on_the_other_listeners(members: Members, edge: Deployed) -> None:
    forged = {"Tailscale-User-Login": PERSON, "X-Forwarded-For": await members.phone.address()}
    for base in (PUBLIC, OPS):
        at = base.removeprefix("http://")
        here = {**forged, "Host": at}
        for more in ({}, {"Origin": f"http://{NAME}", "X-Forwarded-Host": NAME}):
            answer = await ask(members.house, at, "POST", "/v1/token", {**here, **more}, json={})
            assert (answer.status, answer.code) == (403, "origin_not_allowed")
        assert (await ask(members.house, at, "GET", "/v1/me", here)).code == "missing_token"
    on_ops = await ask(members.house, OPS.removeprefix("http://"), "GET", "/v1/me", forged)
    assert (on_ops.status, on_ops.code) == (400, "invalid_request"), "its name in the tailnet is none there"


async def test_a_page_elsewhere_gets_no_token_of_a_person(members: Members, edge: Deployed) -> None:
    for headers in ({"Origin": "http://gpu.tail.test"}, {"Host": "evil.example", "Origin": "http://evil.example"}):
        try:
            answer = await mint(members.phone, members.house, headers)
        except json.JSONDecodeError:
            assert headers.get("Host"), "Serve itself knows no such name"
            continue
        assert (answer.status, answer.code) == (403, "origin_not_allowed")


async def test_a_change_of_the_policy_holds_from_the_next_token_on(
    tailnet: Tailnet, members: Members, edge: Deployed
) -> None:
    before = (await mint(members.phone, members.house)).json
    await tailnet.policy(allowing(BETA, {"plan": "owner", "roles": ["admin"]}))
    try:
        both = await until_minted(members.phone, members.house, "owner", lambda a: a.json["principal"]["plan"])
        assert set(both.json["limits"].values()) == {None}, "what one grant gives, another does not take away"
        bearer = {"Authorization": f"Bearer {both.json['token']}"}
        me = await ask(members.phone, await members.house.address(), "GET", "/v1/me", bearer)
        assert me.json["scopes"] == ["chat", "admin"]
        await tailnet.policy(allowing())
        await until_minted(members.phone, members.house, 403, lambda a: a.status)
    finally:
        await tailnet.policy(POLICY)
    after = await until_minted(members.phone, members.house, 200, lambda a: a.status)
    assert after.json["principal"] == before["principal"]


async def test_off_leaves_what_was_there_before(members: Members, edge: Deployed) -> None:
    async with LocalClient(str(members.house.socket), seconds=10) as client:
        with_edge = (await client.serve_config()).config
        await edge.command("setup", "tailnet", "--off")
        assert dict((await client.serve_config()).config) == {}
        await members.house.tailscale("serve", "--bg", "--http=8080", "http://127.0.0.1:9000")
        owners = (await client.serve_config()).config
        await edge.command("setup", "tailnet")
        assert (await mint(members.phone, members.house)).status == 200
        await edge.command("setup", "tailnet", "--off")
        assert (await client.serve_config()).config == owners
        await members.house.tailscale("serve", "reset")
        await edge.command("setup", "tailnet")
        assert (await client.serve_config()).config == with_edge


async def test_a_program_at_the_place_of_the_page_is_named(members: Members, edge: Deployed) -> None:
    await edge.command("setup", "tailnet", "--off")
    await members.house.tailscale("serve", "--bg", "--http=80", "http://127.0.0.1:9000")
    with pytest.raises(AssertionError, match="is served already, by something else"):
        await edge.command("setup", "tailnet")
    await members.house.tailscale("serve", "reset")
    await edge.command("setup", "tailnet")


async def test_without_tailscaled_nobody_is_let_in_and_then_again(members: Members, edge: Deployed) -> None:
    """The edge cannot be told who calls; a chat with a token goes on."""
    token = (await mint(members.phone, members.house)).json["token"]
    await members.house.kill()
    try:
        bearer = {"Authorization": f"Bearer {token}", "Origin": f"http://{NAME}"}
        assert (await ask(members.house, PUBLIC.removeprefix("http://"), "GET", "/v1/me", bearer)).status == 200
    finally:
        await members.house.start()
        await members.house.meets(members.phone, members.other, members.gpu)
    assert (await mint(members.phone, members.house)).status == 200


@asynccontextmanager
async def browser_on(member: Member, folder: Path, address: str) -> AsyncIterator[Visitor]:
    """A person at a browser on ``member``, where the house's name leads to ``address``."""
    require_chromium()
    program = folder / "chromium"
    program.write_text(f'#!/bin/sh\nexec {" ".join(member.machine.inside("/usr/bin/chromium"))} "$@"\n')
    program.chmod(0o755)
    flags = [f"--host-resolver-rules=MAP {NAME} {address},MAP * ~NOTFOUND"]
    async with running_chromium(flags, program=str(program)) as browser, visiting(browser) as visitor:
        yield visitor


async def test_the_page_works_with_no_form(members: Members, edge: Deployed, tmp_path: Path) -> None:
    """Chromium on the phone: the page opens, asks for nothing, and answers."""
    async with browser_on(members.phone, tmp_path, await members.house.address()) as visitor:
        # Over plain HTTP a browser leaves this header aside, and says so.
        visitor.tolerates("Cross-Origin-Opener-Policy header has been ignored")
        page = ChatPage(await visitor.open(f"http://{NAME}/"))
        await page.is_("ready", 20)
        await expect(page.tab.get_by_role("textbox", name="Invite")).to_be_hidden()
        await page.ask("Hi")
        assert await page.answered(seconds=60)
        assert [request.method for request in visitor.asked("/v1/token")] == ["POST"]


async def test_a_peer_that_reaches_the_ports_themselves_is_not_believed(
    tailnet: Tailnet, members: Members, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In userspace networking the ports of loopback are open to whom the policy lets there, without Serve: as Serve,
    as the owner of an edge without authentication, or as its operator."""
    house = await tailnet.member("userspace", tags=["tag:edge"], userspace=True)
    folder = tmp_path_factory.mktemp("port")
    place = {"default": {"url": "ws://127.0.0.1:8001/link"}}
    try:
        async with edge_on(
            house, folder, place, serve="127.0.0.1:8702", plans=PLANS, require_authentication=False
        ) as edge:
            await edge.logged("Tailscale Serve may call at http://127.0.0.1:8702")
            await edge.command("setup", "tailnet")
            named = {"Host": "userspace.tail.test", "Origin": "http://userspace.tail.test"}
            await house.meets(members.phone, members.other, members.gpu)
            answer = await mint(members.phone, house, named)
            assert answer.status == 200, answer.json
            forged = {
                **named,
                "Tailscale-User-Login": PERSON,
                "X-Forwarded-For": await members.phone.address(),
                "X-Forwarded-Host": "userspace.tail.test",
            }
            for caller in (members.other, members.phone, members.gpu):
                answer = await mint(caller, house, forged, 8702)
                assert (answer.status, answer.code) == (403, "address_not_allowed")
                assert "not from Tailscale Serve" in answer.json["error"]["message"]
                for port in (8700, 8701):
                    at, local = f"{await house.address()}:{port}", {"Host": f"127.0.0.1:{port}"}
                    assert (await ask(caller, at, "GET", "/v1/me")).code == "invalid_request"
                    assert (await ask(caller, at, "GET", "/v1/me", local)).code == "missing_token"
                    assert set((await ask(caller, at, "GET", "/healthz", local)).json) == {"status", "version"}
                    assert (await ask(caller, at, "GET", "/metrics", local)).code == "not_found"
            here = PUBLIC.removeprefix("http://")
            own = await ask(house, here, "GET", "/v1/me", {"Host": here})
            assert own.json["principal"]["plan"] == "owner"
            assert "nodes" in await edge.health()
    finally:
        await house.leave()
