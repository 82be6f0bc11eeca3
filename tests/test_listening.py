"""The sockets of a running server: opened, shut, replaced and kept to their rights while connections go on."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from shared.asgi.connections import Connections
from shared.asgi.listener import CannotListen, Listener
from shared.asgi.listening import Listening
from shared.asgi.protocol import DeadlineProtocol, Limits
from shared.asgi.server import serving
from shared.asgi.types import Receive, Scope, Send
from shared.ticker import Ticker
from shared.tls import client_context, server_context
from tests.certificates import Authority
from tests.open_files import no_more_files
from tests.raw_http import RawClient
from tests.waiting import HANGS, wait_until

Run = Callable[[Coroutine[Any, Any, None]], None]

HERE = Listener("ops", "127.0.0.1")
# Tests that take ``run`` hold on the loop of edge and node and on Python's own.
LOOPS = pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])


@dataclass
class App:
    """Says which rights a caller has. ``/slow`` says one half at once and the other when ``go`` is set; a WebSocket is
    told its rights and then held."""

    go: asyncio.Event
    requests: int = 0
    closed_with: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rights = scope["state"]["listener"].encode()
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "bytes": rights})
            self.closed_with = (await receive())["code"]
            return
        self.requests += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        write = scope["state"]["write"]
        await write({"type": "http.response.body", "body": rights, "more_body": True})
        if scope["path"] == "/slow":
            await self.go.wait()
        await write({"type": "http.response.body", "body": b"."})


@asynccontextmanager
async def served(*listeners: Listener) -> AsyncIterator[tuple[Listening, App]]:
    app = App(asyncio.Event())
    async with serving(app, listeners, Limits(), Ticker()) as listening:
        yield listening, app


async def rights_at(listener: Listener) -> str:
    """What the app answers to a new connection."""
    connector = aiohttp.UnixConnector(listener.path) if listener.path else None
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
        url = "http://localhost/" if listener.path else listener.url
        async with session.get(url) as answer:
            return await answer.text()


async def refused(listener: Listener) -> bool:
    try:
        _, writer = await asyncio.open_connection(listener.host, listener.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


@LOOPS
def test_a_listener_opened_later_serves_and_a_shut_one_leaves_its_connections(run: Run) -> None:
    async def test() -> None:
        async with served() as (listening, app):
            assert listening.listeners == ()
            first = await listening.open(HERE)
            second = await listening.open(replace(HERE, rights="public"))
            assert listening.listeners == (first, second) and first.port and second.port
            assert [await rights_at(listener) for listener in (first, second)] == ["ops.", "public."]
            async with (
                aiohttp.ClientSession(trust_env=False) as session,
                session.get(f"{first.url}/slow") as running,
                session.ws_connect(f"{first.url}/") as link,
            ):
                assert await running.content.readany() == b"ops"
                assert await link.receive_bytes() == b"ops"
                await listening.shut(first)
                await listening.shut(first)  # nothing to shut any more
                assert await refused(first) and listening.listeners == (second,)
                app.go.set()
                assert await running.content.read() == b"."
                async with session.get(first.url) as kept:  # the same connection again
                    assert await kept.text() == "ops."
                assert not link.closed and app.closed_with == 0
            assert await listening.open(first) == first
            assert await rights_at(first) == "ops."

    run(test())


async def test_an_address_is_replaced_without_a_moment_in_which_callers_are_refused() -> None:
    admitted_by: list[int] = []

    def version(number: int) -> Callable[[str], bool]:
        return lambda peer: admitted_by.append(number) is None

    async with served(HERE) as (listening, app):
        first = listening.listeners[0]

        async def call() -> None:
            while True:
                async with await RawClient.connect(first.url) as raw:
                    await raw.request("GET", "/")
                    assert (await raw.head()).status == 200

        callers = [asyncio.create_task(call()) for _ in range(4)]
        for number in range(15):
            assert await listening.open(replace(first, admits=version(number))) == first
            assert await rights_at(first) == "ops."
            assert admitted_by[-1] == number
        assert len(listening.listeners) == 1
        assert app.requests > 30
        for caller in callers:
            assert not caller.done(), "a caller was refused"
            caller.cancel()


async def test_an_address_keeps_its_rights() -> None:
    """Two settings that name one address would otherwise open the operations to the public."""
    async with served(HERE) as (listening, _):
        ops = listening.listeners[0]
        with pytest.raises(CannotListen, match="is taken by this program itself, for ops") as error:
            await listening.open(replace(ops, rights="public"))
        assert error.value.errno == errno.EADDRINUSE
        assert await rights_at(ops) == "ops."


async def test_rights_do_not_depend_on_the_port() -> None:
    async with served(HERE) as (listening, _):
        other = Listener("interface", "127.0.0.2", listening.listeners[0].port)
        assert await listening.open(other) == other
        assert [await rights_at(listener) for listener in listening.listeners] == ["ops.", "interface."]


async def test_who_is_not_admitted_is_dropped_before_a_byte_is_read() -> None:
    asked: list[str] = []

    def admits(peer: str) -> bool:
        asked.append(peer)
        return peer == "127.0.0.1"

    async with served(replace(HERE, admits=admits)) as (listening, app):
        port = listening.listeners[0].port
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        assert app.requests == 0
        assert await rights_at(listening.listeners[0]) == "ops."
        assert asked == ["127.0.0.2", "127.0.0.2", "127.0.0.1"]


def bare(listener: Listener) -> socket.socket:
    """A listening socket as others make them: no option set, its protocol not named."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind((listener.host, listener.port))
    sock.listen()
    sock.setblocking(False)
    return sock


@LOOPS
@pytest.mark.parametrize("made_by", ["us", "others"])
@pytest.mark.parametrize("speaks", ["plain", "tls"])
def test_small_events_never_wait_for_an_ack(
    run: Run, made_by: str, speaks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made_by == "others":
        monkeypatch.setattr("shared.asgi.server.bind", bare)
    here, context = HERE, None
    if speaks == "tls":
        authority = Authority(tmp_path)
        here = replace(HERE, tls=server_context(authority.issue("node")))
        context = client_context(authority.issue("edge"))

    async def test() -> None:
        async with served(here) as (listening, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", listening.listeners[0].port, ssl=context)
            with closing(writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                connections = [thing for thing in gc.get_objects() if isinstance(thing, DeadlineProtocol)]
                [ours] = [one for one in connections if one.client == writer.get_extra_info("sockname")]
                assert (ours.transport.get_extra_info("ssl_object") is not None) == (speaks == "tls")
                accepted = ours.transport.get_extra_info("socket")
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(test())


# -- the end ----------------------------------------------------------------------------------------------------------


@LOOPS
def test_at_the_end_answers_of_later_listeners_finish_and_their_websockets_are_closed(run: Run) -> None:
    async def test() -> None:
        async with aiohttp.ClientSession(trust_env=False) as session:
            async with served() as (listening, app):
                later = await listening.open(HERE)
                answer = await session.get(f"{later.url}/slow")
                assert await answer.content.readany() == b"ops"
                link = await session.ws_connect(f"{later.url}/")
                assert await link.receive_bytes() == b"ops"
                asyncio.get_running_loop().call_later(0.2, app.go.set)
            assert await answer.content.read() == b"."
            assert (await link.receive()).data == 1012
            assert app.closed_with == 1012
            assert await refused(later)

    run(test())


async def test_a_server_that_cannot_have_all_its_addresses_leaves_none_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        first, second = (Listener("public", *sock.getsockname()) for sock in (free, taken))
        free.close()
        with pytest.raises(CannotListen, match="taken by another program") as error:
            async with served(first, second):
                pass
        assert error.value.errno == errno.EADDRINUSE
        assert await refused(first)


async def test_an_address_of_another_machine_says_so_and_can_be_told_from_a_taken_one() -> None:
    async with served() as (listening, _):
        with pytest.raises(CannotListen, match="not an address of this machine") as error:
            await listening.open(Listener("tailnet", "203.0.113.1", 8001))
        assert error.value.errno == errno.EADDRNOTAVAIL
        assert listening.listeners == ()


async def test_too_many_open_files_are_a_reason_like_any_other(tmp_path: Path) -> None:
    """Whoever follows an address tries again after CannotListen, and ends at any other error."""
    async with served(HERE, Listener("serve", path=str(tmp_path / "a.sock"))) as (listening, _):
        open_ones = listening.listeners
        with no_more_files():
            for listener in (replace(HERE, port=1), Listener("ops", path=str(tmp_path / "b.sock")), *open_ones):
                with pytest.raises(CannotListen, match="Too many open files") as error:
                    await listening.open(listener)
                assert error.value.errno == errno.EMFILE
        assert listening.listeners == open_ones
        assert [await rights_at(listener) for listener in open_ones] == ["ops.", "serve."]


async def test_all_requests_of_a_connection_share_what_is_remembered_of_it_and_no_others_do() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen = scope["state"]["connection"].setdefault("seen", [])
        seen.append(scope["type"])
        said = ",".join(seen).encode()
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "bytes": said})
            await send({"type": "websocket.close"})
        else:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]}
            )
            await send({"type": "http.response.body", "body": said})

    async with serving(app, [HERE], Limits(), Ticker()) as listening:
        url = listening.listeners[0].url
        for _ in range(2):
            async with aiohttp.ClientSession(trust_env=False) as session:
                for said in ("http", "http,http"):
                    async with session.get(url) as answer:
                        assert await answer.text() == said
                async with session.ws_connect(url) as link:
                    assert await link.receive_bytes() == b"http,http,websocket"


async def test_an_idle_connection_outlives_those_of_the_proxies_in_front() -> None:
    async with served() as (listening, _):
        assert listening._config.timeout_keep_alive > 90, "seconds: as long as Tailscale Serve keeps one"


# -- unix sockets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@LOOPS
def test_a_unix_socket_is_its_owners_alone_and_goes_away(run: Run, tmp_path: Path, no_umask: None) -> None:
    async def test() -> None:
        path = tmp_path / "serve.sock"
        modes = []
        listen = socket.socket.listen

        def watched(sock: socket.socket, *backlog: int) -> None:
            if sock.family == socket.AF_UNIX and not modes:
                modes.append(stat.S_IMODE(path.stat().st_mode))  # before anybody could connect
            listen(sock, *backlog)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "listen", watched)
            async with served() as (listening, _):
                opened = await listening.open(Listener("serve", path=str(path)))
                assert opened.url == f"unix:{path}" and await rights_at(opened) == "serve."
                assert modes == [0o600] and stat.S_IMODE(path.stat().st_mode) == 0o600
                assert await listening.open(opened) == opened and listening.listeners == (opened,)
                assert await rights_at(opened) == "serve."
                await listening.shut(opened)
                assert not path.exists()
                await listening.open(opened)
                assert await rights_at(opened) == "serve."
        assert not path.exists()
        assert os.umask(0) == 0, "the process has its umask back"

    run(test())


async def test_a_unix_socket_left_by_a_killed_process_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "serve.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    async with served(Listener("serve", path=path)) as (listening, _):
        assert await rights_at(listening.listeners[0]) == "serve."
        async with served() as (second, _):
            with pytest.raises(CannotListen, match="Another program listens on") as error:
                await second.open(Listener("ops", path=path))
            assert error.value.errno == errno.EADDRINUSE
        assert await rights_at(listening.listeners[0]) == "serve."


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_socket_of_another_user_is_not_taken_for_a_program_that_listens(tmp_path: Path) -> None:
    """As an edge leaves it that root started once, for one that another user starts."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own are closed to others
    try:
        folder.chmod(0o777)
        path = folder / "serve.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        path.chmod(0o600)
        script = (
            "import os, sys; from shared.asgi.listener import CannotListen, Listener, bind; os.setuid(65534)\n"
            "try: bind(Listener('serve', path=sys.argv[1]))\n"
            "except CannotListen as error: print(error.errno, error)"
        )
        said = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    finally:
        shutil.rmtree(folder)
    assert said.stdout.startswith(f"{errno.EACCES} The socket {path} belongs to another user")
    assert f"sudo rm {path}" in said.stdout


async def test_what_is_no_socket_of_ours_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    path.write_text("mine")
    async with served() as (listening, _):
        with pytest.raises(CannotListen, match="no socket"):
            await listening.open(Listener("serve", path=str(path)))
        path.unlink()
        await listening.open(Listener("serve", path=str(path)))
        path.unlink()
        path.write_text("somebody else's by now")
    assert path.exists()


@pytest.mark.parametrize(
    ("name", "says"), [("x" * 120, "bytes, and the system allows"), ("no/serve.sock", "folder must be there")]
)
async def test_a_path_that_cannot_be_says_why(tmp_path: Path, name: str, says: str) -> None:
    async with served() as (listening, _):
        with pytest.raises(CannotListen, match=says):
            await listening.open(Listener("serve", path=str(tmp_path / name)))


async def test_a_lost_unix_socket_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    async with served(Listener("serve", path=str(path))) as (listening, _):
        path.unlink()
        await listening.open(listening.listeners[0])
        assert await rights_at(listening.listeners[0]) == "serve."
    assert not path.exists()


@LOOPS
def test_a_websocket_counts_until_its_connection_has_closed(run: Run) -> None:
    async def test() -> None:
        connections = Connections(1, lambda peer: peer)
        async with served(replace(HERE, connections=connections)) as (listening, _):
            url = listening.listeners[0].url
            async with aiohttp.ClientSession(trust_env=False) as session:
                async with session.ws_connect(url) as link:
                    assert await link.receive_bytes() == b"ops"
                    assert len(connections) == 1
                    async with aiohttp.ClientSession(trust_env=False) as another, another.get(url) as answer:
                        assert answer.status == 429
                await wait_until(lambda: len(connections) == 0)

    run(test())


@LOOPS
def test_a_handshake_that_nobody_answers_has_a_deadline(run: Run) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async def test() -> None:
        ticker = Ticker()
        async with serving(app, [HERE], Limits(header_timeout=0.2), ticker) as listening:
            ticking = asyncio.create_task(ticker.run())
            async with aiohttp.ClientSession(trust_env=False) as session:
                with pytest.raises(aiohttp.ClientError):
                    async with asyncio.timeout(HANGS):
                        await session.ws_connect(listening.listeners[0].url)
            ticking.cancel()

    run(test())
