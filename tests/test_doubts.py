"""What the edge says at its start of settings that are valid, and hardly meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.doubts import doubts
from tests.pair import ANY_PORT, settings_for
from tests.processes import Process

PUBLIC = "https://chat.example.org"
WELL = {"public_url": PUBLIC, "allowed_origins": [PUBLIC], "trusted_proxies": ["127.0.0.1"]}


@pytest.mark.parametrize(
    ("edge", "named"),
    [
        (WELL, []),
        ({}, []),
        ({"public_url": "http://127.0.0.1:8700"}, []),
        ({**WELL, "allowed_origins": []}, [f'"{PUBLIC}" to edge.allowed_origins']),
        ({**WELL, "allowed_origins": [], "page": False}, []),
        ({**WELL, "allowed_origins": [], "anonymous": False}, []),
        ({**WELL, "allowed_origins": [], "anonymous": False, "invites": True}, ["edge.allowed_origins"]),
        ({**WELL, "trusted_proxies": []}, ["edge.trusted_proxies"]),
        ({**WELL, "trusted_proxies": [], "listen": "0.0.0.0:443"}, []),
        ({"public_url": PUBLIC}, ["edge.allowed_origins", "edge.trusted_proxies"]),
        ({"denied_addresses": ["203.0.113.7"]}, ["edge.denied_addresses"]),
        ({"allowed_addresses": ["203.0.113.7"], "trusted_proxies": ["127.0.0.1"]}, []),
        ({"allowed_addresses": ["203.0.113.7"], "listen": "0.0.0.0:443"}, []),
        ({"oidc": {"issuer": "https://example.org", "audience": ["a"], "plan": "gone"}}, ["[plans.gone]"]),
        ({"oidc": {"issuer": "https://example.org", "audience": ["a"], "plan": "owner"}}, []),
        ({"oidc": {"plan": "gone"}}, []),
        ({"cloudflare_access": {"team": "x.cloudflareaccess.com", "audience": ["a"], "plan": "x"}}, ["[plans.x]"]),
        ({"upstreams": {"x": {"url": "ws://100.64.0.2:8001/link"}}}, ["edge.upstreams.x.url"]),
        ({"upstreams": {"x": {"url": "ws://gpu.tail1.ts.net:8001/link"}}}, ['write node = "gpu.tail1.ts.net"']),
        ({"upstreams": {"x": {"node": "gpu"}, "y": {"url": "ws://127.0.0.1:8001/link"}}}, []),
    ],
)
def test_each_doubt_names_its_setting(tmp_path: Path, edge: dict[str, Any], named: list[str]) -> None:
    said = list(doubts(settings_for(tmp_path, {"edge": edge})))
    assert len(said) == len(named)
    assert all(name in sentence for name, sentence in zip(named, said, strict=True))


async def test_the_log_has_them(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "HEARTHLINK_STATE": str(tmp_path), "HOME": str(tmp_path)}
    environ |= {"HEARTHLINK_EDGE__LISTEN": ANY_PORT, "HEARTHLINK_EDGE__OPS_LISTEN": ANY_PORT}
    edge = await Process.start("edge", environ | {"HEARTHLINK_EDGE__PUBLIC_URL": PUBLIC}, tmp_path / "edge.log")
    await edge.kill()
    assert "the chat page is served but gets no token" in edge.text()
