"""Doors at which an issuer's word counts: which settings open them, and that they cost nothing while they are shut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.doors.issuers import Issuers, open_issuers
from shared.settings import SettingsError
from tests.pair import settings_for

SECRET = b"s" * 32
TEAM = "example.cloudflareaccess.com"


@pytest.mark.parametrize(
    ("section", "key", "why"),
    [
        ({"oidc": {"issuer": "https://example.eu.auth0.com/"}}, "oidc", "audience"),
        ({"oidc": {"issuer": "http://example.org/", "audience": ["a"]}}, "oidc.issuer", "https"),
        ({"oidc": {"issuer": "example.eu.auth0.com", "audience": ["a"]}}, "oidc.issuer", "https"),
        ({"oidc": {"issuer": "https://u:p@example.org/", "audience": ["a"]}}, "oidc.issuer", "password"),
        ({"oidc": {"issuer": "https://example.org/?a=b", "audience": ["a"]}}, "oidc.issuer", "query"),
        ({"oidc": {"jwks_url": "http://example.org/jwks"}}, "oidc.jwks_url", "https"),
        ({"oidc": {"algorithms": ["HS256"]}}, "oidc.algorithms", "RS256"),
        ({"oidc": {"algorithms": ["none"]}}, "oidc.algorithms", "RS256"),
        ({"oidc": {"algorithms": []}}, "oidc.algorithms", "at least"),
        ({"cloudflare_access": {"team": TEAM}}, "cloudflare_access", "AUD"),
        ({"cloudflare_access": {"team": "example", "audience": ["a"]}}, "cloudflare_access.team", "example."),
        ({"cloudflare_access": {"team": "https://" + TEAM, "audience": ["a"]}}, "cloudflare_access.team", "host"),
        ({"cloudflare_access": {"team": "evil.example", "audience": ["a"]}}, "cloudflare_access.team", "team"),
    ],
)
def test_settings_that_would_let_in_others_are_refused(
    tmp_path: Path, section: dict[str, Any], key: str, why: str
) -> None:
    with pytest.raises(SettingsError, match=why) as caught:
        settings_for(tmp_path, {"edge": section})
    assert f"edge.{key}" in str(caught.value)


async def test_an_edge_without_issuers_has_no_such_doors(tmp_path: Path) -> None:
    async with open_issuers(settings_for(tmp_path, {}).edge, SECRET) as issuers:
        assert issuers == Issuers(None, None)


async def test_both_open_and_ask_from_the_start(tmp_path: Path) -> None:
    """The owner reads in the log at once that an issuer is not there."""
    from edge.doors.cloudflare_access import CloudflareAccessDoor
    from edge.doors.jwks import Jwks
    from edge.doors.oidc import OidcDoor

    asked: list[Jwks] = []

    def ask(keys: Jwks) -> None:
        asked.append(keys)

    oidc = {"issuer": "http://127.0.0.1:9", "audience": ["a"]}
    access = {"team": TEAM, "audience": ["a"]}
    settings = settings_for(tmp_path, {"edge": {"oidc": oidc, "cloudflare_access": access}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jwks, "ask", ask)
        async with open_issuers(settings.edge, SECRET) as issuers:
            assert isinstance(issuers.oidc, OidcDoor) and isinstance(issuers.access, CloudflareAccessDoor)
    assert len(asked) == 2


def test_doors_that_are_shut_import_nothing() -> None:
    """Their libraries take longer to import than the rest of the edge."""
    code = (
        "import sys, edge.app; print([name for name in sys.modules if name in ('joserfc', 'httpx2', 'cryptography')"
        " or name.startswith('edge.doors.') and name.rpartition('.')[2] in"
        " ('anonymous', 'oidc', 'jwt', 'jwks', 'cloudflare_access', 'user_id', 'invite', 'tailnet')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
