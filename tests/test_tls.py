"""Certificates on both sides: who gets in, what is said of those who do not, and of files that do not work."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from loguru import logger

from shared import tls
from shared.asgi.listener import Listener
from shared.asgi.listening import Listening
from shared.asgi.protocol import Limits
from shared.asgi.server import serving
from shared.asgi.types import Receive, Scope, Send
from shared.settings_sections import TlsSettings
from shared.ticker import Ticker
from tests.certificates import Authority
from tests.raw_http import RawClient
from tests.waiting import wait_until

Run = Callable[[Coroutine[Any, Any, None]], None]
LOOPS = pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])


@dataclass(frozen=True)
class Files:
    """One owner's authority with what it issued, and another's."""

    node: TlsSettings
    edge: TlsSettings
    expired: TlsSettings
    only_server: TlsSettings
    stranger: TlsSettings


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    ours, theirs = Authority(tmp_path_factory.mktemp("ours")), Authority(tmp_path_factory.mktemp("theirs"))
    return Files(
        node=ours.issue("node"),
        edge=ours.issue("edge"),
        expired=ours.issue("expired", days=-1),
        only_server=ours.issue("only-server", use="serverAuth"),
        stranger=theirs.issue("stranger"),
    )


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.rstrip("\n")), format="{message}", filter="shared.asgi")
    yield lines
    logger.remove(sink)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the rights and scheme of the connection; a WebSocket hears what it says."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})
        return
    body = f"{scope['state']['listener']} {scope['scheme']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(files: Files, **changes: Any) -> AsyncIterator[tuple[Listening, Listener]]:
    listener = Listener("interface", "127.0.0.1", tls=tls.server_context(files.node))
    async with serving(app, [replace(listener, **changes)], Limits(), Ticker()) as listening:
        yield listening, listening.listeners[0]


async def ask(listener: Listener, context: ssl.SSLContext) -> str:
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(listener.url, ssl=context) as answer,
    ):
        return await answer.text()


def careless(settings: TlsSettings | None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client that believes everybody and shows whatever it has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    if settings is not None:
        assert settings.certificate is not None
        context.load_cert_chain(settings.certificate, settings.key)
    return context


# -- who gets in ------------------------------------------------------------------------------------------------------


@LOOPS
def test_both_sides_of_one_authority_talk_http_and_websocket(run: Run, files: Files, log: list[str]) -> None:
    async def test() -> None:
        async with served(files) as (listening, listener):
            context = tls.client_context(files.edge)
            assert listener.url.startswith("https://") and await ask(listener, context) == "interface https"
            async with (
                aiohttp.ClientSession(trust_env=False) as session,
                session.ws_connect(listener.url, ssl=context) as link,
            ):
                large = bytes(200_000)
                await link.send_bytes(large)
                assert await link.receive_bytes() == large
                await listening.shut(listener)
                await link.send_bytes(b"still here")
                assert await link.receive_bytes() == b"still here"
        assert log == []

    run(test())


@LOOPS
@pytest.mark.parametrize(
    ("who", "says"),
    [
        (None, "it showed no certificate"),
        ("stranger", "its certificate is not of our authority"),
        ("expired", "its certificate has expired"),
        ("only_server", "its certificate was not made for this use"),
    ],
)
def test_a_caller_with_a_wrong_certificate_is_refused_in_words(
    run: Run, files: Files, log: list[str], who: str | None, says: str
) -> None:
    async def test() -> None:
        async with served(files) as (_, listener):
            with pytest.raises(aiohttp.ClientError):
                await ask(listener, careless(getattr(files, who) if who else None))
            await wait_until(lambda: log)
            assert f"a TLS connection from 127.0.0.1 was refused: {says}" in log[0]
            assert await ask(listener, tls.client_context(files.edge)) == "interface https"

    run(test())


@LOOPS
@pytest.mark.parametrize(
    ("speech", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "it speaks plain HTTP, not TLS"),
        (b"SSH-2.0-OpenSSH_10.2\r\n", "it does not speak TLS"),
        (bytes(64), "it does not speak TLS"),
        (b"", "it closed the connection during the handshake"),
    ],
)
def test_what_is_not_tls_is_refused_in_words(run: Run, files: Files, log: list[str], speech: bytes, says: str) -> None:
    async def test() -> None:
        async with served(files) as (_, listener), await RawClient.connect(listener.url) as raw:
            await raw.send(speech)
            if not speech:
                raw.half_close()
            await raw.closed_by_peer()
            await wait_until(lambda: log)
            assert says in log[0]

    run(test())


@LOOPS
def test_tls_before_1_3_is_refused_in_words(run: Run, files: Files, log: list[str]) -> None:
    async def test() -> None:
        async with served(files) as (_, listener):
            with pytest.raises(aiohttp.ClientError):
                await ask(listener, careless(files.edge, ssl.TLSVersion.TLSv1_2))
            await wait_until(lambda: log)
            assert "it speaks only versions of TLS before 1.3" in log[0]

    run(test())


@LOOPS
def test_a_caller_who_refuses_us_is_quoted(run: Run, files: Files, log: list[str]) -> None:
    """openssl, unlike Python's event loops, says why before it goes."""

    async def test() -> None:
        async with served(files) as (_, listener):
            place = ("-connect", f"127.0.0.1:{listener.port}")
            command = ["openssl", "s_client", *place, "-CAfile", str(files.stranger.authority), "-verify_return_error"]
            asked = asyncio.to_thread(
                subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20
            )
            assert (await asked).returncode != 0
            await wait_until(lambda: log)
            assert "it does not know the authority of our certificate" in log[0]

    run(test())


@pytest.mark.parametrize(
    ("who", "says"),
    [("stranger", "its certificate is not of our authority"), ("expired", "its certificate has expired")],
)
async def test_an_edge_says_why_it_refuses_a_node(files: Files, who: str, says: str) -> None:
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    settings = getattr(files, who)
    shown.load_cert_chain(settings.certificate, settings.key)
    async with served(files, tls=shown) as (_, listener):
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await ask(listener, tls.client_context(files.edge))
        assert tls.refusal(refused.value.__cause__ or refused.value).startswith(says)


def test_a_clock_that_is_wrong_is_named() -> None:
    error = ssl.SSLCertVerificationError("certificate is not yet valid")
    error.verify_code, error.verify_message = 9, "certificate is not yet valid"  # as OpenSSL numbers it
    assert tls.refusal(error) == "its certificate is not valid yet; compare the clocks of both machines"


# -- callers who keep a node busy -------------------------------------------------------------------------------------


@LOOPS
def test_a_caller_who_says_nothing_is_given_up(
    run: Run, files: Files, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.asgi.handshake._WITHIN", 0.2)

    async def test() -> None:
        async with served(files) as (_, listener), await RawClient.connect(listener.url) as raw:
            await raw.closed_by_peer()
            await wait_until(lambda: log)
            assert "it did not finish the handshake in time" in log[0]

    run(test())


@LOOPS
def test_callers_who_say_nothing_keep_nobody_out(
    run: Run, files: Files, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.asgi.handshake._AT_ONCE", 4)

    async def test() -> None:
        async with served(files) as (_, listener):
            silent = [await RawClient.connect(listener.url) for _ in range(8)]
            assert await ask(listener, tls.client_context(files.edge)) == "interface https"
            for raw in silent[:4]:
                await raw.closed_by_peer()
            assert "4 others began before it had finished the handshake" in log[0]
            for raw in silent:
                raw.close()

    run(test())


async def test_refusals_cannot_fill_the_log(files: Files, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.asgi.handshake._LINES", 3)
    loop = asyncio.get_running_loop()
    async with served(files) as (_, listener):
        began = int(loop.time())
        for _ in range(60):
            async with await RawClient.connect(listener.url) as raw:
                await raw.send(b"not TLS\r\n")
                await raw.closed_by_peer()
        seconds = int(loop.time()) - began + 1
        assert len([line for line in log if "does not speak TLS" in line]) <= 3 * seconds
        began = int(loop.time())
        await wait_until(lambda: int(loop.time()) > began)
        async with await RawClient.connect(listener.url) as raw:
            await raw.send(b"not TLS\r\n")
            await raw.closed_by_peer()
        await wait_until(lambda: any("more TLS connections were refused" in line for line in log))


async def test_handshakes_end_with_the_server(files: Files) -> None:
    async with served(files) as (_, listener):
        raw = await RawClient.connect(listener.url)
        await asyncio.sleep(0.05)
    await raw.closed_by_peer(1)
    raw.close()


async def test_who_is_not_admitted_gets_no_handshake(files: Files, log: list[str]) -> None:
    async with served(files, admits=lambda peer: False) as (_, listener):
        async with await RawClient.connect(listener.url) as raw:
            with suppress(ConnectionError):
                await raw.closed_by_peer()
        assert log == []


async def test_a_new_certificate_is_shown_from_the_next_connection_on(files: Files) -> None:
    async def shown(listener: Listener) -> str:
        context = careless(files.edge)
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return ssl.DER_cert_to_PEM_cert(der)

    async with served(files) as (listening, listener):
        before = await shown(listener)
        await listening.open(replace(listener, tls=tls.server_context(files.edge)))
        assert files.node.certificate and before in files.node.certificate.read_text()
        assert files.edge.certificate and await shown(listener) in files.edge.certificate.read_text()


# -- files that do not work -------------------------------------------------------------------------------------------


def test_files_that_do_not_work_say_so_before_anybody_calls(files: Files, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", str(files.node.key), "-aes256", "-passout", "pass:secret", "-out", str(locked)],
        check=True,
        capture_output=True,
        timeout=20,
    )
    old_authority = Authority(tmp_path, days=-1)
    for changes, says in (
        ({"certificate": tmp_path / "none.pem"}, "none.pem cannot be read: No such file"),
        ({"certificate": tmp_path}, "cannot be read: Is a directory"),
        ({"key": files.edge.key}, "is not the key of the certificate in"),
        ({"key": files.node.certificate}, "cannot be used: .* in PEM"),
        ({"key": locked}, "is locked with a password"),
        ({"authority": files.node.key}, "holds no certificate in PEM"),
        ({"authority": files.node.certificate}, "is not the certificate of an authority"),
        ({"authority": old_authority.certificate}, "and with it all that it issued"),
        ({"certificate": files.expired.certificate, "key": files.expired.key}, "has expired. Put a new one there"),
        ({"certificate": None}, "Certificate, key and authority are all needed"),
    ):
        broken = files.node.model_copy(update=changes)
        for context in (tls.server_context, tls.client_context):
            with pytest.raises(tls.TlsError, match=says):
                context(broken)


def test_a_certificate_made_for_another_use_is_told_by_the_side_that_has_it(files: Files) -> None:
    tls.server_context(files.only_server)
    with pytest.raises(tls.TlsError, match="was not made for clientAuth"):
        tls.client_context(files.only_server)
