"""``hearthlink up``: one command to a pair that answers, and nothing left of it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from hearthlink import ports, welcome
from hearthlink.output import Failure
from hearthlink.pair import _Patience
from hearthlink.progress import Progress
from tests import command_line
from tests.command_line import Up, descendants, is_alive, run, running_up
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal, text
from tests.local_app import free_pair
from tests.waiting import wait_until

DEMO = command_line.ROOT / "models" / "demo.gguf"
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    """A pair in front of the demo model, for tests that leave it as it was."""
    async with running_up(state=tmp_path_factory.mktemp("up")) as up:
        yield up


async def paste(line: str, environ: dict[str, str] | None = None) -> str:
    """What a shell prints for ``line``."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", line), stdout=asyncio.subprocess.PIPE, env={**os.environ, **(environ or {})}
    )
    async with asyncio.timeout(command_line.PATIENCE):
        out, _ = await process.communicate()
    return out.decode()


@pytest.mark.asyncio(loop_scope="module")
async def test_it_says_where_it_answers_and_with_what(shared: Up) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", shared.url)
    assert "demo (embedded)" in shared.out and f"state       {shared.state}" in shared.out
    assert "warning" not in shared.err and "error" not in shared.err


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.skipif(not shutil.which("curl"), reason="the line is for curl where there is one")
async def test_the_printed_line_streams_a_real_answer(shared: Up) -> None:
    assert shared.command.startswith("curl -N ")
    stream = await paste(shared.command + " --silent")
    assert stream.count('"content":"') > 3 and stream.endswith("data: [DONE]\n\n")


@pytest.mark.asyncio(loop_scope="module")
async def test_chat_asks_it_without_a_credential(shared: Up) -> None:
    asked = await run("chat", "we are bored", "--type", "somethingFun", "--url", shared.url, state=shared.state)
    assert asked.status == 0 and len(asked.out.split()) > 3, asked


@pytest.mark.asyncio(loop_scope="module")
async def test_smoke_finds_it_well(shared: Up) -> None:
    smoke = await run("smoke", shared.url, state=shared.state)
    assert smoke.status == 0 and smoke.out.count("[ok]") == 6, smoke


@pytest.mark.asyncio(loop_scope="module")
async def test_a_key_is_seen_and_gone_within_a_second(shared: Up) -> None:
    made = await run("key", "create", "phone", state=shared.state)
    asked = ("chat", "hi", "--url", shared.url, "--key", "-")
    await asyncio.sleep(1)
    assert (await run(*asked, state=shared.state, stdin=made.out)).status == 0
    await run("key", "revoke", "phone", state=shared.state)
    await asyncio.sleep(1)
    assert (await run(*asked, state=shared.state, stdin=made.out)).status == 4


@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_one_on_its_port_is_refused_at_once(shared: Up, tmp_path: Path) -> None:
    port = shared.url.rpartition(":")[2]
    second = await run("up", "--port", port, state=tmp_path)
    assert second.status == 1 and second.out == "" and second.err.startswith(f"hearthlink: Port {port} on 127.0.0.1 is")
    assert f"--port {int(port) + 10}" in second.err and "Starting" not in second.err


@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_one_on_its_state_is_refused(shared: Up) -> None:
    async with running_up(state=shared.state, wait=False) as second:
        assert await second.end() == 1
    assert "Another edge is using the database" in second.err and "HEARTHLINK_STATE" in second.err


async def test_two_at_once_on_one_port(tmp_path: Path) -> None:
    port = str(free_pair())
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    async with (
        running_up("--port", port, state=folders[0], wait=False) as one,
        running_up("--port", port, state=folders[1], wait=False) as other,
    ):
        await wait_until(lambda: one.ended or other.ended, command_line.PATIENCE)
        loser, winner = (one, other) if one.ended else (other, one)
        assert await loser.end() == 1 and f"Port {port} on 127.0.0.1 is taken" in loser.err
        await winner.ready()


async def test_a_second_start_is_quick(tmp_path: Path) -> None:
    async with running_up(state=tmp_path):
        pass
    async with running_up(state=tmp_path) as up:
        # Of the machine's work, not of its clock: other programs run here, too. Two cores share it.
        pids = [up.process.pid, *descendants(up.process.pid)]
        assert sum(map(command_line.cpu_seconds, pids)) < 3.0


async def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    async with running_up(state=tmp_path) as up:
        below = descendants(up.process.pid)
        assert len(below) >= 3  # node, edge and llama.cpp
        assert await up.stop() == 0
    assert not any(map(is_alive, below))
    assert "Stopping" in up.err and "warning" not in up.err and "error" not in up.err


async def test_sigterm_while_starting(tmp_path: Path) -> None:
    async with running_up(state=tmp_path, wait=False) as up:
        await wait_until(lambda: "Starting node and edge." in up.err, command_line.PATIENCE)
        below = descendants(up.process.pid)
        assert await up.stop(signal.SIGTERM) == 130
    assert up.out == "" and not any(map(is_alive, below))


async def test_nothing_is_left_when_it_is_killed(tmp_path: Path) -> None:
    async with running_up(state=tmp_path) as up:
        below = descendants(up.process.pid)
        await up.stop(signal.SIGKILL)
        await wait_until(lambda: not any(map(is_alive, below)), command_line.PATIENCE, what=lambda: below)


async def test_a_running_answer_may_finish(runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.script = normal(20, 0.1)
    async with running_up("--runtime", runtime.url, state=tmp_path) as up:
        asked = await command_line.start("chat", "hi", "--url", up.url, state=tmp_path)
        await runtime.chat(0, within=command_line.PATIENCE)
        assert await up.stop() == 0
        answer = await command_line.finish(asked)
    assert answer.out.rstrip("\n") == text(20) and answer.status == 0, answer


async def test_a_second_ctrl_c_cuts_what_runs(runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.script = normal(1000, 0.1)
    async with running_up("--runtime", runtime.url, state=tmp_path) as up:
        asked = await command_line.start("chat", "hi", "--url", up.url, state=tmp_path)
        await runtime.chat(0, within=command_line.PATIENCE)
        up.process.send_signal(signal.SIGINT)
        await wait_until(lambda: "Stopping" in up.err)
        await asyncio.sleep(0.5)
        assert await up.stop(within=5) == 130
        assert (await command_line.finish(asked)).status != 0
    await runtime.idle()


async def test_one_ctrl_c_that_arrives_twice_is_one(runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.script = normal(20, 0.1)
    async with running_up("--runtime", runtime.url, state=tmp_path) as up:
        asked = await command_line.start("chat", "hi", "--url", up.url, state=tmp_path)
        await runtime.chat(0, within=command_line.PATIENCE)
        up.process.send_signal(signal.SIGINT)
        assert await up.stop() == 0
        assert (await command_line.finish(asked)).status == 0


async def test_the_persons_settings_reach_both(runtime: FakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[edge]\nallowed_origins = ["http://app.test"]\ntoken_lifetime = "77s"\n')
    environ = {"HEARTHLINK_NODE__MAX_TOKENS": "9"}
    arguments = ("--runtime", runtime.url, "--config", "mine.toml")
    async with running_up(*arguments, state=tmp_path, environ=environ) as up:
        for origin in ("http://app.test", up.url, up.url.replace("127.0.0.1", "localhost")):
            token = await mint(up.url, origin)
            assert token["expires_in"] == 77
        asked = await run("chat", "hi", "--url", up.url, state=tmp_path)
    assert asked.status == 0 and runtime.chats[-1].json["max_tokens"] == 9


async def test_the_places_of_node_and_link_are_its_own(runtime: FakeRuntime, tmp_path: Path) -> None:
    """Settings that are for a tailnet and for certificates keep nobody from trying it out here."""
    (tmp_path / "mine.toml").write_text(
        '[node]\nlisten = "interface:wg0"\n'
        '[node.tls]\ncertificate = "none.pem"\nkey = "none.key"\nauthority = "none.pem"\n'
        '[edge.upstreams.default]\nnode = "gpu"\n'
    )
    environ = {"HEARTHLINK_EDGE__UPSTREAMS__DEFAULT__PORT": "9001"}
    async with running_up("--runtime", runtime.url, "--config", "mine.toml", state=tmp_path, environ=environ) as up:
        assert (await run("chat", "hi", "--url", up.url, state=tmp_path)).status == 0


async def mint(url: str, origin: str) -> dict[str, object]:
    async with (
        aiohttp.ClientSession(trust_env=False) as client,
        client.post(url + "/v1/token", json={}, headers={"Origin": origin}) as response,
    ):
        assert response.status == 200, await response.text()
        return await response.json()


async def test_proxies_of_the_environment_are_not_asked(runtime: FakeRuntime, tmp_path: Path) -> None:
    environ = {name: NOWHERE for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY")}
    async with running_up("--runtime", runtime.url, state=tmp_path, environ=environ) as up:
        asked = await run("chat", "hi", "--url", up.url, state=tmp_path, environ=environ)
        assert asked.out.rstrip("\n") == text(5), asked
        if shutil.which("curl"):
            assert (await paste(up.command + " --silent", environ)).endswith("data: [DONE]\n\n")


async def test_without_curl_the_line_is_our_own(runtime: FakeRuntime, tmp_path: Path) -> None:
    # A folder with nothing in it that the person could call.
    async with running_up("--runtime", runtime.url, state=tmp_path, environ={"PATH": str(tmp_path)}) as up:
        assert " chat " in up.command and "curl -N" not in up.out
        answer = await paste(up.command, command_line.environment(tmp_path))
    assert answer.rstrip("\n") == text(5)


async def test_a_server_of_the_person_is_waited_for(tmp_path: Path) -> None:
    async with FakeRuntime() as runtime:
        url = runtime.url
        await runtime.kill()
        async with running_up("--runtime", url, state=tmp_path, wait=False) as up:
            await wait_until(lambda: f"Nothing answers at {url}" in up.err, command_line.PATIENCE, what=lambda: up.err)
            assert not up.ended and up.out == ""
            runtime.models.clear()
            await runtime.listen()
            await wait_until(lambda: "no model" in up.err.lower(), command_line.PATIENCE, what=lambda: up.err)
            runtime.models.append("fake-model")
            await up.ready()
            assert "fake-model (" in up.out


async def test_on_a_yielded_node_it_says_where_it_answers_and_how_that_ends(
    runtime: FakeRuntime, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "state" / "node-models.json").write_text('{"yielded": true}')
    async with running_up("--runtime", runtime.url, state=tmp_path / "state") as up:
        assert up.url in up.out and "hearthlink model resume" in up.out
        assert up.err.count("has taken its GPU back") <= 1


def test_a_line_that_says_the_same_again_is_not_said_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([10.0, 20.0, 30.0, 31.0, 40.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    progress = Progress()
    for stage, line in (("a", "one"), ("a", "one"), ("a", "two"), ("a", "three"), ("a", "three")):
        progress.show(stage, line)
    assert capsys.readouterr().err.splitlines() == ["one", "two", "three"]


async def test_waiting_is_told_as_it_is() -> None:
    """Of llama.cpp nothing is said where no process ran, and the beginning not again after what came later."""
    patience = _Patience()
    assert patience.judge({})[1] == "Starting node and edge."
    missing = {"status": "unavailable", "runtime": "embedded", "reason": "No model is set."}
    assert patience.judge(missing)[1] == "Starting node and edge."
    ended = {**missing, "reason": "The model does not fit. It is started again."}
    assert patience.judge(ended)[1].startswith("llama.cpp ended")
    assert patience.judge({"status": "loading", "reason": "Loading alpha."})[1] == "Loading alpha."
    assert patience.judge({"status": "ok", "reason": ""})[1] == "Loading alpha."


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("--model", "missing.gguf"), 3, "There is no model file {folder}/missing.gguf. Name a GGUF file with --model"),
        (("--model", "other.bin"), 1, "{folder}/other.bin is no model: it does not begin with the letters GGUF."),
        (("--model", "."), 1, "The model file {folder} cannot be read: Is a directory."),
        (("--model", "x", "--runtime", NOWHERE), 2, "--model and --runtime exclude each other"),
        (("--runtime", "127.0.0.1:1234"), 2, "node.runtime.url = '127.0.0.1:1234' (flag) is not a URL"),
        (("--runtime", "http://192.0.2.1"), 2, "node.runtime.allow_remote_runtime = true"),
        (("--config", "missing.toml"), 2, "The settings file missing.toml does not exist. Correct --config"),
    ],
)
async def test_what_cannot_work_is_said_before_anything_starts(
    tmp_path: Path, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    (tmp_path / "other.bin").write_bytes(b"PK\x03\x04")
    refused = await run("up", "--port", "0", *arguments, state=tmp_path)
    assert (refused.status, refused.out) == (status, "") and "Starting" not in refused.err
    assert sentence.format(folder=tmp_path) in refused.err
    assert not (tmp_path / "edge.db").exists()


async def test_a_model_that_does_not_load_ends_it_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(DEMO.read_bytes()[:2_000_000])
    async with running_up("--model", "cut.gguf", state=tmp_path, wait=False) as up:
        assert await up.end() == 1
    last = up.err.splitlines()[-1]
    assert last.startswith("hearthlink: ") and "cut.gguf" in last and "--runtime URL" in last and up.out == ""


async def test_a_setting_that_only_a_child_refuses_ends_it_with_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "types").mkdir()
    (tmp_path / "types" / "home.toml").write_text("system = 3\n")
    environ = {"HEARTHLINK_NODE__CHAT_TYPES": str(tmp_path / "types")}
    async with running_up(state=tmp_path, environ=environ, wait=False) as up:
        assert await up.end() == 1
    last = up.err.splitlines()[-1]
    assert last.startswith("hearthlink: ") and "home.toml" in last and "Traceback" not in up.err


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGILL, "an instruction that this processor does not have"),
        (signal.SIGKILL, "was killed (SIGKILL), most likely because memory ran out"),
    ],
)
async def test_a_part_that_dies_ends_the_other(
    runtime: FakeRuntime, tmp_path: Path, number: signal.Signals, sentence: str
) -> None:
    async with running_up("--runtime", runtime.url, state=tmp_path) as up:
        below = descendants(up.process.pid)
        os.kill(up.child("tied node"), number)
        assert await up.end() == 1
    assert up.err.splitlines()[-1].startswith("hearthlink: The node ") and sentence in up.err
    assert not any(map(is_alive, below))


async def test_the_whole_log_is_shown_when_asked_for(runtime: FakeRuntime, tmp_path: Path) -> None:
    async with running_up("--runtime", runtime.url, "-v", state=tmp_path) as up:
        await wait_until(lambda: "node: info: " in up.err and "edge: info: " in up.err, what=lambda: up.err)
        await run("chat", "hi", "--url", up.url, state=tmp_path)
        assert '"event"' not in up.err and "/v1/chat" not in up.err


async def test_a_terminal_sees_a_spinner_and_no_colour_when_told(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environ = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "60"}
    process = await asyncio.create_subprocess_exec(
        *command_line.COMMAND,
        *("up", "--port", "0"),
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=command_line.environment(tmp_path, environ),
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def read() -> bool:
        with contextlib.suppress(OSError):  # nothing there now, or the terminal is closed
            shown.extend(os.read(ours, 65536))
        return b"Ctrl-C stops it." in shown

    try:
        await wait_until(read, command_line.PATIENCE, what=lambda: shown)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(command_line.PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        os.close(ours)
    assert b"\x1b[?25l" in shown and b"\x1b[?25h" in shown  # the cursor is hidden while it turns, and comes back
    assert not re.search(rb"\x1b\[[0-9;]*[34][0-9][;m]", shown)


@pytest.mark.parametrize(("display", "opened"), [(":0", True), ("", False)])
def test_the_page_opens_where_it_can_be_seen(monkeypatch: pytest.MonkeyPatch, display: str, opened: bool) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: asked.append(url) is None)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert welcome.open_page("http://127.0.0.1:1") is opened
    assert asked == ["http://127.0.0.1:1"] * opened


def test_free_ports_are_none_that_the_system_gives_away() -> None:
    """A port from the system's own range may be a connection's by the time that it is listened on."""
    for _ in range(100):
        port = ports.free_pair()
        assert 1024 < port < port + 1 < 32768
        assert ports.problem(port) is None
        assert ports.problem(port + 1) is None


def test_ports_are_claimed_once() -> None:
    port = free_pair()
    with ports.claimed(port), pytest.raises(Failure, match=f"Port {port} "), ports.claimed(port):
        pass
    with ports.claimed(port):
        pass


@pytest.mark.parametrize("offset", [0, 1])
def test_a_taken_port_is_named(offset: int) -> None:
    port = free_pair()
    with socket.socket() as other:
        other.bind((ports.HOST, port + offset))
        other.listen()
        with pytest.raises(Failure, match=rf"Port {port + offset} .*ss -ltnp .*--port"), ports.claimed(port):
            pass
