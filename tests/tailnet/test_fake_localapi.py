"""The fake LocalAPI answers as a real tailscaled does: the same fields of the same types, the same refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.fake_localapi import FakeLocalAPI
from tests.tailnet.member import Member
from tests.tailnet.shapes import peer, ping, whois
from tests.tailnet.tailnet import CAPABILITY, Tailnet

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Both:
    real: httpx2.AsyncClient
    fake: httpx2.AsyncClient
    addresses: Mapping[str, str]

    async def answers(self, method: str, path: str, **options: Any) -> tuple[httpx2.Response, httpx2.Response]:
        return await self.real.request(method, path, **options), await self.fake.request(method, path, **options)


def http(socket: Path) -> httpx2.AsyncClient:
    transport = httpx2.AsyncHTTPTransport(uds=str(socket))
    return httpx2.AsyncClient(transport=transport, base_url="http://local-tailscaled.sock", trust_env=False, timeout=20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Both]:
    edge, gpu = await asyncio.gather(tailnet.member("edge", tags=["tag:edge"]), tailnet.member("gpu", tags=["tag:gpu"]))
    async with FakeLocalAPI(tmp_path_factory.mktemp("fake")) as fake:
        own, other = await gpu.address(), await edge.address()
        await gpu.meets(edge)
        fake.peers = [peer(1, "edge", tags=["tag:edge"])]
        fake.whois[other] = whois(1, "edge", tags=["tag:edge"], capabilities={CAPABILITY: [{"role": "infer"}]})
        fake.pings.append(ping(other, Endpoint="10.99.0.2:41641"))
        async with http(gpu.socket) as real, http(fake.path) as faked:
            yield Both(real, faked, {"gpu": own, "edge": other})


def differences(fake: Any, real: Any, where: str = "") -> list[str]:
    """Fields of the fake that the real one does not have, or has with another type. Null goes with everything, and a
    real list that is empty tells nothing about what is in it."""
    if fake is None or real is None or {type(fake), type(real)} == {int, float}:
        return []
    if type(fake) is not type(real):
        return [f"{where} is {type(fake).__name__} here, {type(real).__name__} there"]
    if isinstance(fake, list):
        return differences(fake[0], real[0], f"{where}[]") if fake and real else []
    if not isinstance(fake, dict):
        return []
    if any(str(key).startswith("nodekey:") or str(key).isdigit() for key in real):  # a map, whose keys are data
        return differences(next(iter(fake.values())), next(iter(real.values())), f"{where}.*")
    wrong = [f"{where}.{key} is not there" for key in fake.keys() - real.keys()]
    for key in fake.keys() & real.keys():
        wrong += differences(fake[key], real[key], f"{where}.{key}")
    return wrong


@pytest.mark.parametrize(
    ("method", "path", "optional"),
    [
        ("GET", "status", set[str]()),
        ("GET", "status?peers=false", set[str]()),
        ("GET", "whois?addr={edge}", set[str]()),
        ("POST", "ping?ip={edge}&type=disco", set[str]()),
        ("POST", "ping?ip=100.127.255.254&type=disco", {".NodeIP", ".NodeName"}),
        ("GET", "prefs", set[str]()),
    ],
)
async def test_the_fields_are_the_real_ones(both: Both, method: str, path: str, optional: set[str]) -> None:
    real, fake = await both.answers(method, "/localapi/v0/" + path.format(**both.addresses))
    assert (fake.status_code, fake.headers["content-type"]) == (real.status_code, real.headers["content-type"])
    assert fake.headers["tailscale-cap"] == real.headers["tailscale-cap"]
    wrong = differences(fake.json(), real.json())
    assert [line for line in wrong if line.split()[0] not in optional] == []


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("GET", "/localapi/v0/nosuch", {}),
        ("GET", "/localapi/v0/whois?addr=198.51.100.1:5", {}),
        ("GET", "/localapi/v0/ping?ip=100.64.0.1&type=disco", {}),
        ("GET", "/localapi/v0/cert/edge.tail.test?type=pair", {}),
        ("GET", "/localapi/v0/status", {"headers": {"Origin": "http://local-tailscaled.sock"}}),
        ("GET", "/localapi/v0/status", {"headers": {"Referer": "http://local-tailscaled.sock/"}}),
        ("GET", "/localapi/v0/status", {"headers": {"Host": "localhost"}}),
        ("GET", "/localapi/v0/serve-config", {}),
        ("POST", "/localapi/v0/serve-config", {"json": {}, "headers": {"If-Match": "0" * 64}}),
        ("PATCH", "/localapi/v0/prefs", {"json": {"AdvertiseTags": None}}),
        ("GET", "/server-status", {}),
    ],
)
async def test_the_answers_are_the_real_ones(both: Both, method: str, path: str, options: dict[str, Any]) -> None:
    real, fake = await both.answers(method, path, **options)
    assert fake.status_code == real.status_code
    if real.headers.get("content-type", "").startswith("text/plain"):
        assert fake.text == real.text
    elif not path.endswith("prefs"):
        assert fake.json() == real.json()
    assert ("etag" in fake.headers) == ("etag" in real.headers)


async def test_the_first_message_of_the_bus_is_the_real_one(both: Both) -> None:
    async def first(client: httpx2.AsyncClient) -> Any:
        line = b""
        async with client.stream("GET", "/localapi/v0/watch-ipn-bus?mask=20610") as response:
            async for piece in response.aiter_raw():
                line += piece
                if b"\n" in line:
                    break
        return json.loads(line.partition(b"\n")[0])

    real, fake = await first(both.real), await first(both.fake)
    assert differences(fake, real) == []
    assert fake["State"] == real["State"] == 6


async def test_the_refusal_before_a_login_is_the_real_one(both: Both, tailnet: Tailnet, tmp_path: Path) -> None:
    fresh: Member = await tailnet.machine("fresh", tags=["tag:gpu"])
    await fresh.start()
    async with FakeLocalAPI(tmp_path) as fake, http(fresh.socket) as real, http(fake.path) as faked:
        fake.state = 2
        answers = [
            await client.post("/localapi/v0/serve-config", json={"TCP": {"80": {"HTTP": True}}})
            for client in (real, faked)
        ]
    assert (answers[1].status_code, answers[1].json()) == (answers[0].status_code, answers[0].json())
    await fresh.kill()
