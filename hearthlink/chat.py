"""``hearthlink chat "…"``: ask, and watch the answer come."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearthlink import options
from hearthlink.output import Failure, Status, moving_terminal, print_json, printable

if TYPE_CHECKING:
    from rich.status import Status as Spinner
    from rich.text import Text

    from hearthlink.client import Answer, EdgeClient, Part
    from shared.settings import Settings

# The local token serves one question; it has to be valid when the question is asked, not when the answer ends.
_TOKEN_SECONDS = 600.0
_ANY_ADDRESS = frozenset({"0.0.0.0", "::"})  # listened on by an edge for everybody; asked for by nobody


def chat(
    message: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.", show_default=False)],
    chat_type: Annotated[str, typer.Option("--type", metavar="NAME", help="The chat type.")] = "home",
    url: Annotated[str | None, typer.Option("--url", help="The edge; else the one of the settings.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", envvar="HEARTHLINK_CHAT_KEY", help="An API key; - reads standard input.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", envvar="HEARTHLINK_CHAT_TOKEN", help="A token; - reads standard input.")
    ] = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Ask, and write the answer as it comes. Ctrl-C stops the model.

    On the machine of the edge no credential is needed: a token is minted from the local state. Behind Cloudflare Access
    the service token in CF_ACCESS_CLIENT_ID and CF_ACCESS_CLIENT_SECRET is one, for CF_ACCESS_HOST.
    """
    credential = options.read_secret(token, "token") or options.read_secret(key, "key")
    if message == "-":
        message = sys.stdin.read()
    settings = options.settings_from(config)
    where = url or local_url(settings)
    question = {"messages": [{"role": "user", "content": message}], "chat_type": chat_type}
    asyncio.run(ask(where, credential or own_credential(settings, where), question, json))


def local_url(settings: Settings) -> str:
    """Where an edge with these settings is reached from this machine."""
    from shared.addresses import split_listen

    host, port = split_listen(settings.edge.listen)
    host = "127.0.0.1" if host in _ANY_ADDRESS else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def own_credential(settings: Settings, url: str) -> str | None:
    """A token from the local state; None where Cloudflare Access says who is asking. Raises Failure."""
    from hearthlink.client import access_headers, base_url
    from shared.addresses import is_loopback

    if not is_loopback(base_url(url).hostname or "") and access_headers(url):
        return None
    return _local_token(settings, url)


def _local_token(settings: Settings, url: str) -> str:
    """A token from the local state, for the edge on this machine. Raises Failure for an edge elsewhere."""
    from hearthlink.client import base_url
    from hearthlink.tokens import mint_local
    from shared.addresses import is_loopback

    if not is_loopback(base_url(url).hostname or ""):
        raise Failure(
            f"The edge at {url} is not on this machine and wants a credential. Set HEARTHLINK_CHAT_KEY or"
            " HEARTHLINK_CHAT_TOKEN, or give it on standard input with --key - or --token -.",
            Status.AUTH,
        )
    return mint_local(settings, "local", "owner", _TOKEN_SECONDS)[0]


async def ask(url: str, credential: str | None, question: dict[str, Any], as_json: bool) -> None:
    """Write the answer of the edge at ``url``. Without a ``credential`` the edge is asked for a token. Raises
    Failure."""
    from hearthlink.client import EdgeClient

    async with EdgeClient(url, {}) as edge:
        if credential is None:
            credential = (await edge.ask("POST", "/v1/token", {}))["token"]
        edge.use({"Authorization": f"Bearer {credential}"})
        if as_json:
            print_json(await edge.ask("POST", "/v1/chat", {**question, "stream": False}))
            return
        async with edge.stream(question) as answer:
            await _write(edge, answer)


async def _write(edge: EdgeClient, answer: Answer) -> None:
    """Write the words; when interrupted, stop the chat and then close its connection."""
    writing = asyncio.create_task(_write_parts(answer))
    try:
        await asyncio.wait({writing})
        writing.result()
    except asyncio.CancelledError:
        # Not cancelled at once: that closes the connection, and the edge would be told twice, in the wrong order.
        await _stop(edge, answer)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        raise


async def _write_parts(answer: Answer) -> None:
    terminal = sys.stdout.isatty()
    text = "\n"
    waiting = _Waiting()
    try:
        async for part in answer.parts():
            if part.text:
                waiting.end()
                text = part.text
                sys.stdout.write(printable(text) if terminal else text)
                sys.stdout.flush()
            elif reason := _why(part):
                waiting.show(reason)
            elif not part.event:  # its turn has come, and its model is in memory
                waiting.end()
    finally:
        waiting.end()
        if not text.endswith("\n"):
            print(flush=True)


async def _stop(edge: EdgeClient, answer: Answer) -> None:
    with contextlib.suppress(Failure):  # closing the connection, which is next, stops it too
        await edge.stop(answer.chat_id)


class _Waiting:
    """Why nothing comes yet, to a person who watches: one line, which is gone with the first word."""

    def __init__(self) -> None:
        self._spinner: Spinner | None = None

    def show(self, reason: str) -> None:
        if self._spinner is not None:
            self._spinner.update(_plain(reason))
        elif (console := moving_terminal()) is not None:
            self._spinner = console.status(_plain(reason))
            self._spinner.start()

    def end(self) -> None:
        """Idempotent."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None


def _plain(text: str) -> Text:
    from rich.text import Text

    return Text(printable(text))


def _why(part: Part) -> str:
    """Empty for a part that is waited for no more."""
    if part.event == "queued":
        return f"Waiting: place {part.fields.get('position', '?')} in the queue."
    if part.event == "loading":
        progress = part.fields.get("progress")
        far = f", {100 * progress:.0f} %" if isinstance(progress, (int, float)) else ""
        return f"Waiting: the model {part.fields.get('model', '')} is loading{far}."
    return ""
