"""The doctor says whether the issuers of the edge's doors can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hearthlink.doctor.issuers import issuers
from hearthlink.doctor.machine import Machine
from hearthlink.doctor.report import Line
from tests.fake_issuer import AUDIENCE, DISCOVERY, FakeIssuer
from tests.pair import settings_for


async def lines(state: Path, **oidc: Any) -> list[Line]:
    edge = {"oidc": {"audience": [AUDIENCE], **oidc}} if oidc else {}
    async with Machine(settings_for(state, {"edge": edge})) as machine:
        return list(await issuers(machine))


async def test_an_issuer_that_answers_is_well(tmp_path: Path) -> None:
    async with FakeIssuer() as issuer:
        (line,) = await lines(tmp_path, issuer=issuer.url)
    assert line.state == "ok" and issuer.url in line.text


async def test_an_issuer_that_does_not_is_told_with_its_cause(tmp_path: Path) -> None:
    async with FakeIssuer() as issuer:
        issuer.answers[DISCOVERY] = {"issuer": issuer.url + "/", "jwks_uri": issuer.url + "/jwks"}
        (mistyped,) = await lines(tmp_path, issuer=issuer.url)
        await issuer.stop()
        (down,) = await lines(tmp_path, issuer=issuer.url)
    assert mistyped.state == down.state == "broken"
    assert "exactly as it stands there" in mistyped.text and "Connection refused" in down.text


async def test_without_issuers_nothing_is_said(tmp_path: Path) -> None:
    assert await lines(tmp_path) == []
