"""Adding to the owner's serve configuration and taking it out again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.tailscale import serve
from shared.tailscale.client import LocalClient
from shared.tailscale.errors import Changed, PortTaken
from shared.tailscale.serve import with_proxy, without_proxy
from tests.fake_localapi import FakeLocalAPI, text

NAME = "edge.tail1234.ts.net"
OURS = "http://127.0.0.1:8710"
THEIRS = "http://127.0.0.1:3000"


def served(port: int, target: str = THEIRS, path: str = "/", kind: str = "HTTPS") -> dict[str, Any]:
    return {
        "TCP": {str(port): {kind: True}},
        "Web": {f"{NAME}:{port}": {"Handlers": {path: {"Proxy": target}}}},
    }


def test_nothing_is_served_yet() -> None:
    assert with_proxy({}, NAME, 443, OURS) == served(443, OURS)
    assert with_proxy({"TCP": None, "Web": None}, NAME, 443, OURS) == served(443, OURS)
    assert with_proxy({}, NAME, 80, OURS, https=False) == served(80, OURS, kind="HTTP")


def test_grants_are_passed_on_where_asked_for() -> None:
    config = with_proxy({}, NAME, 443, OURS, capabilities=["hearthlink.internal/cap/gateway"])
    handler = config["Web"][f"{NAME}:443"]["Handlers"]["/"]
    assert handler == {"Proxy": OURS, "AcceptAppCaps": ["hearthlink.internal/cap/gateway"]}


def test_the_owners_other_ports_and_paths_stay() -> None:
    owner = served(8443)
    owner["Web"][f"{NAME}:443"] = {"Handlers": {"/files": {"Path": "/srv"}}}
    owner["TCP"]["443"] = {"HTTPS": True}
    owner["Services"] = {"svc:x": {"Tun": True}}
    before = copy.deepcopy(owner)
    both = with_proxy(owner, NAME, 443, OURS)
    assert both["Web"][f"{NAME}:443"]["Handlers"] == {"/files": {"Path": "/srv"}, "/": {"Proxy": OURS}}
    assert without_proxy(both, NAME, 443, OURS) == before == owner, "and what was given is not touched"


@pytest.mark.parametrize(
    "owner",
    [
        served(443, THEIRS),
        served(443, OURS, kind="HTTP"),
        {"TCP": {"443": {"TCPForward": "127.0.0.1:5432"}}},
        {"AllowFunnel": {f"{NAME}:443": True}},
        {"TCP": {"443": {"HTTPS": True}}, "Web": {f"{NAME}:443": {"Handlers": {"/": {"Text": "mine"}}}}},
    ],
)
def test_what_the_owner_serves_there_is_not_replaced(owner: dict[str, Any]) -> None:
    with pytest.raises(PortTaken, match="tailscale serve status"):
        with_proxy(owner, NAME, 443, OURS)


def test_adding_twice_is_adding_once() -> None:
    once = with_proxy({}, NAME, 443, OURS)
    assert with_proxy(once, NAME, 443, OURS) == once


def test_taking_out_leaves_what_is_not_ours() -> None:
    assert without_proxy({}, NAME, 443, OURS) == {}
    assert without_proxy(served(443, THEIRS), NAME, 443, OURS) == served(443, THEIRS)
    assert without_proxy(served(443, OURS), NAME, 8443, OURS) == served(443, OURS)


def test_taking_out_closes_funnel_too() -> None:
    public = {**served(443, OURS), "AllowFunnel": {f"{NAME}:443": True}}
    assert without_proxy(public, NAME, 443, OURS) == {}


def test_a_port_stays_while_another_name_is_served_there() -> None:
    both = served(443, OURS)
    both["Web"]["other.tail1234.ts.net:443"] = {"Handlers": {"/": {"Proxy": THEIRS}}}
    left = without_proxy(both, NAME, 443, OURS)
    assert left["TCP"] == {"443": {"HTTPS": True}}
    assert list(left["Web"]) == ["other.tail1234.ts.net:443"]


@given(
    st.dictionaries(st.sampled_from([443, 8443, 10000]), st.sampled_from([THEIRS, "http://127.0.0.1:1"]), max_size=3)
)
def test_adding_and_taking_out_is_nothing(owner: dict[int, str]) -> None:
    config: dict[str, Any] = {}
    for port, target in owner.items():
        for section, entries in served(port, target).items():
            config.setdefault(section, {}).update(entries)
    if 443 in owner:
        with pytest.raises(PortTaken):
            with_proxy(config, NAME, 443, OURS)
    else:
        assert without_proxy(with_proxy(config, NAME, 443, OURS), NAME, 443, OURS) == config


async def test_a_change_that_crosses_ours_is_kept(tmp_path: Path) -> None:
    async with FakeLocalAPI(tmp_path) as fake, LocalClient(str(fake.path)) as client:

        async def owner_is_quicker() -> None:
            fake.serve = served(8443)

        await client.serve_config()
        fake.before("serve-config", _nothing)
        fake.before("serve-config", owner_is_quicker)
        found = await serve.edit(client, lambda config: with_proxy(config, NAME, 443, OURS))
        assert found == fake.serve
        assert sorted(found["TCP"]) == ["443", "8443"]


async def _nothing() -> None:
    pass


async def test_no_change_is_not_sent(tmp_path: Path) -> None:
    async with FakeLocalAPI(tmp_path) as fake, LocalClient(str(fake.path)) as client:
        await serve.edit(client, lambda config: without_proxy(config, NAME, 443, OURS))
        assert [asked.method for asked in fake.asked] == ["GET"]


async def test_somebody_who_is_always_quicker(tmp_path: Path) -> None:
    async with FakeLocalAPI(tmp_path) as fake, LocalClient(str(fake.path)) as client:
        config = await client.serve_config()

        class Busy:
            async def serve_config(self) -> serve.ServeConfig:
                return config

            async def set_serve_config(self, config: serve.Config, etag: str) -> None:
                fake.twist("serve-config", text(412, "etag mismatch"))
                await client.set_serve_config(config, etag)

        with pytest.raises(Changed, match="Try again"):
            await serve.edit(Busy(), lambda config: with_proxy(config, NAME, 443, OURS))
        assert fake.serve is None
