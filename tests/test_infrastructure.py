"""What is below an edge fails or changes: the clock, certificates, the log's reader, the address to listen on, and
everybody's token at once. Cases of ``tests/test_cases.py``."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hearthlink.doctor.certificates import certificates
from hearthlink.doctor.machine import Machine
from hearthlink.doctor.report import Line
from shared.asgi import server
from shared.asgi.listener import CannotListen, Listener, bind
from shared.asgi.protocol import Limits
from shared.asgi.types import Receive, Scope, Send
from shared.settings_sections import TlsSettings
from shared.state import StateDir
from shared.ticker import Ticker
from tests.certificates import Authority
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.local_app import free_port
from tests.logged import logged
from tests.pair import ORIGIN, events_of, question, running_pair, settings_for
from tests.processes import ROOT, Processes, running_processes
from tests.test_logs import fill
from tests.waiting import HANGS, held_up, wait_until

HOUR = 3600
# Seconds that 99 of 100 callers may wait for a token when all want one.
RENEWED_WITHIN = 1.0


@pytest.fixture
def log() -> Iterator[list[str]]:
    with logged() as lines:
        yield lines


async def mint(pair: Processes, **headers: str) -> tuple[int, dict[str, Any]]:
    sent = {"Origin": ORIGIN, **headers}
    async with pair.client.post(f"{pair.url}/v1/token", json={}, headers=sent) as answer:
        return answer.status, await answer.json()


async def ask(pair: Processes, credential: str) -> tuple[int, str]:
    """Status of a chat, and the code of its error."""
    headers = {"Authorization": f"Bearer {credential}", "Origin": ORIGIN}
    async with pair.client.post(f"{pair.url}/v1/chat", json=question(), headers=headers) as answer:
        body = await answer.json()
        return answer.status, body.get("error", {}).get("code", "")


# -- the clock --------------------------------------------------------------------------------------------------------

# Read by every Python process that has its folder in PYTHONPATH, before any other module takes time.time.
_OTHER_CLOCK = """
import os, time
def shifted(real=time.time, file=os.environ["CLOCK"]):
    with open(file) as text:
        return real() + float(text.read() or 0)
time.time = shifted
"""


@pytest.mark.case("E66")
@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forwards", "backwards"])
async def test_a_clock_that_jumps_ends_nothing_and_stops_nobody(
    runtime: FakeRuntime, tmp_path: Path, jump: int
) -> None:
    """A stream under way, a caller's rate, and the link are on other clocks; a token is judged by the new one."""
    shift = tmp_path / "shift"
    shift.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(_OTHER_CLOCK)
    runtime.script = normal(20, delay=0.05)
    async with running_processes(
        runtime.url, tmp_path, environ={"PYTHONPATH": str(tmp_path), "CLOCK": str(shift)}
    ) as pair:
        _, minted = await mint(pair)
        body = question(stream=True)
        async with pair.client.post(f"{pair.url}/v1/chat", json=body, headers=pair.bearer()) as answer:
            stream = await answer.content.readany()
            shift.write_text(str(jump))
            stream += await answer.read()
        assert events_of(stream)[-1].data == "[DONE]"
        runtime.script = "normal"
        expected = "token_expired" if jump > 0 else "invalid_token"
        assert await ask(pair, minted["token"]) == (401, expected)
        _, renewed = await mint(pair)
        for _ in range(3):
            assert await ask(pair, renewed["token"]) == (200, "")
        shift.write_text("0")
        assert await ask(pair, minted["token"]) == (200, "")
        await wait_until(lambda: not pair.ledger().reserved)
        assert "stood still" not in pair.edge.text() + pair.node.text()


# -- certificates -----------------------------------------------------------------------------------------------------


async def doctor(state: Path, node: TlsSettings, edge: TlsSettings) -> list[Line]:
    sections = {
        "node": {"listen": "interface:lo", "tls": node.model_dump(mode="json")},
        "edge": {"upstreams": {"gpu": {"url": "wss://127.0.0.1:1/link", "tls": edge.model_dump(mode="json")}}},
    }
    async with Machine(settings_for(state, sections)) as machine:
        return list(certificates(machine))


@pytest.mark.case("E67")
async def test_the_doctor_tells_of_certificates_that_ended_will_end_or_are_not_there(tmp_path: Path) -> None:
    authority = Authority(tmp_path, days=400)
    good, soon = authority.issue("good", days=100), authority.issue("soon", days=5)
    expired, gone = authority.issue("expired", days=-1), authority.issue("gone")
    assert gone.certificate is not None
    os.unlink(gone.certificate)

    assert [line.state for line in await doctor(tmp_path, good, good)] == ["ok", "ok"]
    edges, nodes = await doctor(tmp_path, expired, soon)
    assert (edges.group, edges.state) == ("edge", "warning") and "edge.upstreams.gpu.tls end on" in edges.text
    assert (nodes.group, nodes.state) == ("node", "broken") and "has expired. Put a new one there" in nodes.text
    edges, nodes = await doctor(tmp_path, good, gone)
    assert edges.state == "broken" and "gone.pem cannot be read: No such file" in edges.text and edges.mend
    assert nodes.state == "ok"


@pytest.mark.case("E67")
async def test_a_node_whose_certificate_expired_does_not_start_and_says_why(tmp_path: Path) -> None:
    expired = Authority(tmp_path).issue("expired", days=-1)
    status, said = await ended(
        "node",
        tmp_path,
        HEARTHLINK_NODE__LISTEN="interface:lo",
        HEARTHLINK_NODE__RUNTIME__KIND="openai",
        HEARTHLINK_NODE__RUNTIME__URL="http://127.0.0.1:1",
        HEARTHLINK_NODE__TLS=expired.model_dump_json(),
    )
    assert status == os.EX_CONFIG and "has expired. Put a new one there" in said


async def ended(module: str, state: Path, **settings: str) -> tuple[int, str]:
    """The exit status of a deployable that ends by itself, and what it said."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(state), "HEARTHLINK_STATE": str(state), **settings}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module), cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            _, said = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
    return await child.wait(), said.decode()


# -- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.case("E64")
async def test_an_edge_whose_log_nobody_reads_any_more_answers_and_ends(runtime: FakeRuntime, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    async with running_processes(runtime.url, tmp_path) as pair, aiohttp.ClientSession(trust_env=False) as client:
        await pair.edge.kill()
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge"), cwd=ROOT, env=pair.environ, stderr=writer
        )
        try:
            async with asyncio.timeout(20):
                url = await asyncio.to_thread(listening_at, reader)
            await answering(client, f"{url}/healthz")
            fill(writer)
            async with asyncio.timeout(20):
                for _ in range(20):
                    async with client.post(f"{url}/v1/chat", json=question(), headers=pair.bearer()) as answer:
                        assert answer.status == 200
            child.terminate()
            async with asyncio.timeout(30):
                assert await child.wait() == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
            os.close(reader)
            os.close(writer)


def listening_at(log: int) -> str:
    """The public URL of an edge, from its log."""
    said = b""
    while (found := re.search(rb"edge listens on (http://[\d.:]+),", said)) is None:
        part = os.read(log, 4096)
        assert part, said.decode()
        said += part
    return found[1].decode()


async def answering(client: aiohttp.ClientSession, url: str) -> None:
    """Wait for a 200."""
    async with asyncio.timeout(20):
        while True:
            async with client.get(url) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)


# -- everybody at once ------------------------------------------------------------------------------------------------


@pytest.mark.case("E71")
async def test_500_callers_renew_their_tokens_within_a_second(runtime: FakeRuntime, tmp_path: Path) -> None:
    """Pages that were opened at one moment, with the shortest tokens there are: each renews its own at 80 % of its
    life, ± 10 % of that, as the JavaScript client does (clients/js/test/token.test.js)."""
    environ = {
        "HEARTHLINK_EDGE__TRUSTED_PROXIES": "127.0.0.1",
        "HEARTHLINK_EDGE__CONNECTIONS_PER_IP": "1000",
        "HEARTHLINK_EDGE__TOKEN_LIFETIME": "10s",
    }
    async with running_processes(runtime.url, tmp_path, environ=environ) as pair:

        async def renew(number: int) -> float:
            await asyncio.sleep(10 * 0.8 * 0.1 * 2 * random.random())
            began = time.monotonic()
            status, body = await mint(pair, **{"X-Forwarded-For": f"198.18.{number // 250}.{number % 250}"})
            assert status == 200 and body["expires_in"] == 10
            return time.monotonic() - began

        both = pair.edge.child.pid, os.getpid()
        held_before = sum(map(held_up, both))
        waited = sorted(await asyncio.gather(*(renew(number) for number in range(500))))
        # What others on this machine took of the time is not the edge's.
        held = sum(map(held_up, both)) - held_before
        assert waited[int(0.99 * len(waited))] < RENEWED_WITHIN + held


# -- where to listen --------------------------------------------------------------------------------------------------


async def said_hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def patient(listener: Listener) -> AsyncIterator[asyncio.Task[None]]:
    """A server that is being started, as an edge starts it; the task ends when it has served somebody."""

    async def serve() -> None:
        async with (
            server.serving(said_hello, [listener], Limits(), Ticker(), patient=True) as listening,
            aiohttp.ClientSession(trust_env=False) as client,
            client.get(listening.listeners[0].url) as answer,
        ):
            assert answer.status == 200

    task = asyncio.create_task(serve())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries often, and waits for a port that is taken for a short time."""
    monkeypatch.setattr(server, "_TRY_EVERY", 0.02)
    monkeypatch.setattr(server, "_PATIENCE", {**server._PATIENCE, errno.EADDRINUSE: 0.3})


@pytest.mark.case("E72")
async def test_a_port_that_is_taken_is_tried_again_while_the_one_before_may_still_be_ending(log: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as before:
        async with patient(Listener("public", *before.getsockname())) as starting:
            await wait_until(lambda: log)
            assert not starting.done()
            before.close()
            await asyncio.wait_for(starting, HANGS)
    assert len(log) == 1 and "is taken by another program" in log[0] and "every second, for 30 s" in log[0]


@pytest.mark.case("E72")
async def test_a_port_that_stays_taken_ends_the_start_with_the_sentence(impatient: None, log: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        async with patient(Listener("public", *other.getsockname())) as starting:
            with pytest.raises(CannotListen, match="is taken by another program"):
                await asyncio.wait_for(starting, HANGS)
    assert len(log) == 1


@pytest.mark.case("E72")
async def test_whoever_starts_an_edge_at_a_taken_port_reads_why_and_can_stop_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HEARTHLINK_STATE": str(tmp_path),
            "HEARTHLINK_EDGE__LISTEN": f"127.0.0.1:{port}",
            "HEARTHLINK_EDGE__OPS_LISTEN": "127.0.0.1:0",
        }
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge"), cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
        )
        assert child.stderr is not None
        async with asyncio.timeout(20):
            said = await waiting(child)
            child.send_signal(signal.SIGINT)
            said += await child.stderr.read()
            assert await child.wait() == 130
    assert f"Port {port} on 127.0.0.1 is taken".encode() in said and b"Traceback" not in said


async def waiting(child: asyncio.subprocess.Process) -> bytes:
    """What a process says until it says that it waits for something."""
    assert child.stderr is not None
    said = b""
    while b"tried again every second" not in said:
        line = await child.stderr.readline()
        assert line, said.decode()
        said += line
    return said


async def refuses(url: str) -> bool:
    """Whether nobody listens at ``url``."""
    async with aiohttp.ClientSession(trust_env=False) as client:
        try:
            async with client.get(url):
                return False
        except aiohttp.ClientConnectorError:
            return True


@pytest.mark.case("E72")
async def test_nobody_is_served_while_one_of_the_addresses_is_waited_for(tmp_path: Path) -> None:
    """It could not be drained. SIGHUP is no reason to end meanwhile, SIGTERM is one to end well."""
    public = free_port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HEARTHLINK_STATE": str(tmp_path),
            "HEARTHLINK_EDGE__LISTEN": f"127.0.0.1:{public}",
            "HEARTHLINK_EDGE__OPS_LISTEN": f"127.0.0.1:{other.getsockname()[1]}",
        }
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge"), cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
        )
        assert child.stderr is not None
        async with asyncio.timeout(20):
            said = await waiting(child)
            assert await refuses(f"http://127.0.0.1:{public}/livez")
            child.send_signal(signal.SIGHUP)
            await asyncio.sleep(1.5)  # a try later it still is there, and still serves nobody
            assert child.returncode is None and await refuses(f"http://127.0.0.1:{public}/livez")
            child.send_signal(signal.SIGTERM)
            said += await child.stderr.read()
            assert await child.wait() == 0
    assert b"Traceback" not in said and said.count(b"tried again") == 1


@pytest.mark.case("E72")
async def test_an_edge_waits_for_the_one_before_that_still_has_the_database(
    runtime: FakeRuntime, tmp_path: Path
) -> None:
    """A restart whose old process is in its drain."""
    async with running_processes(runtime.url, tmp_path) as pair:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge"), cwd=ROOT, env=pair.environ, stderr=asyncio.subprocess.PIPE
        )
        assert child.stderr is not None
        try:
            async with asyncio.timeout(20):
                said = await waiting(child)
                assert b"Another edge is using the database" in said and b"for 30 s" in said
                pair.edge.signal(signal.SIGTERM)
                while b"edge listens on" not in said:
                    line = await child.stderr.readline()
                    assert line, said.decode()
                    said += line
                child.send_signal(signal.SIGTERM)
                assert await child.wait() == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()


@pytest.mark.case("E72")
async def test_an_address_that_comes_late_is_waited_for(
    impatient: None, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tailnet's at boot: tailscaled says that it is up before the address can be bound."""
    there = asyncio.Event()

    def late(listener: Listener) -> socket.socket:
        if there.is_set():
            return bind(listener)
        return bind(Listener("public", "203.0.113.1", 8700))

    monkeypatch.setattr(server, "bind", late)
    async with patient(Listener("public", "127.0.0.1")) as starting:
        await wait_until(lambda: log)
        await asyncio.sleep(0.5)  # longer than a taken port is waited for here
        assert not starting.done()
        there.set()
        await asyncio.wait_for(starting, HANGS)
    assert len(log) == 1 and "203.0.113.1 is not an address of this machine" in log[0]
    assert "until the address is there" in log[0]


async def test_the_metrics_say_that_the_store_cannot_write(runtime: FakeRuntime) -> None:
    """Limits go on in memory; a crash would forget usage."""
    async with running_pair(runtime.url) as pair:
        metrics = pair.ops_url + "/metrics"
        with closing(sqlite3.connect(StateDir(pair.state).database, isolation_level=None)) as blocker:
            blocker.execute("BEGIN IMMEDIATE")
            async with pair.post("/v1/chat", question()) as response:
                assert response.status == 200
            await wait_until(lambda: pair.edge.services.store.problem is not None, 10)
            async with pair.client.get(metrics) as response:
                assert "hearthlink_edge_store_failing 1.0" in await response.text()
        await wait_until(lambda: pair.edge.services.store.problem is None, 10)
        async with pair.client.get(metrics) as response:
            assert "hearthlink_edge_store_failing 0.0" in await response.text()
