"""An edge beside a tailscaled in userspace networking, which connects to loopback for whoever calls from the tailnet:
what the address of this machine is worth there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edge.app import Edge, run_edge
from tests.fake_localapi import FakeLocalAPI, text
from tests.pair import ANY_PORT, create_key, settings_for
from tests.tailnet.shapes import whois
from tests.waiting import wait_until

PHONE = whois(9, "phone", user=4, login="mallory@example.com")
OPEN = {"require_authentication": False}


@asynccontextmanager
async def beside(fake: FakeLocalAPI, folder: Path, settings: Mapping[str, Any]) -> AsyncIterator[Edge]:
    """An edge that has heard from ``fake``."""
    edge = {"listen": ANY_PORT, "ops_listen": ANY_PORT, "serve": "unix", **settings}
    sections = {"edge": edge, "tailscale": {"socket": str(fake.path)}}
    async with run_edge(settings_for(folder / "state", sections), lambda line: None) as running:
        tailnet = running.services.tailnet
        assert tailnet is not None
        await wait_until(lambda: tailnet.view.tun is not None)
        yield running


@pytest.fixture
async def userspace(tmp_path: Path) -> AsyncIterator[FakeLocalAPI]:
    async with FakeLocalAPI(tmp_path) as fake:
        fake.status["TUN"] = False
        yield fake


async def get(url: str, **headers: str) -> tuple[int, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.request("GET", url, headers=named) as response:
        return response.status, await response.text()


def questions(fake: FakeLocalAPI) -> list[str]:
    """What whois was asked."""
    return [asked.query["addr"] for asked in fake.asked if asked.path.endswith("/whois")]


async def test_a_program_of_this_machine_is_its_owner(userspace: FakeLocalAPI, tmp_path: Path) -> None:
    async with beside(userspace, tmp_path, OPEN) as edge:
        status, me = await get(f"{edge.public.url}/v1/me")
        assert status == 200 and '"owner"' in me
        assert '"nodes"' in (await get(f"{edge.ops.url}/healthz"))[1]
        assert (await get(f"{edge.ops.url}/metrics"))[0] == 200


async def test_a_peer_is_nobody_in_particular(userspace: FakeLocalAPI, tmp_path: Path) -> None:
    userspace.whois["127.0.0.1"] = PHONE
    key = create_key(tmp_path / "state")
    async with beside(userspace, tmp_path, OPEN) as edge:
        for base in (edge.public.url, edge.ops.url):
            status, said = await get(f"{base}/v1/me")
            assert status == 401 and "missing_token" in said
            assert '"nodes"' not in (await get(f"{base}/healthz"))[1]
            assert (await get(f"{base}/metrics"))[0] == 404
            assert (await get(f"{base}/v1/me", Authorization=f"Bearer {key}"))[0] == 200
    assert userspace.asked[-1].query["proto"] == "tcp", "else tailscaled does not look at the port"


async def test_a_peer_is_not_whoever_it_says_it_is(userspace: FakeLocalAPI, tmp_path: Path) -> None:
    async with beside(userspace, tmp_path, {"user_ids": True}) as edge:
        assert '"user_ann"' in (await get(f"{edge.public.url}/v1/me", X_User_Id="ann"))[1]
        userspace.whois["127.0.0.1"] = PHONE
        status, said = await get(f"{edge.public.url}/v1/me", X_User_Id="ann")
        assert status == 401 and "missing_token" in said


@pytest.mark.parametrize("trouble", ["refuses", "silent"])
async def test_who_cannot_be_told_from_a_peer_is_treated_as_one(
    userspace: FakeLocalAPI, tmp_path: Path, trouble: str
) -> None:
    async with beside(userspace, tmp_path, OPEN) as edge:
        if trouble == "silent":
            userspace.running.clear()
        else:
            userspace.twist("whois", text(500, "broken"))
        assert (await get(f"{edge.public.url}/v1/me"))[0] == 401


async def test_without_tailscaled_there_are_no_peers(userspace: FakeLocalAPI, tmp_path: Path) -> None:
    async with beside(userspace, tmp_path, OPEN) as edge:
        await userspace.stop()
        assert (await get(f"{edge.public.url}/v1/me"))[0] == 200
        assert '"nodes"' in (await get(f"{edge.ops.url}/healthz"))[1]


async def test_nobody_is_asked_where_it_makes_no_difference(userspace: FakeLocalAPI, tmp_path: Path) -> None:
    """With authentication the public listener gives nothing to this machine; with an interface of tailscaled's own no
    peer comes from loopback."""
    async with beside(userspace, tmp_path, {}) as edge:
        assert (await get(f"{edge.public.url}/v1/me"))[0] == 401
    userspace.status["TUN"] = True
    async with beside(userspace, tmp_path, OPEN) as edge:
        assert (await get(f"{edge.public.url}/v1/me"))[0] == 200
        assert (await get(f"{edge.ops.url}/metrics"))[0] == 200
    assert not questions(userspace)


async def test_what_a_peer_writes_counts_for_nobody(userspace: FakeLocalAPI, tmp_path: Path) -> None:
    """Where Serve hands over at a port, a peer that reaches it names somebody else's address; their rate is whole
    after that."""
    userspace.whois["100.64.0.7"] = whois(7, "tablet", user=2, login="anna@example.com")
    async with beside(userspace, tmp_path, {"serve": "127.0.0.1:0"}) as edge:
        serve = f"http://{edge.services.serve}"
        annas = {
            "Tailscale-User-Login": "anna@example.com",
            "X-Forwarded-For": "100.64.0.7",
            "X-Forwarded-Host": "edge.tail.test",
        }
        async with aiohttp.ClientSession(serve) as client:
            for peer, times, wanted in (
                (PHONE, 31, (403, "address_not_allowed")),
                (None, 1, (403, "insufficient_scope")),
            ):
                userspace.whois["127.0.0.1"] = peer or {}
                for _ in range(times):
                    async with client.post("/v1/token", json={}, headers=annas) as response:
                        assert (response.status, (await response.json())["error"]["code"]) == wanted
        userspace.whois["127.0.0.1"] = PHONE
        for path in ("/livez", "/", "/v1/me"):
            status, said = await get(serve + path, Authorization=f"Bearer {create_key(tmp_path / 'state')}")
            assert status == 403 and "not from Tailscale Serve" in said
