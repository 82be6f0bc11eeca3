"""The verbs: what they print, where, and how they end. ``up`` and ``smoke`` have files of their own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from edge.store.keys import KeyRing
from edge.store.sqlite import keys
from edge.store.sqlite.database import open_for_admin
from edge.tokens import Tokens
from hearthlink import chat
from hearthlink.__main__ import main
from hearthlink.client import Part
from hearthlink.output import printable
from shared.state import StateDir
from tests import command_line
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import chunk, normal, stall_before_headers, text, with_extras
from tests.pair import Pair, running_pair
from tests.verbs import run, run_json

HEAVY = {"pydantic", "aiohttp", "httpx2", "rich", "starlette", "uvicorn", "loguru", "asyncio"}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of its own, and no settings from anywhere."""
    monkeypatch.setenv("HEARTHLINK_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


# -- the program ------------------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for verb in ("up", "edge", "node", "chat", "smoke", "key", "invite", "token", "config"):
        assert f"\n  {verb} " in out
    assert "2 wrong flags or settings" in " ".join(out.split())
    verbs = out.partition("Commands:")[2]
    assert verbs and "..." not in verbs, "a sentence that does not fit is cut"


def test_help_imports_nothing_that_takes_time() -> None:
    # up's module waits with asyncio; it is all that help pays for.
    code = "import sys, hearthlink.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=command_line.ROOT
    )
    assert HEAVY & set(found.stdout.split()) <= {"asyncio"}


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--version")
    assert (status, out) == (0, "0.1.0\n")


@pytest.mark.parametrize(
    "arguments", [("frobnicate",), ("key", "list", "--frob"), ("token", "mint", "x"), ("up", "--port", "high")]
)
def test_wrong_flags_are_a_usage_error(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "Error: " in err


def test_an_unexpected_error_is_a_sentence_and_a_traceback_only_with_debug(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr("shared.settings.load_settings", broken)
    status, out, err = run(capsys, "config", "show")
    assert (status, out) == (1, "")
    assert "RuntimeError" in err and "--debug" in err and "secret words" not in err
    with pytest.raises(RuntimeError):
        main(["--debug", "config", "show"])


async def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m hearthlink config show | head -n 1",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env=command_line.environment(tmp_path),
    )
    out, err = await process.communicate()
    assert out.startswith(b"SETTING") and b"Traceback" not in err and b"Exception" not in err


def test_a_terminal_is_not_steered_by_what_others_wrote() -> None:
    assert printable("a\x1b[2Jb\rc\x9bd\te\n") == "a\ufffd[2Jb\ufffdc\ufffdd\te\n"


# -- key --------------------------------------------------------------------------------------------------------------


def test_a_key_is_printed_once_and_kept_as_a_hash(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "key", "create", "laptop", "--plan", "owner")
    key = out.strip()
    assert status == 0 and key.startswith("hlk_") and out.count("\n") == 1
    assert key not in err and "laptop" in err
    connection = open_for_admin(StateDir(state).database)
    try:
        ring = KeyRing()
        ring.load(keys.rows(connection))
        assert ring.lookup(key).plan == "owner"
        assert key.encode() not in StateDir(state).database.read_bytes()
    finally:
        connection.close()


def test_keys_are_listed_and_revoked(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run_json(capsys, "key", "create", "ci", "--expires", "30d")
    run_json(capsys, "key", "create", "tablet", "--plan", "owner", "--scope", "chat", "--scope", "admin")
    listed = {row["name"]: row for row in run_json(capsys, "key", "list")}
    assert listed["ci"]["plan"] == "member" and listed["ci"]["scopes"] == ["chat"]
    assert (
        listed["ci"]["expires_at"]
        == made["expires_at"]
        == pytest.approx(listed["ci"]["created_at"] + 30 * 86400, abs=2)
    )
    assert listed["tablet"]["scopes"] == ["chat", "admin"] and listed["tablet"]["expires_at"] is None

    assert run_json(capsys, "key", "revoke", "tablet")["id"] == listed["tablet"]["id"]
    assert run(capsys, "key", "revoke", listed["ci"]["id"])[0] == 0
    status, out, _ = run(capsys, "key", "list")
    header, *rows = out.splitlines()
    assert status == 0 and header.split() == ["NAME", "ID", "PLAN", "SCOPES", "CREATED", "EXPIRES", "STATE"]
    assert [row.split()[0] for row in rows] == ["ci", "tablet"] and all(
        row.rstrip().endswith("revoked") for row in rows
    )


def test_a_list_without_keys_is_empty(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "key", "list") == []
    status, out, err = run(capsys, "key", "list")
    assert (status, out) == (0, "") and "key create" in err


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("create", "first"), 2, "There is a key called 'first' already"),
        (("create", "a b"), 2, "is not a name for a key"),
        (("create", "x", "--plan", "gold"), 2, "There are: anonymous, member, owner."),
        (("create", "x", "--scope", "admin"), 2, "The plan member does not have the scope 'admin'. It has: chat."),
        (("create", "x", "--expires", "soon"), 2, "--expires 'soon' is not a duration"),
        (("create", "x", "--expires", "0s"), 2, "choose an end in the future"),
        (("revoke", "nobody"), 3, "No living key is 'nobody'"),
    ],
)
def test_key_errors_say_what_to_do(
    state: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], status: int, sentence: str
) -> None:
    main(["key", "create", "first"])
    capsys.readouterr()
    found, out, err = run(capsys, "key", *arguments)
    assert (found, out) == (status, "") and sentence in err


def test_a_state_folder_that_cannot_be_used_is_named(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTHLINK_STATE", "/proc/no/such")
    status, _, err = run(capsys, "key", "list")
    assert status == 1 and "/proc/no/such" in err and "HEARTHLINK_STATE" in err


# -- invite -----------------------------------------------------------------------------------------------------------


def test_an_invite_is_printed_once_and_kept_as_a_hash(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "invite", "create", "--uses", "5", "--hours", "2", "--plan", "owner")
    invite = out.strip()
    assert status == 0 and invite.startswith("hli_") and out.count("\n") == 1
    assert "plan owner and 5 uses" in err and invite not in err
    assert "edge.invites = true" in err, "the door is still shut"
    database = StateDir(state).database
    assert all(invite[17:].encode() not in file.read_bytes() for file in database.parent.glob("edge.db*"))


def test_invites_are_listed_and_revoked(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTHLINK_EDGE__INVITES", "true")
    assert "edge.invites" not in run(capsys, "invite", "create")[2]
    made = run_json(capsys, "invite", "create", "--name", "beta", "--uses", "3", "--days", "2")
    unnamed, beta = sorted(run_json(capsys, "invite", "list"), key=lambda row: row["name"] or "")
    assert made == {key: made["invite"] if key == "invite" else beta[key] for key in made}
    assert (beta["plan"], beta["uses"], beta["used"], beta["state"]) == ("member", 3, 0, "valid")
    assert beta["expires_at"] == pytest.approx(beta["created_at"] + 2 * 86400, abs=2)
    assert (unnamed["name"], unnamed["uses"]) == (None, 1)
    assert unnamed["expires_at"] == pytest.approx(unnamed["created_at"] + 7 * 86400, abs=2)

    assert run_json(capsys, "invite", "revoke", "beta") == {"id": beta["id"], "name": "beta", "revoked": True}
    assert run(capsys, "invite", "revoke", unnamed["id"])[0] == 0
    status, out, _ = run(capsys, "invite", "list")
    header, *rows = out.splitlines()
    assert status == 0 and header.split() == ["NAME", "ID", "PLAN", "USED", "CREATED", "EXPIRES", "STATE"]
    assert {row.split()[0] for row in rows} == {"-", "beta"} and all(row.rstrip().endswith("revoked") for row in rows)


def test_a_list_without_invites_is_empty(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "invite", "list") == []
    status, out, err = run(capsys, "invite", "list")
    assert (status, out) == (0, "") and "invite create" in err


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("create", "--name", "first"), 2, "There is an invite called 'first' already"),
        (("create", "--name", "a b"), 2, "is not a name for an invite"),
        (("create", "--plan", "gold"), 2, "There are: anonymous, member, owner."),
        (("create", "--hours", "1", "--days", "1"), 2, "Give one of them."),
        (("create", "--uses", "0"), 2, "--uses"),
        (("create", "--days", "1000"), 2, "lasts 366 days"),
        (("revoke", "nobody"), 3, "No living invite is 'nobody'"),
    ],
)
def test_invite_errors_say_what_to_do(
    state: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], status: int, sentence: str
) -> None:
    main(["invite", "create", "--name", "first"])
    capsys.readouterr()
    found, out, err = run(capsys, "invite", *arguments)
    assert (found, out) == (status, "") and sentence in err


# -- token ------------------------------------------------------------------------------------------------------------


def test_a_minted_token_is_the_edge_s(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    minted = run_json(capsys, "token", "mint", "ci", "--hours", "1.5")
    principal = Tokens(StateDir(state).signing_keys().verifying, 600).verify(minted["token"])
    assert (principal.id, principal.kind, principal.plan) == ("token_ci", "token", "member")
    assert principal.scopes == ("chat",) and principal.origin is None and minted["expires_in"] == 5400
    status, out, err = run(capsys, "token", "mint", "ci", "--hours", "1", "--plan", "owner")
    assert status == 0 and out.startswith("hlt_") and out.count("\n") == 1 and out.strip() not in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a b", "--hours", "1"), "There can be no token for 'a b'"),
        (("x", "--hours", "1", "--plan", "gold"), "There is no plan 'gold'"),
        (("x", "--hours", "0"), "--hours"),
        (("x", "--hours", "100000"), "--hours"),
    ],
)
def test_token_errors_say_what_to_do(
    state: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], sentence: str
) -> None:
    status, out, err = run(capsys, "token", "mint", *arguments)
    assert (status, out) == (2, "") and sentence in err


# -- config -----------------------------------------------------------------------------------------------------------


def test_settings_are_shown_with_their_origin_and_without_secrets(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[edge]\nheartbeat = "5s"\n[node]\ntokens = ["hln_0123456789abcdef"]\n')
    monkeypatch.setenv("HEARTHLINK_NODE__QUEUE", "7")
    shown = run_json(capsys, "config", "show", "--config", str(file))
    assert shown["edge.heartbeat"] == {"value": 5.0, "origin": f"file {file}"}
    assert shown["node.queue"] == {"value": 7, "origin": "env HEARTHLINK_NODE__QUEUE"}
    assert shown["node.tokens"]["value"] == ["***"] and shown["edge.listen"]["origin"] == "default"
    status, out, _ = run(capsys, "config", "show", "--config", str(file))
    assert status == 0 and "hln_" not in out
    assert any(line.split() == ["node.queue", "7", "env", "HEARTHLINK_NODE__QUEUE"] for line in out.splitlines())


def test_good_settings_are_checked(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "config", "check")
    assert (status, out) == (0, "") and "can be used" in err
    assert run_json(capsys, "config", "check") == {"ok": True, "problems": []}


def test_every_problem_of_the_settings_is_told(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hearthlink.toml").write_text('[edge]\nlisten = "here"\npublc_url = "https://a.test"\n')
    status, out, err = run(capsys, "config", "check")
    assert (status, out) == (2, "")
    assert "hearthlink.toml" in err and "Did you mean edge.public_url?" in err and "edge.listen = 'here'" in err
    status, out, _ = run(capsys, "config", "check", "--json")
    assert status == 2 and json.loads(out)["ok"] is False and len(json.loads(out)["problems"]) == 2
    # Every other verb ends the same way, before it does anything.
    assert run(capsys, "key", "list")[0] == 2


def test_a_broken_chat_type_is_a_problem(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "types"
    folder.mkdir()
    (folder / "home.toml").write_text("sistem = 'You help.'\n")
    (tmp_path / "hearthlink.toml").write_text('[node]\nchat_types = "types"\n')
    status, _, err = run(capsys, "config", "check")
    assert status == 2 and "home.toml" in err


# -- edge and node ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("edge", "--listen", "nowhere"), "edge.listen = 'nowhere' (flag) is not an address"),
        (("edge", "--ops-listen", "0.0.0.0:1"), "edge.ops_listen = '0.0.0.0:1' (flag) is not loopback"),
        (("edge", "--allowed-origin", "a.test"), "is not an origin"),
        (("node", "--listen", "0.0.0.0:8001"), "is not loopback"),
        (("node", "--runtime", "http://192.0.2.1:1"), "allow_remote_runtime"),
    ],
)
def test_a_server_that_must_be_mended_first_ends_with_78(
    state: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], sentence: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (78, "") and sentence in err


async def test_edge_and_node_run_by_their_verbs(runtime: FakeRuntime, tmp_path: Path) -> None:
    node = await command_line.start(
        *("node", "--listen", "127.0.0.1:0", "--runtime", runtime.url),
        state=tmp_path,
        environ={"HEARTHLINK_LOGS__FORMAT": "json"},
    )
    edge = None
    try:
        url = await listening(node)
        edge = await command_line.start(
            *("edge", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"),
            *("--node", url.replace("http", "ws") + "/link", "--allowed-origin", "http://app.test"),
            state=tmp_path,
            environ={"HEARTHLINK_LOGS__FORMAT": "json"},
        )
        url = await listening(edge)
        await healthy(url)
        answer = await command_line.run("chat", "hi", "--url", url, state=tmp_path)
        assert answer.out == text(5) + "\n", answer
    finally:
        for process in filter(None, (edge, node)):
            process.send_signal(signal.SIGTERM)
            assert (await command_line.finish(process)).status == 0


async def listening(process: asyncio.subprocess.Process) -> str:
    """The first URL that a server says it listens on."""
    assert process.stderr is not None
    async with asyncio.timeout(command_line.PATIENCE):
        while line := await process.stderr.readline():
            message = json.loads(line)["message"]
            if "listens on" in message:
                return message.partition("listens on ")[2].partition(",")[0]
    raise AssertionError("it ended")


async def healthy(url: str) -> None:
    """Wait until the edge at ``url`` reaches its node."""
    async with asyncio.timeout(command_line.PATIENCE), aiohttp.ClientSession(trust_env=False) as client:
        while True:
            async with client.get(url + "/healthz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


# -- chat -------------------------------------------------------------------------------------------------------------


async def test_chat_writes_the_words_as_they_come(pair: Pair, runtime: FakeRuntime) -> None:
    runtime.script = normal(5, 0.15)
    process = await command_line.start("chat", "hi", "--url", pair.url, state=pair.state)
    assert process.stdout is not None
    first = await process.stdout.read(4)
    assert first.decode().startswith("one") and process.returncode is None and runtime.active_streams == 1
    rest = await command_line.finish(process)
    assert (first.decode() + rest.out).rstrip("\n") == text(5) and rest.err == "" and rest.status == 0
    assert runtime.chats[0].json["messages"][-1]["content"] == "hi"


async def test_chat_prints_json(pair: Pair) -> None:
    answer = await command_line.run("chat", "hi", "--url", pair.url, "--json", state=pair.state)
    assert json.loads(answer.out)["choices"][0]["message"]["content"] == text(5)


async def test_chat_takes_question_and_credential_from_standard_input(pair: Pair, runtime: FakeRuntime) -> None:
    asked = await command_line.run(
        *("chat", "-", "--key", "-", "--url", pair.url), state=pair.state, stdin=f"{pair.key}\nwhere to?"
    )
    assert asked.status == 0 and runtime.chats[0].json["messages"][-1]["content"] == "where to?"
    assert pair.audit[-1]["principal"].startswith("key_") and pair.key not in asked.out + asked.err
    other = {"HEARTHLINK_CHAT_TOKEN": await pair.token("http://app.test")}
    refused = await command_line.run("chat", "hi", "--url", pair.url, state=pair.state, environ=other)
    assert refused.status == 4 and "Origin" in refused.err  # a page's token, used without its page


async def test_ctrl_c_stops_the_model(pair: Pair, runtime: FakeRuntime) -> None:
    runtime.script = normal(400, 0.05)
    process = await command_line.start("chat", "hi", "--url", pair.url, state=pair.state)
    assert process.stdout is not None
    await process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    ended = await command_line.finish(process)
    assert ended.status == 130 and ended.out.endswith("\n") and "Traceback" not in ended.err
    await runtime.idle()
    await pair.idle()
    lines = {line["method"]: line for line in pair.audit}
    assert lines["DELETE"]["status"] == 204 and lines["DELETE"]["route"] == "/v1/chat/{id}"


async def test_ctrl_c_before_the_first_word_stops_the_model(pair: Pair, runtime: FakeRuntime) -> None:
    runtime.script = stall_before_headers()
    process = await command_line.start("chat", "hi", "--url", pair.url, state=pair.state)
    await runtime.chat(0, within=command_line.PATIENCE)
    process.send_signal(signal.SIGINT)
    assert (await command_line.finish(process)).status == 130
    await runtime.idle()
    await pair.idle()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("--type", "nonsense"), 3, "There is no chat type 'nonsense'"),
        (("--key", "hlk_wrong"), 4, "The API key is not valid here"),
        (("--token", "hlt_wrong"), 4, "The access token is not valid here"),
    ],
)
async def test_chat_passes_on_what_the_edge_refused(
    pair: Pair, arguments: Sequence[str], status: int, sentence: str
) -> None:
    refused = await command_line.run("chat", "hi", "--url", pair.url, *arguments, state=pair.state)
    assert (refused.status, refused.out) == (status, "") and sentence in refused.err
    assert f"(request {pair.audit[-1]['request_id']})" in refused.err


async def test_an_error_in_the_stream_ends_a_started_line(pair: Pair, runtime: FakeRuntime) -> None:
    runtime.script = "reset_mid_stream"
    broken = await command_line.run("chat", "hi", "--url", pair.url, state=pair.state)
    assert broken.status == 1 and broken.out.startswith("one") and broken.out.endswith("\n")
    assert "hearthlink: " in broken.err and "(request " in broken.err


async def test_an_edge_without_its_node_is_unavailable(runtime: FakeRuntime, tmp_path: Path) -> None:
    async with running_pair(runtime.url, state=tmp_path) as pair:
        runtime.loading = True
        await runtime.kill()
        answer = await command_line.run("chat", "hi", "--url", pair.url, state=tmp_path)
    assert answer.status == 5 and answer.out == ""


@pytest.mark.parametrize(
    ("url", "status", "sentence"),
    [
        ("http://127.0.0.1:9", 5, "Nothing answers at http://127.0.0.1:9"),
        ("http://edge.invalid", 4, "HEARTHLINK_CHAT_KEY"),
        ("ftp://127.0.0.1", 2, "is not a URL"),
    ],
)
def test_chat_says_why_it_cannot_ask(
    state: Path, capsys: pytest.CaptureFixture[str], url: str, status: int, sentence: str
) -> None:
    found, out, err = run(capsys, "chat", "hi", "--url", url)
    assert (found, out) == (status, "") and sentence in err


# -- terminals --------------------------------------------------------------------------------------------------------


async def on_a_terminal(*arguments: str, state: Path, columns: int, environ: dict[str, str] | None = None) -> str:
    """What a verb writes to a terminal of ``columns``, both streams together."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *command_line.COMMAND,
        *arguments,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=state,
        env=command_line.environment(state, {"TERM": "xterm", "COLUMNS": str(columns), **(environ or {})}),
    )
    os.close(theirs)
    loop = asyncio.get_running_loop()
    written = await loop.run_in_executor(None, _read_all, ours)
    await process.wait()
    return written.decode().replace("\r\n", "\n")


def _read_all(descriptor: int) -> bytes:
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError:  # Linux says EIO when the last writer is gone
        pass
    os.close(descriptor)
    return b"".join(parts)


async def test_what_a_chat_waits_for_is_one_line_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone as soon as its turn has come and its model is in memory, before the first word."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(chat, "moving_terminal", lambda: console)
    waiting = chat._Waiting()
    waiting.show(chat._why(Part(event="queued", fields={"position": 2})))
    assert chat._why(Part(event="loading", fields={"model": "m", "progress": 0.4})).endswith("m is loading, 40 %.")
    waiting.show("Waiting [still].")
    waiting.end()
    waiting.end()
    shown, _, left = written.getvalue().rpartition("\x1b[2K")
    assert "Waiting [still]." in shown and left == ""


@pytest.mark.parametrize("columns", [60, 100])
async def test_a_table_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    shown = await on_a_terminal("config", "show", state=tmp_path, columns=columns, environ={"NO_COLOR": "1"})
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= columns
    assert "edge.listen" in shown


async def test_words_that_steer_a_terminal_are_shown_instead(pair: Pair, runtime: FakeRuntime) -> None:
    runtime.script = with_extras(before=[chunk({"content": "\x1b]0;title\x07"})])
    shown = await on_a_terminal("chat", "hi", "--url", pair.url, state=pair.state, columns=80)
    assert "\x1b" not in shown and "]0;title" in shown
    piped = await command_line.run("chat", "hi", "--url", pair.url, state=pair.state)
    assert "\x1b]0;title" in piped.out
