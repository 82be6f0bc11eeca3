"""``hearthlink limit`` and ``maintenance``: what they print, how they end, and what a running edge makes of it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import command_line
from tests.fake_runtime import FakeRuntime
from tests.pair import Pair, principal_of, question, running_pair
from tests.redis_server import shared_redis
from tests.verbs import run, run_json
from tests.waiting import HANGS, wait_until

NATIVE = "/v1/chat"


@pytest.fixture(params=["sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder and a store of its own, of each kind, and no settings from anywhere."""
    if request.param == "redis":
        server = shared_redis()
        server.ask("FLUSHALL")
        monkeypatch.setenv("HEARTHLINK_EDGE__STORE", server.url)
    monkeypatch.setenv("HEARTHLINK_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


# -- limit ------------------------------------------------------------------------------------------------------------


def test_limits_are_set_shown_and_taken_away(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    principal = principal_of(run_json(capsys, "key", "create", "laptop")["key"])
    limits = {"tokens_per_day": 500_000, "streams": None}
    changed = run_json(capsys, "limit", "set", "laptop", "--tokens-per-day", "500000", "--streams", "unlimited")
    assert changed == {"principal": principal, "limits": limits}
    assert run_json(capsys, "limit", "show", principal)["limits"] == limits
    (row,) = run_json(capsys, "limit", "show")
    assert (row["principal"], row["used"], row["limits"]) == (principal, 0, limits)

    more = run_json(capsys, "limit", "set", principal, "--requests-per-minute", "0")
    assert more["limits"] == {**limits, "requests_per_minute": 0}
    status, out, _ = run(capsys, "limit", "show")
    header, line = out.splitlines()
    assert (status, header.split()) == (0, ["CALLER", "USED", "RESERVED", "RUNNING", "OWN", "LIMITS", "REVOKED"])
    assert principal in line and "streams unlimited" in line and "requests_per_minute 0" in line

    status, out, err = run(capsys, "limit", "reset", principal.removeprefix("key_"))
    assert (status, out) == (0, "") and "the limits of its plan" in err
    assert run_json(capsys, "limit", "show") == []
    assert run(capsys, "limit", "reset", "laptop")[0] == 3, "there is nothing to take away"


def test_no_limits_yet(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "limit", "show")
    assert (status, out) == (0, "") and "Nobody used a token today" in err


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("set", "key_0123456789ab"), 2, "Give one of --requests-per-minute, --streams, --tokens-per-day"),
        (("set", "key_0123456789ab", "--streams", "many"), 2, "--streams 'many' is no limit"),
        (("set", "key_0123456789ab", "--streams", "-1"), 2, "--streams '-1' is no limit"),
        (("set", "key_0123456789ab", "--streams", "٣"), 2, "is no limit"),
        (("set", "nobody", "--streams", "1"), 3, "No key is called 'nobody'"),
        (("set", "key_a b", "--streams", "1"), 3, "No key is called 'key_a b'"),
        (("show", "nobody"), 3, "No key is called 'nobody'"),
        (("set", "key_typo", "--streams", "1"), 3, "No caller is called 'key_typo'"),
        (("set", "tokn_ci", "--streams", "1"), 3, "No key is called 'tokn_ci'"),
        (("reset", "nobody"), 3, "No key is called 'nobody'"),
        (("reset", "key_0123456789ab"), 3, "key_0123456789ab"),
    ],
)
def test_limit_errors_say_what_to_do(
    state: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], status: int, sentence: str
) -> None:
    found, out, err = run(capsys, "limit", *arguments)
    assert (found, out) == (status, "") and sentence in err


async def test_a_running_edge_keeps_the_limits_it_is_given(runtime: FakeRuntime, tmp_path: Path) -> None:
    async with running_pair(runtime.url, state=tmp_path) as pair:
        key = await pair.new_key("member")
        assert await code_of(pair, key) is None
        await pair.idle()
        await hearthlink(tmp_path, "limit", "set", principal_of(key), "--tokens-per-day", "10")
        await wait_until(lambda: principal_of(key) in pair.edge.services.store.records.limits)
        assert await code_of(pair, key) == "quota_exceeded"
        (row,) = json.loads(await hearthlink(tmp_path, "limit", "show", "--json"))
        assert (row["principal"], row["used"], row["limits"]) == (principal_of(key), 12, {"tokens_per_day": 10})
        await hearthlink(tmp_path, "limit", "reset", principal_of(key), "--used")
        assert json.loads(await hearthlink(tmp_path, "limit", "show", principal_of(key), "--json"))["used"] == 0


async def test_a_keys_name_stands_for_nobody_else(tmp_path: Path) -> None:
    """An earlier version let a key be called as the caller of a token is."""
    await hearthlink(tmp_path, "key", "create", "ci")
    with sqlite3.connect(tmp_path / "edge.db") as connection:
        connection.execute("UPDATE keys SET name = 'token_ci'")
    connection.close()
    await hearthlink(tmp_path, "limit", "set", "token_ci", "--streams", "1")
    await hearthlink(tmp_path, "token", "revoke", "token_ci")
    assert json.loads(await hearthlink(tmp_path, "limit", "show", "token_ci", "--json"))["principal"] == "token_ci"
    (key,) = json.loads(await hearthlink(tmp_path, "key", "list", "--json"))
    assert key["state"] == "valid"
    await hearthlink(tmp_path, "key", "revoke", "token_ci")


# -- how long things last ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("key create far --expires 99999999d", "longer than a hundred years"),
        ("invite create --days 367", "lasts 366 days"),
        ("invite create --hours 1e300", "lasts 366 days"),
        ("invite create --days inf", "a number of hours or days"),
        ("invite create --days nan", "--days"),
        ("invite create --uses 10001", "at most 10000 uses"),
    ],
)
def test_what_would_last_too_long_is_not_made(
    state: Path, capsys: pytest.CaptureFixture[str], verb: str, sentence: str
) -> None:
    status, out, err = run(capsys, *verb.split())
    assert (status, out) == (2, "") and sentence in err
    assert run_json(capsys, "key", "list") == run_json(capsys, "invite", "list") == []


async def test_a_key_whose_end_no_calendar_has_is_listed(tmp_path: Path) -> None:
    await hearthlink(tmp_path, "key", "create", "far", "--expires", "30d")
    with sqlite3.connect(tmp_path / "edge.db") as connection:
        connection.execute("UPDATE keys SET expires_at = ?", (2**62,))
    connection.close()
    assert "far" in await hearthlink(tmp_path, "key", "list")


# -- maintenance ------------------------------------------------------------------------------------------------------


def test_it_is_open_until_it_is_closed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "maintenance", "show")[:2] == (0, "open\n")
    closed = run_json(capsys, "maintenance", "on", "--message", "Back soon.", "--end-answers")
    assert closed == {"on": True, "message": "Back soon.", "since": closed["since"], "ends_answers": True}
    assert abs(closed["since"] - time.time()) < 30
    assert run_json(capsys, "maintenance", "show") == closed
    assert "Back soon." in run(capsys, "maintenance", "show")[1]
    assert run_json(capsys, "maintenance", "off") == {"on": False}
    assert run(capsys, "maintenance", "off")[0] == 0, "twice is no mistake"
    assert run_json(capsys, "maintenance", "show") == {"on": False}


def test_a_message_is_a_line(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for message in ("", "a\nb", "x" * 501, "a\x1b[2Jb"):
        status, out, err = run(capsys, "maintenance", "on", "--message", message)
        assert (status, out) == (2, "") and "one line of 1 to 500 characters" in err
    assert run_json(capsys, "maintenance", "show") == {"on": False}
    assert "closed for a while" in run_json(capsys, "maintenance", "on")["message"]


async def test_a_running_edge_closes_and_opens(pair: Pair) -> None:
    await hearthlink(pair.state, "maintenance", "on", "--message", "Back soon.")
    await wait_until(lambda: pair.edge.services.store.records.maintenance)
    assert await code_of(pair, pair.key) == "maintenance"
    await hearthlink(pair.state, "maintenance", "off")
    await wait_until(lambda: pair.edge.services.store.records.maintenance is None)
    assert await code_of(pair, pair.key) is None


# -- what is written down ---------------------------------------------------------------------------------------------


def test_each_act_is_one_line_of_the_audit_file(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside those of the edge, where that has a file of its own; without a secret."""
    file = tmp_path / "audit.jsonl"
    monkeypatch.setenv("HEARTHLINK_AUDIT__SINK", str(file))
    key = run_json(capsys, "key", "create", "laptop")
    invite = run_json(capsys, "invite", "create", "--name", "beta")
    for verb in (
        "limit set laptop --streams 1",
        "limit reset laptop --used",
        "limit reset laptop",
        "key revoke laptop",
        "invite revoke beta",
        "maintenance on",
        "maintenance off",
        "limit show",
        "key list",
        "maintenance show",
        "token mint bob --hours 1",
    ):
        assert run(capsys, *verb.split())[0] == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    guests = f"invite_{invite['id']}"
    assert [(line["act"], line["target"]) for line in lines] == [
        ("key.create", key["principal"]),
        ("invite.create", guests),
        ("limit.set", key["principal"]),
        ("limit.reset", key["principal"]),
        ("limit.clear", key["principal"]),
        ("key.revoke", key["principal"]),
        ("invite.revoke", guests),
        ("maintenance.on", "edge"),
        ("maintenance.off", "edge"),
        ("token.mint", "token_bob"),
    ]
    assert key["key"][17:] not in file.read_text() and invite["invite"][17:] not in file.read_text()


def test_a_key_is_printed_though_its_line_cannot_be_written(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTHLINK_AUDIT__SINK", "/proc/no/such/file")
    status, out, err = run(capsys, "key", "create", "laptop")
    assert (status, out[:4]) == (1, "hlk_") and "/proc/no/such/file" in err
    monkeypatch.delenv("HEARTHLINK_AUDIT__SINK")
    assert [row["name"] for row in run_json(capsys, "key", "list")] == ["laptop"]


async def hearthlink(state: Path, *arguments: str) -> str:
    """What a verb prints, run by a process of its own."""
    done = await command_line.run(*arguments, state=state)
    assert done.status == 0, done.err
    return done.out


async def code_of(pair: Pair, key: str) -> str | None:
    async with pair.post(NATIVE, question(), key=key) as response:
        return (await response.json()).get("error", {}).get("code")


async def test_every_verb_says_that_it_is_closed(runtime: FakeRuntime, tmp_path: Path) -> None:
    """``up`` starts all the same: what closed it may be of last week."""
    await hearthlink(tmp_path, "maintenance", "on", "--message", "Back soon.")
    async with command_line.running_up("--runtime", runtime.url, state=tmp_path) as up:
        await wait_until(lambda: "hearthlink maintenance off" in up.err, what=lambda: up.err)
        asked = await command_line.run("chat", "hello", "--url", up.url, state=tmp_path)
        assert asked.status == 5 and "Back soon." in asked.err
        checked = await command_line.run("smoke", up.url, state=tmp_path)
        assert checked.status != 0 and "closed to all but admins" in checked.out
        await hearthlink(tmp_path, "maintenance", "off")
        async with asyncio.timeout(HANGS):
            while (asked := await command_line.run("chat", "hello", "--url", up.url, state=tmp_path)).status:
                assert "Back soon." in asked.err
