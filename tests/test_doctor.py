"""``hearthlink doctor``: well when a pair is well, and for each thing that can be wrong one line that says which, with
its mark and what mends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import re
import resource
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from hearthlink.doctor import disk, edge, limits, node, runtime, serve, stream, tailnet
from hearthlink.doctor.examination import examine
from hearthlink.doctor.machine import Machine
from hearthlink.doctor.mends import Trouble, mend_of
from hearthlink.doctor.probes import Probe, in_thread, run_probes
from hearthlink.doctor.report import Group, Line, Verdict, as_json, as_text, pasted, verdict
from node.models.models import YIELDED
from shared.settings import Settings, load_settings
from shared.settings_node import DEMO_MODEL
from shared.state import StateDir
from tests.command_line import run
from tests.fake_localapi import FakeLocalAPI, text
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.local_app import free_port, local_app
from tests.pair import Pair, create_key, settings_for
from tests.tailnet.shapes import peer, ping
from tests.waiting import Stopwatch

EDGE = Group("edge")
NODE = Group("node")
LOCKS = Path("/proc/locks")


def only(lines: Sequence[Line], check: str, group: str = "") -> Line:
    """The one line of ``check``."""
    found = [line for line in lines if line.check == check and group in ("", line.group)]
    assert len(found) == 1, lines
    return found[0]


def settings_of(state: Path, **sections: Mapping[str, Any]) -> Settings:
    return settings_for(state, sections)


@asynccontextmanager
async def machine_with(state: Path, **sections: Mapping[str, Any]) -> AsyncIterator[Machine]:
    async with Machine(settings_of(state, **sections)) as machine:
        yield machine


def beside(pair: Pair, **edge: Any) -> dict[str, Any]:
    """The settings of a machine on which ``pair`` runs."""
    public, ops, link = pair.edge.public, pair.edge.ops, pair.edge.settings.edge.upstreams["default"].url
    listen = {"listen": f"{public.host}:{public.port}", "ops_listen": f"{ops.host}:{ops.port}"}
    return {
        "edge": {**listen, "serve": "off", "upstreams": {"default": {"url": link}}, **edge},
        "node": {"listen": str(link).removeprefix("ws://").removesuffix("/link")},
        "tailscale": {"socket": str(pair.state / "no.sock")},
    }


@asynccontextmanager
async def serving_json(answers: Mapping[str, Any], **headers: str) -> AsyncIterator[str]:
    """HOST:PORT of a server that answers each path with JSON."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(answers.get(request.path, {}), headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# -- the report -------------------------------------------------------------------------------------------------------

OK = EDGE.ok("process", "It runs.")
ABSENT = NODE.absent("process", "None is set up.")
WARNING = NODE.warning("clock", "It is late.", "sudo timedatectl set-ntp true", "on both")
BROKEN = EDGE.broken("store", "It is full.", "df -h")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], Verdict.WELL),
        ([OK, ABSENT], Verdict.WELL),
        ([OK, WARNING, ABSENT], Verdict.WARNINGS),
        ([OK, WARNING, BROKEN], Verdict.BROKEN),
    ],
)
def test_the_worst_line_decides_the_exit_status(lines: list[Line], expected: Verdict) -> None:
    assert verdict(lines) is expected and as_json(lines, "1")["status"] == int(expected)
    assert as_json(lines, "1")["ok"] is (expected is Verdict.WELL)


def test_a_person_sees_groups_marks_causes_and_mends() -> None:
    assert as_text([ABSENT, OK, WARNING, BROKEN], None).splitlines() == [
        "edge",
        "  [ok] It runs.",
        "  [x]  It is full.",
        "       mend: df -h",
        "",
        "node",
        "  [-]  None is set up.",
        "  [!]  It is late.",
        "       on both: sudo timedatectl set-ntp true",
        "",
        "1 thing is broken, 1 warning.",
    ]


def test_sentences_are_folded_and_commands_never() -> None:
    command = "tailscale set " + "--very-long-flag " * 10
    shown = as_text([EDGE.warning("x", "word " * 40, command.strip())], 60).splitlines()
    assert all(len(row) <= 60 for row in shown if "mend:" not in row)
    assert f"       mend: {command.strip()}" in shown


def test_programs_get_every_group_and_field() -> None:
    report = json.loads(json.dumps(as_json([OK, WARNING], "9")))
    assert list(report["groups"]) == ["edge", "tailnet", "node", "runtime", "limits", "disk"]
    assert report["groups"]["node"] == [
        {
            "check": "clock",
            "state": "warning",
            "text": "It is late.",
            "mend": "sudo timedatectl set-ntp true",
            "where": "on both",
        }
    ]


# -- probes that do not work ------------------------------------------------------------------------------------------


async def test_a_probe_that_hangs_or_crashes_is_a_line() -> None:
    async def fine() -> list[Line]:
        return [OK]

    async def hangs() -> list[Line]:
        await asyncio.sleep(60)
        return []

    async def crashes() -> list[Line]:
        raise ZeroDivisionError("hlk_secret")

    probes = [Probe(EDGE, "a", hangs, 0.2), Probe(NODE, "b", crashes, 5), Probe(EDGE, "c", fine, 5)]
    began = Stopwatch()
    hung, crashed, good = await run_probes(probes)
    assert began.seconds < 3
    assert (hung.check, hung.state) == ("a", "warning") and "within 0.2 s" in hung.text
    assert (crashed.group, crashed.state) == ("node", "warning") and "ZeroDivisionError" in crashed.text
    assert "secret" not in crashed.text and good is OK


async def test_a_thread_that_hangs_is_left_alone() -> None:
    """A file system that is gone blocks for ever."""
    release = threading.Event()
    [line] = await run_probes([Probe(EDGE, "disk", lambda: in_thread(lambda: [OK] * release.wait(60)), 0.2)])
    release.set()
    assert line.state == "warning" and "hangs" in line.text


# -- a whole machine --------------------------------------------------------------------------------------------------


async def test_a_good_pair_is_well(pair: Pair) -> None:
    """Edge and node on this machine: everything that applies is ok, and an answer was streamed."""
    began = Stopwatch()
    lines = await examine(settings_of(pair.state, **beside(pair)))
    assert began.seconds < 10
    assert verdict(lines) is Verdict.WELL, as_text(lines, None)
    assert "the first after" in only(lines, "stream").text
    assert "Node default is linked" in only(lines, "link").text
    assert only(lines, "state", "tailnet").state == "absent"
    await pair.idle()


async def test_a_node_of_up_is_found_by_its_edge(pair: Pair) -> None:
    """`up` gives its node a port that no setting names."""
    sections = beside(pair)
    port = sections.pop("node")["listen"].rpartition(":")[2]
    lines = await examine(settings_of(pair.state, **sections))
    assert f":{port}, version" in only(lines, "process", "node").text
    assert f"port {port} is closed" in only(lines, "exposed", "node").text


async def test_the_verb_prints_json_and_exits_with_the_verdict(pair: Pair) -> None:
    environ = {
        "HEARTHLINK_EDGE__LISTEN": f"127.0.0.1:{pair.edge.public.port}",
        "HEARTHLINK_EDGE__OPS_LISTEN": f"127.0.0.1:{pair.edge.ops.port}",
        "HEARTHLINK_EDGE__SERVE": "off",
        "HEARTHLINK_NODE__LISTEN": str(pair.edge.settings.edge.upstreams["default"].url)[5:-5],
        "TS_SOCKET": str(pair.state / "no.sock"),
    }
    finished = await run("doctor", "--json", state=pair.state, environ=environ)
    report = json.loads(finished.out)
    assert (finished.status, report["ok"], finished.err) == (0, True, ""), finished
    assert "hlt_" not in finished.out and pair.key not in finished.out


async def test_a_new_machine_is_told_how_to_begin(tmp_path: Path) -> None:
    """Nothing is made by looking."""
    state = tmp_path / "state"
    finished = await run("doctor", state=tmp_path, environ={"HEARTHLINK_STATE": str(state), "TS_SOCKET": "/nowhere"})
    assert finished.status == 1, finished
    assert "[!]  Neither an edge nor a node is set up" in finished.out
    assert re.search(r"mend: (\S+ -m )?hearthlink up\n", finished.out)
    assert "[x]" not in finished.out and not state.exists()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


async def test_a_user_who_may_not_read_the_state_is_told_to_be_its_owner(tmp_path: Path) -> None:
    """In one line, and nothing is said of what was not seen."""
    folder = tmp_path / "closed"
    (folder / "state").mkdir(parents=True)
    settings, owner = settings_of(folder / "state"), pwd.getpwuid(os.getuid()).pw_name
    folder.chmod(0)
    try:
        with as_nobody():
            [line] = await examine(settings)
    finally:
        folder.chmod(0o700)
    assert line.state == "warning" and "nothing was looked at" in line.text
    assert line.mend == f"sudo -u {owner} HEARTHLINK_STATE={folder}/state hearthlink doctor"


async def test_secrets_of_another_user_are_not_judged() -> None:
    """Where their folder is open to all."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        StateDir(Path(folder)).signing_keys()
        os.chmod(f"{folder}/signing-keys", 0o200)
        with as_nobody():
            [line] = await examine(settings_of(Path(folder)))
    assert line.check == "state" and "may not read all of it" in line.text


async def test_settings_that_cannot_be_read_are_a_line(tmp_path: Path) -> None:
    finished = await run("doctor", "--json", state=tmp_path, environ={"HEARTHLINK_EDGE__LISTEN": "nonsense"})
    report = json.loads(finished.out)
    [line] = report["groups"]["edge"]
    assert (finished.status, line["state"], line["mend"]) == (2, "broken", "hearthlink config check")
    assert "edge.listen" in line["text"] or "HEARTHLINK_EDGE__LISTEN" in line["text"]


# -- the edge ---------------------------------------------------------------------------------------------------------


async def test_an_edge_that_ended_is_broken(tmp_path: Path) -> None:
    StateDir(tmp_path)
    (tmp_path / "edge.db.lock").touch()
    async with machine_with(tmp_path, edge={"ops_listen": f"127.0.0.1:{free_port()}"}) as machine:
        line = only(await edge.process(machine), "process")
    assert (line.state, line.mend) == ("broken", "hearthlink edge") and "Connection refused" in line.text


async def test_an_edge_elsewhere_is_looked_at_and_not_killed(pair: Pair) -> None:
    """It may be well, and answer to other settings than these."""
    elsewhere = {"edge": {"ops_listen": f"127.0.0.1:{free_port()}"}}
    async with machine_with(pair.state, **elsewhere) as machine:
        line = only(await edge.process(machine), "process")
    assert (line.state, line.mend) == ("broken", f"ps -fp {os.getpid()}") and "hangs, or has other" in line.text


def locks() -> str:
    return LOCKS.read_text()


@pytest.mark.skipif(not LOCKS.exists(), reason="only Linux tells who holds a lock")
async def test_a_lock_of_another_file_system_is_not_the_edges(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files have the same numbers."""
    rows = locks()
    inode = (pair.state / "edge.db.lock").stat().st_ino
    moved = re.sub(rf"[0-9a-f]+:[0-9a-f]+(:{inode} )", r"7f:7f\1", rows)
    assert moved != rows
    monkeypatch.setattr(Path, "read_text", lambda path: moved)
    async with machine_with(pair.state, **beside(pair)) as machine:
        assert await machine.edge_process() == 0


async def test_something_else_at_the_operations_port_is_told(tmp_path: Path) -> None:
    async with (
        serving_json({"/healthz": {"hello": 1}}) as place,
        machine_with(tmp_path, edge={"ops_listen": place}) as machine,
    ):
        line = only(await edge.process(machine), "process")
    assert line.state == "broken" and "Something else" in line.text and place.rpartition(":")[2] in line.mend


async def test_an_old_version_a_drain_and_a_full_disk_are_told(tmp_path: Path) -> None:
    health = {"status": "draining", "version": "0.0.1", "nodes": [], "store": "disk I/O error"}
    async with (
        serving_json({"/healthz": health}) as place,
        machine_with(tmp_path, edge={"ops_listen": place}) as machine,
    ):
        lines = await edge.process(machine)
    assert [line.state for line in lines] == ["warning", "warning", "broken"]
    assert "0.0.1" in lines[0].text and "stopping" in lines[1].text and "disk I/O error" in lines[2].text


async def test_an_edge_that_is_closed_is_told(tmp_path: Path) -> None:
    health = {"status": "maintenance", "version": "0.1.0", "nodes": []}
    async with (
        serving_json({"/healthz": health}) as place,
        machine_with(tmp_path, edge={"ops_listen": place}) as machine,
    ):
        closed = (await edge.process(machine))[-1]
        asked = only(await stream.stream(machine), "stream")
    assert (closed.state, closed.mend) == ("warning", "hearthlink maintenance off")
    assert asked.state == "absent" and "closed to all but admins" in asked.text


async def test_a_public_listener_that_does_not_answer_is_told(tmp_path: Path) -> None:
    health = {"status": "ok", "version": "1", "nodes": []}
    async with (
        serving_json({"/healthz": health}) as place,
        machine_with(tmp_path, edge={"ops_listen": place, "listen": f"127.0.0.1:{free_port()}"}) as machine,
    ):
        line = only(await edge.listener(machine), "listener")
    assert line.state == "broken" and "nothing answers" in line.text


async def test_doubtful_settings_are_warnings(tmp_path: Path) -> None:
    async with machine_with(tmp_path, edge={"public_url": "https://chat.example.org"}) as machine:
        lines = edge.settings(machine)
    assert lines and {line.state for line in lines} == {"warning"}
    assert any("edge.allowed_origins" in line.text for line in lines)


async def test_a_node_token_that_everybody_can_read_is_broken(tmp_path: Path) -> None:
    StateDir(tmp_path).node_token()
    (tmp_path / "node-token").chmod(0o644)
    async with machine_with(tmp_path, edge={"listen": "127.0.0.1:8700"}) as machine:
        line = only(edge.node_token(machine), "node-token")
        [other] = disk.secrets(machine)
    assert (line.state, line.mend) == ("broken", f"chmod 600 '{tmp_path}/node-token'")
    assert (other.state, other.mend) == ("broken", f"chmod 600 '{tmp_path}/node-token'")


# -- the stream -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def collecting_proxy(target: str) -> AsyncIterator[str]:
    """A proxy that hands on an answer when it is complete, as some do."""
    import aiohttp

    async def forward(request: web.Request) -> web.Response:
        headers = {"Authorization": request.headers["authorization"], "Accept": "text/event-stream"}
        async with (
            aiohttp.ClientSession(trust_env=False) as client,
            client.post(target + request.path, json=await request.json(), headers=headers) as response,
        ):
            return web.Response(body=await response.read(), content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat", forward)
    async with local_app(app) as url:
        yield url


async def test_events_that_are_collected_on_the_way_are_told(pair: Pair, runtime: FakeRuntime) -> None:
    """The same answer through the edge's own listener is the measure."""
    runtime.script = [normal(12, 0.04), normal(12, 0.04), normal(12, 0.04)]
    async with collecting_proxy(pair.url) as url, machine_with(pair.state, **beside(pair, public_url=url)) as machine:
        line = only(await stream.stream(machine), "stream")
    assert line.state == "broken" and "all at once" in line.text and line.mend == "proxy_buffering off;"
    async with machine_with(pair.state, **beside(pair, public_url=pair.url)) as machine:
        line = only(await stream.stream(machine), "stream")
    assert line.state == "ok", line


@pytest.mark.parametrize("collects", [False, True])
async def test_a_slow_model_is_judged_by_its_first_events(pair: Pair, runtime: FakeRuntime, collects: bool) -> None:
    """It is well; and what comes through a proxy that waits for its last word does not come in time."""
    runtime.script = [normal(16, 0.4), normal(16, 0.4)]
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(collecting_proxy(pair.url)) if collects else pair.url
        machine = await stack.enter_async_context(machine_with(pair.state, **beside(pair, public_url=url)))
        line = only(await stream.stream(machine), "stream")
    assert line.state == ("broken" if collects else "ok"), line
    assert ("no event of a running answer" if collects else "one by one") in line.text


async def test_a_model_that_says_nothing_yet_is_a_warning(
    pair: Pair, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_ONE_ANSWER", 0.5)
    runtime.script = [normal(1, 30)]
    async with machine_with(pair.state, **beside(pair)) as machine:
        line = only(await stream.stream(machine), "stream")
    assert line.state == "warning" and "No word" in line.text and "--token -" in line.mend


async def test_a_public_url_that_leads_nowhere_is_told(pair: Pair) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with machine_with(pair.state, **beside(pair, public_url=nowhere)) as machine:
        line = only(await stream.stream(machine), "stream")
    assert line.state == "broken" and "Nothing answers" in line.text and nowhere in line.mend


async def test_without_signing_keys_no_answer_is_asked_for(pair: Pair, tmp_path: Path) -> None:
    """Another user's doctor, or one with another state."""
    other = tmp_path / "other"
    async with machine_with(other, **beside(pair)) as machine:
        line = only(await stream.stream(machine), "stream")
    assert line.state == "absent" and not other.exists()


# -- nodes ------------------------------------------------------------------------------------------------------------

TAILNET = {"machine": "gpu.tail.test", "address": "100.64.0.2", "online": True}


def row(cause: str, **fields: Any) -> dict[str, Any]:
    base = {"name": "gpu", "url": "ws://100.64.0.2:8001/link", "connected": False, "ready": False, "tailnet": TAILNET}
    return {**base, "cause": cause, "reason": f"because of {cause}.", **fields}


@pytest.mark.parametrize(
    ("cause", "mend", "where"),
    [
        ("tailscaled_down", "sudo systemctl start tailscaled", ""),
        ("no_such_machine", "sudo tailscale up", "on the machine with the node"),
        ("machine_offline", "sudo tailscale up", "on gpu"),
        ("key_expired", "sudo tailscale up --force-reauth", "on gpu"),
        ("app_not_listening", "hearthlink node --listen tailnet", "on gpu"),
        ("token_refused", "${EDITOR:-vi} 'hearthlink.toml'", ""),
        ("other", "hearthlink doctor", "on gpu"),
    ],
)
async def test_each_cause_has_its_mend(tmp_path: Path, cause: str, mend: str, where: str) -> None:
    health = {"status": "unavailable", "version": "1", "nodes": [row(cause)]}
    async with (
        serving_json({"/healthz": health}) as place,
        machine_with(
            tmp_path,
            edge={"ops_listen": place, "upstreams": {"gpu": {"node": "gpu"}}},
            tailscale={"socket": str(tmp_path / "no.sock")},
        ) as machine,
    ):
        line = only(await node.links(machine), "link")
    assert (line.state, line.mend, line.where) == ("broken", mend, where)
    assert f"because of {cause}" in line.text


async def test_a_login_that_is_missing_is_mended_by_logging_in(fake: FakeLocalAPI) -> None:
    fake.status |= {"BackendState": "NeedsLogin", "AuthURL": ""}
    async with member(fake) as machine:
        assert await mend_of(Trouble("gpu", "not_logged_in", "no."), machine) == ("sudo tailscale up", "")


@pytest.mark.parametrize("cause", ["policy_blocks", "machine_refused"])
async def test_a_policy_is_mended_by_the_grant_that_it_lacks(tmp_path: Path, cause: str) -> None:
    async with FakeLocalAPI(tmp_path) as fake:
        fake.peers = [peer(2, "gpu", tags=["tag:gpu"])]
        async with machine_with(
            tmp_path, edge={"upstreams": {"gpu": {"node": "gpu"}}}, tailscale={"socket": str(fake.path)}
        ) as machine:
            mend, where = await mend_of(Trouble("gpu", cause, "no.", "gpu.tail.test"), machine)
    grant = json.loads(mend)
    assert (grant["src"], grant["dst"], grant["ip"]) == (["tag:edge"], ["tag:gpu"], ["tcp:8001"])
    assert list(grant["app"].values()) == [[{"role": "infer"}]] and where == "in the tailnet's policy"


async def test_a_node_that_another_one_stands_in_for_is_a_warning(tmp_path: Path) -> None:
    good = {"name": "other", "connected": True, "ready": True, "runtime_state": "ready", "url": "ws://127.0.0.1:9/link"}
    health = {"status": "ok", "version": "1", "nodes": [row("machine_offline"), good]}
    async with (
        serving_json({"/healthz": health}) as place,
        machine_with(tmp_path, edge={"ops_listen": place}, tailscale={"socket": "/nowhere"}) as machine,
    ):
        lines = await node.links(machine)
    assert [line.state for line in lines] == ["warning", "ok"]


async def test_without_an_edge_nodes_are_dialled_from_here(pair: Pair, tmp_path: Path) -> None:
    """A good token, a wrong one, and nobody there, told apart by the edge's own table."""
    url = str(pair.edge.settings.edge.upstreams["default"].url)
    token = StateDir(pair.state).node_token()
    upstreams = {
        "good": {"url": url, "token": token},
        "wrong": {"url": url, "token": "hln_" + "w" * 43},
        "gone": {"url": f"ws://127.0.0.1:{free_port()}/link", "token": token},
        "default": {"url": url, "token": token},
    }
    nobody = {"ops_listen": f"127.0.0.1:{free_port()}", "upstreams": upstreams}
    async with machine_with(tmp_path / "other", edge=nobody, tailscale={"socket": "/nowhere"}) as machine:
        lines = await node.links(machine)
    by_name = {line.text.split()[1]: line for line in lines}
    assert by_name["good"].state == "ok"
    assert by_name["wrong"].state == "broken" and "refuses this edge's token" in by_name["wrong"].text
    assert by_name["gone"].state == "broken" and by_name["gone"].mend == "hearthlink node"


async def test_a_name_without_an_address_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command is to be run on a machine that is none."""

    def unknown(*wanted: Any, **options: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with machine_with(tmp_path) as machine:
        assert (await machine.get("http://gone.example/")).trouble == "Name or service not known"
        trouble = Trouble("gpu", "other", "no.", url="ws://gone.example:8001/link")
        assert await mend_of(trouble, machine) == (machine.edit, "")


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (-45, "warning"), (50, "warning"), (-500, "broken")])
async def test_clocks_that_differ_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, state: str
) -> None:
    """By the Date of any answer of the node, here one on this machine."""
    monkeypatch.setattr(node, "_is_remote", lambda url: True)
    async with serving_json({}, Date=formatdate(time.time() + seconds, usegmt=True)) as remote:
        health = {"status": "ok", "version": "1", "nodes": [{"name": "gpu", "url": f"ws://{remote}/link"}]}
        async with (
            serving_json({"/healthz": health}) as place,
            machine_with(tmp_path, edge={"ops_listen": place}) as machine,
        ):
            line = only(await node.clocks(machine), "clock")
    assert line.state == state and (state == "ok" or ("ahead" if seconds > 0 else "behind") in line.text)


async def test_ports_that_answer_elsewhere_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that listens on all addresses, and something that publishes the node's port. 127.0.0.2 stands for an
    address of a network."""

    async def addresses(machine: Machine) -> dict[str, str]:
        return {"127.0.0.2": "eth0"}

    monkeypatch.setattr(Machine, "addresses", addresses)
    listening = await asyncio.start_server(lambda reader, writer: writer.close(), "0.0.0.0", 0)
    inside = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with listening, inside:
        port, closed = (server.sockets[0].getsockname()[1] for server in (listening, inside))
        for number, state in ((port, "broken"), (closed, "ok")):
            url = {"kind": "openai", "url": f"http://127.0.0.1:{number}"}
            async with machine_with(tmp_path, node={"runtime": url}, tailscale={"socket": "/nowhere"}) as machine:
                assert only(await runtime.exposed(machine), "exposed").state == state
        async with machine_with(tmp_path, node={"listen": f"127.0.0.1:{port}"}) as machine:
            line = only(await node.exposed(machine), "exposed")
    assert line.state == "broken" and "127.0.0.2 (eth0)" in line.text
    assert line.mend == f"sudo ufw deny in on eth0 to any port {port} proto tcp"


async def test_every_address_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with containers has one for each of their networks."""

    async def addresses(machine: Machine) -> dict[str, str]:
        return {f"127.0.1.{number}": "br0" for number in range(100)}

    monkeypatch.setattr(Machine, "addresses", addresses)
    last = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.1.99", 0)
    async with last:
        url = f"http://127.0.0.1:{last.sockets[0].getsockname()[1]}"
        sections = {"node": {"runtime": {"kind": "openai", "url": url}}, "tailscale": {"socket": "/nowhere"}}
        async with machine_with(tmp_path, **sections) as machine:
            line = only(await runtime.exposed(machine), "exposed")
    assert line.state == "broken" and "127.0.1.99" in line.text


@pytest.mark.parametrize(
    ("name", "mend", "where"),
    [
        ("Ollama", "OLLAMA_HOST=127.0.0.1 ollama serve", "stop it, then"),
        ("vLLM", "--host 127.0.0.1", "start it again with"),
    ],
)
async def test_an_open_runtime_is_mended_by_a_whole_command_or_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mend: str, where: str
) -> None:
    """Which model a server has only its owner knows."""

    async def addresses(machine: Machine) -> dict[str, str]:
        return {"127.0.0.1": "lo"}

    monkeypatch.setattr(Machine, "addresses", addresses)
    async with serving_json({"/healthz": {"status": "ok", "runtime": name}}) as place:
        sections = {"node": {"listen": place, "runtime": {"kind": "openai", "url": f"http://{place}"}}}
        async with machine_with(tmp_path, **sections, tailscale={"socket": "/nowhere"}) as machine:
            line = only(await runtime.exposed(machine), "exposed")
    assert (line.state, line.mend, line.where) == ("broken", mend, where)


# -- the runtime ------------------------------------------------------------------------------------------------------


async def test_a_runtime_is_looked_at_where_no_node_runs(runtime_server: FakeRuntime, tmp_path: Path) -> None:
    sections = {
        "node": {"listen": f"127.0.0.1:{free_port()}", "runtime": {"kind": "openai", "url": runtime_server.url}},
        "tailscale": {"socket": "/nowhere"},
    }
    async with machine_with(tmp_path, **sections) as machine:
        assert only(await runtime.model(machine), "model").state == "ok"
    await runtime_server.kill()
    async with machine_with(tmp_path, **sections) as machine:
        line = only(await runtime.model(machine), "model")
    assert line.state == "broken" and "Nothing answers at" in line.text


@pytest.fixture
async def runtime_server() -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime() as server:
        yield server


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read (No such file"), (b"GGUF", "demo.gguf"), (b"nonsense" * 9, "demo")]
)
async def test_a_model_file_that_cannot_be_used_is_told(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "demo.gguf"
    if content is not None:
        path.write_bytes(content)
    embedded = {"listen": f"127.0.0.1:{free_port()}", "runtime": {"kind": "embedded", "model": str(path)}}
    async with machine_with(tmp_path, node=embedded, tailscale={"socket": "/nowhere"}) as machine:
        line = only(await runtime.model(machine), "model")
    assert line.state == "broken" and sentence in line.text


@pytest.mark.parametrize(("names", "state"), [(["a.gguf", "b.gguf"], "ok"), ([], "broken")])
async def test_a_folder_of_models_is_looked_into(tmp_path: Path, names: list[str], state: str) -> None:
    for name in names:
        (tmp_path / name).symlink_to(DEMO_MODEL)
    embedded = {"listen": f"127.0.0.1:{free_port()}", "runtime": {"kind": "embedded", "models": str(tmp_path)}}
    async with machine_with(tmp_path, node=embedded, tailscale={"socket": "/nowhere"}) as machine:
        line = only(await runtime.model(machine), "model")
    assert line.state == state and str(tmp_path) in line.text


async def test_a_node_that_is_yielded_is_as_its_owner_wants_it(tmp_path: Path) -> None:
    """Here by what the node says, and elsewhere by what it told the edge."""
    state = {"runtime": "embedded", "runtime_state": "unavailable", "runtime_reason": YIELDED}
    there = {"name": "gpu", "url": "ws://100.64.0.2:8001/link", "connected": True, **state}
    async with (
        serving_json({"/healthz": {"status": "yielded", "version": "1", "reason": YIELDED, **state}}) as node,
        serving_json({"/healthz": {"status": "ok", "version": "1", "nodes": [there]}}) as edge,
        machine_with(
            tmp_path, node={"listen": node}, edge={"ops_listen": edge}, tailscale={"socket": "/nowhere"}
        ) as machine,
    ):
        lines = [only(await runtime.model(machine), "model"), only(await runtime.remote(machine), "remote")]
    assert [(line.state, line.mend) for line in lines] == [("warning", "hearthlink model resume")] * 2


async def test_a_node_whose_runtime_fails_is_told_by_the_edge(tmp_path: Path) -> None:
    base = {"name": "gpu", "url": "ws://100.64.0.2:8001/link", "connected": True, "runtime": "Ollama", "slots": 1}
    for state, expected in (("ready", "ok"), ("loading", "warning"), ("unavailable", "broken")):
        told = {**base, "runtime_state": state, "runtime_reason": "It ended.", "models": ["m"]}
        health = {"status": "ok", "version": "1", "nodes": [told]}
        async with (
            serving_json({"/healthz": health}) as place,
            machine_with(tmp_path, edge={"ops_listen": place}, tailscale={"socket": "/nowhere"}) as machine,
        ):
            line = only(await runtime.remote(machine), "remote")
        assert line.state == expected and "gpu" in line.text


# -- the tailnet ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeLocalAPI]:
    async with FakeLocalAPI(tmp_path) as fake:
        fake.peers = [peer(2, "gpu", tags=["tag:gpu"])]
        yield fake


@asynccontextmanager
async def member(fake: FakeLocalAPI, **sections: Mapping[str, Any]) -> AsyncIterator[Machine]:
    """An edge on the machine of ``fake``, with a node on the machine gpu."""
    base = {"edge": {"upstreams": {"gpu": {"node": "gpu"}}, "serve": "unix"}, "tailscale": {"socket": str(fake.path)}}
    async with machine_with(fake.path.parent / "state", **{**base, **sections}) as machine:
        yield machine


async def test_a_machine_in_its_tailnet(fake: FakeLocalAPI) -> None:
    fake.pings.append(ping("100.64.0.2", Endpoint="10.0.0.2:41641", LatencySeconds=0.0042))
    async with member(fake) as machine:
        [line] = await tailnet.state(machine)
        assert line.state == "ok" and "edge.tail.test" in line.text and "100.64.0.1" in line.text
        path = only(await tailnet.paths(machine), "path")
        assert path.state == "ok" and "direct (10.0.0.2:41641), 4.2 ms" in path.text
        assert only(await tailnet.keys(machine), "key").state == "ok"
        assert list(await tailnet.shields(machine)) == []


@pytest.mark.parametrize(("state", "mend"), [("NeedsLogin", "sudo tailscale up"), ("Stopped", "sudo tailscale up")])
async def test_a_machine_that_is_not_in_its_tailnet(fake: FakeLocalAPI, state: str, mend: str) -> None:
    """Broken where a node is in the tailnet, not worth a word where nothing is."""
    fake.status["BackendState"] = state
    async with member(fake) as machine:
        line = only(await tailnet.state(machine), "state")
    assert (line.state, line.mend) == ("broken", mend)
    async with member(fake, edge={}) as machine:
        assert only(await tailnet.state(machine), "state").state == "absent"


async def test_no_tailscaled_where_one_is_needed(tmp_path: Path) -> None:
    wanting = {"edge": {"upstreams": {"gpu": {"node": "gpu"}}}, "tailscale": {"socket": str(tmp_path / "no.sock")}}
    async with machine_with(tmp_path, **wanting) as machine:
        line = only(await tailnet.state(machine), "state")
    assert (line.state, line.mend) == ("broken", "sudo systemctl start tailscaled") and "no.sock" in line.text


async def test_a_tailscaled_that_says_nothing_is_told_in_time(fake: FakeLocalAPI) -> None:
    fake.running.clear()
    async with member(fake) as machine:
        line = only(await tailnet.state(machine), "state")
    assert line.state == "broken" and line.mend == "sudo systemctl restart tailscaled"


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_keys_that_end_soon_are_told_ahead(fake: FakeLocalAPI) -> None:
    fake.own = peer(1, "edge", tags=["tag:edge"], KeyExpiry=in_days(3.5))
    fake.peers = [peer(2, "gpu", KeyExpiry=in_days(90))]
    async with member(fake) as machine:
        line = only(await tailnet.keys(machine), "key")
    assert line.state == "warning" and "3 days" in line.text and line.where == ""
    fake.own = peer(1, "edge", tags=["tag:edge"])
    fake.peers = [peer(2, "gpu", KeyExpiry=in_days(-1), Expired=True)]
    async with member(fake) as machine:
        line = only(await tailnet.keys(machine), "key")
    assert (line.state, line.where, line.mend) == ("broken", "on gpu", "sudo tailscale up --force-reauth")


async def test_a_relayed_path_is_told_when_it_stays_so(fake: FakeLocalAPI) -> None:
    """The first answers of a path that becomes direct go through a relay, too."""
    relayed = ping("100.64.0.2", DERPRegionID=1, DERPRegionCode="test", LatencySeconds=0.08)
    fake.pings.extend([relayed] * 3)
    fake.pings.append(ping("100.64.0.2", Endpoint="10.0.0.2:41641"))
    async with member(fake) as machine:
        assert only(await tailnet.paths(machine), "path").state == "ok"
    fake.pings.clear()
    fake.pings.extend([relayed] * 20)
    async with member(fake) as machine:
        line = only(await tailnet.paths(machine), "path")
    assert line.state == "warning" and "relayed (DERP region test)" in line.text and "41641" in line.mend


async def test_shields_userspace_and_complaints(fake: FakeLocalAPI) -> None:
    fake.prefs["ShieldsUp"] = True
    fake.status |= {"TUN": False, "Health": ["The relay cannot be reached."]}
    async with member(fake, edge={}, node={"listen": "tailnet"}) as machine:
        line = only(await tailnet.shields(machine), "shields")
        assert (line.state, line.mend) == ("broken", "sudo tailscale set --shields-up=false")
        state = await tailnet.state(machine)
        assert [(line.check, line.state) for line in state] == [
            ("state", "ok"),
            ("userspace", "ok"),
            ("health", "warning"),
        ]
    async with member(fake) as machine:  # an edge has to call out
        assert only(await tailnet.state(machine), "userspace").state == "broken"


@pytest.mark.parametrize(
    ("edge", "told", "state"),
    [
        ({"serve": "unix"}, None, "ok"),
        ({"serve": "off"}, None, "warning"),
        ({"serve": "off", "require_authentication": False}, None, "broken"),
        ({"serve": "auto", "require_authentication": False}, {"state": "Running"}, "ok"),
        ({"serve": "auto"}, {}, "warning"),
        ({"serve": "auto", "require_authentication": False}, {}, "broken"),
        ({"serve": "off", "user_ids": True}, None, "broken"),
        ({"serve": "unix", "user_ids": True}, None, "ok"),
    ],
)
async def test_an_edge_that_takes_peers_for_this_machine(
    fake: FakeLocalAPI, edge: dict[str, Any], told: dict[str, str] | None, state: str
) -> None:
    """In userspace networking, by its settings; where it runs, by what it tells: on "auto" it may have been started
    before tailscaled."""
    fake.status["TUN"] = False
    async with contextlib.AsyncExitStack() as stack:
        if told is not None:
            health = {"status": "ok", "version": "1", "nodes": [], "tailnet": told or None}
            edge = {**edge, "ops_listen": await stack.enter_async_context(serving_json({"/healthz": health}))}
        machine = await stack.enter_async_context(member(fake, edge=edge))
        line = only(await tailnet.state(machine), "userspace")
    assert line.state == state
    if state != "ok":
        assert "does not ask it who they are" in line.text and 'edge.serve = "unix"' in line.text
        assert ("its owner there" in line.text) == (edge.get("require_authentication") is False)
        assert ("X-User-Id" in line.text) == edge.get("user_ids", False)


async def test_serve_is_compared_with_what_the_edge_listens_on(fake: FakeLocalAPI) -> None:
    async with member(fake) as machine:
        assert only(await serve.serve(machine), "serve").state == "absent"
        target = f"unix:{machine.state / 'serve.sock'}"
    web_config = {"edge.tail.test:443": {"Handlers": {"/": {"Proxy": target}}}}
    fake.serve = {"TCP": {"443": {"HTTPS": True}}, "Web": web_config}
    async with member(fake) as machine:
        line = only(await serve.serve(machine), "serve")
        assert line.state == "ok" and "edge.tail.test:443" in line.text


async def test_funnel_is_closed_by_serving_the_same_again(fake: FakeLocalAPI) -> None:
    """`tailscale funnel off` takes away what else the owner serves there. Of two ports it is the one with Funnel."""
    async with member(fake) as machine:
        handlers = {"Handlers": {"/": {"Proxy": f"unix:{machine.state / 'serve.sock'}"}}}
        fake.serve = {
            "TCP": {"80": {"HTTP": True}, "443": {"HTTPS": True}},
            "Web": {"edge.tail.test:80": handlers, "edge.tail.test:443": handlers},
            "AllowFunnel": {"edge.tail.test:443": True},
        }
        line = only(await serve.serve(machine), "serve")
    target = f"unix:{fake.path.parent}/state/serve.sock"
    assert line.state == "broken" and "edge.tail.test:443 is open" in line.text
    assert line.mend == f"sudo tailscale serve --bg --https=443 {target}"


async def test_serve_that_leads_to_an_edge_that_does_not_listen_there(fake: FakeLocalAPI) -> None:
    state = fake.path.parent / "state"
    web_config = {"edge.tail.test:80": {"Handlers": {"/": {"Proxy": f"unix:{state / 'serve.sock'}"}}}}
    fake.serve = {"TCP": {"80": {"HTTP": True}}, "Web": web_config}
    health = {"status": "ok", "version": "1", "nodes": [], "tailnet": {"serve": None}}
    async with (
        serving_json({"/healthz": health}) as place,
        member(fake, edge={"ops_listen": place, "serve": "unix"}) as machine,
    ):
        assert only(await serve.serve(machine), "serve").state == "broken"


async def test_packets_that_the_policy_drops_now_are_told(fake: FakeLocalAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones are not worth a warning."""
    monkeypatch.setattr(tailnet, "_DROPS_SECONDS", 0.05)
    async with member(fake) as machine:
        line = only(await tailnet.dropped(machine), "dropped")
    assert line.state == "ok" and "kept 3 packets out" in line.text
    name = 'tailscaled_inbound_dropped_packets_total{reason="acl"}'
    fake.twist("usermetrics", text(200, f"{name} 3"), text(200, f"{name} 9"))
    async with member(fake) as machine:
        line = only(await tailnet.dropped(machine), "dropped")
    assert line.state == "warning" and "6 packets" in line.text


async def test_a_user_without_rights_is_told_which_is_missing(fake: FakeLocalAPI) -> None:
    fake.rights = set()
    async with member(fake) as machine:
        line = only(await tailnet.state(machine), "state")
    assert line.state == "broken" and "--operator" in line.mend


# -- limits and disk --------------------------------------------------------------------------------------------------


async def test_plans_that_nobody_can_use_are_told(tmp_path: Path) -> None:
    plans = {
        "shut": {"streams": 0},
        "mute": {"models": [], "chat_types": []},
        "tight": {"tokens_per_day": 100, "tokens_per_request": 100},
    }
    async with machine_with(tmp_path, edge={"listen": "127.0.0.1:1"}, plans=plans) as machine:
        lines = limits.plans(machine)
    assert [line.state for line in lines] == ["warning"] * 3
    assert all(name in line.text for name, line in zip(plans, lines, strict=True))


async def test_a_key_of_a_plan_that_is_gone_is_told(tmp_path: Path) -> None:
    create_key(tmp_path, "club")
    async with machine_with(tmp_path, edge={"listen": "127.0.0.1:1"}) as machine:
        line = only(limits.plans(machine), "plans")
        assert line.state == "broken" and "club" in line.text
    async with machine_with(tmp_path, edge={"listen": "127.0.0.1:1"}, plans={"club": {"streams": 1}}) as machine:
        assert only(limits.plans(machine), "plans").state == "ok"


async def test_a_database_that_is_damaged_is_told(tmp_path: Path) -> None:
    create_key(tmp_path)
    async with machine_with(tmp_path) as machine:
        assert only(limits.database(machine), "database").state == "ok"
        path = tmp_path / "edge.db"
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + os.urandom(len(whole) - 100))
        line = only(limits.database(machine), "database")
        assert line.state == "broken"
        path.with_name("edge.db-wal").write_text("not yet in it")
        moving = await asyncio.create_subprocess_shell(line.mend)
        assert await moving.wait() == 0
        aside = tmp_path / "broken-database"
        assert {found.name for found in aside.iterdir()} >= {"edge.db", "edge.db-wal"} and not path.exists()
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 999")
        connection.close()
        line = only(limits.database(machine), "database")
    assert line.state == "broken" and "newer" in line.text


async def test_looking_at_a_database_leaves_it_as_it_is(pair: Pair) -> None:
    """Beside a running edge, which goes on writing."""
    async with machine_with(pair.state, **beside(pair)) as machine:
        assert only(limits.database(machine), "database").state == "ok"
        assert only(limits.plans(machine), "plans").state == "ok"
        assert only(limits.signing_keys(machine), "signing-keys").state == "ok"
    assert await pair.new_key()


async def test_the_edges_own_limit_of_files_counts(pair: Pair) -> None:
    async with machine_with(pair.state, **beside(pair)) as machine:
        assert await machine.edge_process() == os.getpid()
        assert f"process {os.getpid()}" in only(await limits.files(machine), "files").text


async def test_before_it_runs_the_limit_counts_that_the_edge_can_raise_its_own_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine_with(tmp_path, edge={"listen": "127.0.0.1:1"}) as machine:
        for hard, state in ((1 << 19, "ok"), (1024, "warning"), (resource.RLIM_INFINITY, "ok")):
            monkeypatch.setattr(resource, "getrlimit", lambda which, hard=hard: (1024, hard))
            assert only(await limits.files(machine), "files").state == state


async def test_a_database_of_before_the_edges_shared_a_store_says_nothing(tmp_path: Path) -> None:
    create_key(tmp_path, "club")
    async with machine_with(tmp_path, edge={"listen": "127.0.0.1:1", "store": "redis://127.0.0.1:1/0"}) as machine:
        assert limits.database(machine) == []
        assert only(limits.plans(machine), "plans").state == "ok"


@pytest.mark.parametrize(
    ("free", "whole", "state"), [(50, 100, "ok"), (2, 100, "warning"), (0.9, 10, "warning"), (0.01, 100, "broken")]
)
def test_little_space_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, whole: float, state: str
) -> None:
    """GiB."""
    block = 4096
    numbers = [block, block, int(whole * 2**30 / block), 0, int(free * 2**30 / block), 0, 0, 0, 0, 255]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(numbers))
    assert only(disk.space(tmp_path / "not" / "there"), "space").state == state


@pytest.mark.parametrize(
    ("folder_mode", "mode", "state"), [(0o755, 0o644, "warning"), (0o700, 0o644, "ok"), (0o755, 0o600, "ok")]
)
def test_a_settings_file_with_secrets_that_others_can_read_is_told(folder_mode: int, mode: int, state: str) -> None:
    """Not where they cannot get at it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, folder_mode)
        file = Path(folder, "hearthlink.toml")
        file.write_text(f'[node]\nqueue = 16\ntokens = ["hln_{"t" * 43}"]\n[audit]\nstrict = false\n')
        file.chmod(mode)
        settings = load_settings(config=file, environ={"HEARTHLINK_STATE": f"{folder}/none", "HOME": folder})
        os.mkdir(f"{folder}/none", 0o700)
        line = only(disk.secrets(Machine(settings)), "secrets")
    assert line.state == state and line.mend == (f"chmod 600 '{file}'" if state == "warning" else "")


async def test_ten_seconds_suffice_where_nothing_answers(tmp_path: Path, fake: FakeLocalAPI) -> None:
    """Edge, node, runtime and tailscaled take connections and say nothing."""
    fake.running.clear()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = settings_of(
            tmp_path,
            edge={"ops_listen": place, "upstreams": {"gpu": {"node": "gpu"}, "other": {"url": f"ws://{place}/link"}}},
            node={"listen": place, "runtime": {"kind": "openai", "url": f"http://{place}"}},
            tailscale={"socket": str(fake.path)},
        )
        began = Stopwatch()
        lines = await examine(settings)
        assert began.seconds < 10
    assert verdict(lines) is Verdict.BROKEN and only(lines, "state", "tailnet").state == "broken"
    assert {line.group for line in lines if line.state in ("warning", "broken")} >= {"edge", "tailnet", "node"}


def test_ten_seconds_suffice_where_names_are_not_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that hangs keeps neither the answer nor the end of the loop."""
    real, release = socket.getaddrinfo, threading.Event()

    def hangs(host: Any, *wanted: Any, **options: Any) -> Any:
        if host == "slow.example":
            release.wait(30)
        return real(host, *wanted, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    upstreams = {"slow": {"url": "ws://slow.example:8001/link"}}
    settings = settings_of(
        tmp_path,
        edge={"ops_listen": f"127.0.0.1:{free_port()}", "upstreams": upstreams},
        tailscale={"socket": "/nowhere"},
    )
    began = Stopwatch()
    try:
        lines = asyncio.run(examine(settings))
        assert began.seconds < 10
    finally:
        release.set()
    assert only(lines, "link").state == "broken"


@pytest.mark.parametrize(
    ("mend", "shown"),
    [
        ("hearthlink edge", ".venv/bin/hearthlink edge"),
        (
            "sudo -u me HEARTHLINK_STATE=/x hearthlink doctor",
            "sudo -u me HEARTHLINK_STATE=/x .venv/bin/hearthlink doctor",
        ),
        (
            "hearthlink token mint a | hearthlink chat b",
            ".venv/bin/hearthlink token mint a | .venv/bin/hearthlink chat b",
        ),
        ("vi 'hearthlink.toml'", "vi 'hearthlink.toml'"),
        ("ls /opt/hearthlink /", "ls /opt/hearthlink /"),
    ],
)
def test_a_command_is_shown_as_a_shell_here_understands_it(mend: str, shown: str) -> None:
    assert pasted(mend, ".venv/bin/hearthlink") == shown


async def test_a_node_on_loopback_beside_a_tailnet_is_told(fake: FakeLocalAPI) -> None:
    """No edge on another machine reaches it, whatever its own health says."""
    health = {"status": "ok", "version": "1", "runtime": "fake", "model": "a", "tailnet": None}
    async with serving_json({"/healthz": health}) as place, member(fake, edge={}, node={"listen": place}) as machine:
        line = only(await node.process(machine), "process")
    assert (line.state, line.mend) == ("warning", "hearthlink node --listen tailnet")
    assert place in line.text
