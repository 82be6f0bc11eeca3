"""``hearthlink up``: node and edge on this machine, ready to be asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hearthlink import options, ports, welcome
from hearthlink.output import Failure, Status, say

if TYPE_CHECKING:
    from hearthlink.pair import Pair
    from hearthlink.progress import Progress
    from shared.settings import Settings

T = TypeVar("T")

# A Ctrl-C may arrive twice: from the terminal, and passed on by the program that started us. A person is slower.
_ECHO_SECONDS = 0.3
_LOOPBACK = f"{ports.HOST},localhost"


def up(
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="P",
            min=0,
            max=65534,
            help="Of the edge; operations are on the next one. 0 takes free ones.  [default: 8700]",
        ),
    ] = None,
    model: options.Model = None,
    runtime: options.Runtime = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the whole log of both.")] = False,
    config: options.Config = None,
) -> None:
    """Start node and edge on this machine and print the URL. Ctrl-C stops both.

    Settings of file and environment hold, but for addresses: everything stays on 127.0.0.1.
    """
    chosen = options.runtime_flags(model, runtime)
    configured = options.settings_from(config, chosen)
    port = _port(port, configured)
    wanted = options.wanted_model(configured)
    flags = {**chosen, **_addresses(port, configured)}

    def environment(node_port: int) -> Mapping[str, str]:
        return _environment({**flags, **_node_address(node_port, configured)}, config)

    with ports.claimed(port):
        flags |= options.pull_missing(wanted, configured)
        if wanted is not None:
            _check_model(wanted.path)
        settings = options.settings_from(config, flags)
        raise typer.Exit(asyncio.run(_Up(settings, port, environment, config, not no_browser, verbose).run()))


def _check_model(model: Path) -> None:
    """Refuse a model file that cannot be loaded before anything is started. Raises Failure."""
    from hearthlink.models.catalogue import short_names
    from node.runtimes.gguf import NotGGUFError
    from node.runtimes.model_file import read_model

    advice = (
        "Name a GGUF file with --model PATH, a model to pull with --model hf:owner/repo/file.gguf or"
        f" {short_names()}, or a server that runs already with --runtime URL."
    )
    try:
        read_model(model)
    except FileNotFoundError as error:
        raise Failure(f"There is no model file {error.filename}. {advice}", Status.NOT_FOUND) from None
    except OSError as error:
        file = error.filename or model
        raise Failure(f"The model file {file} cannot be read: {error.strerror}. {advice}") from None
    except NotGGUFError as error:
        raise Failure(f"{model} is no model: it {error}. {advice}") from None


def _port(asked: int | None, settings: Settings) -> int:
    from shared.addresses import split_listen

    port = split_listen(settings.edge.listen)[1] if asked is None else asked
    if port == 65535:
        raise Failure(
            "Operations need the port after the edge's, and 65535 is the last. Choose --port 8700.", Status.USAGE
        )
    return port or ports.free_pair()


def _addresses(port: int, settings: Settings) -> dict[str, Any]:
    """The settings that make an edge on ``port`` of loopback, on top of what the person set."""
    url = f"http://{ports.HOST}:{port}"
    own = [url, f"http://localhost:{port}"]
    return {
        "edge.listen": f"{ports.HOST}:{port}",
        "edge.ops_listen": f"{ports.HOST}:{port + 1}",
        "edge.public_url": settings.edge.public_url or url,
        "edge.allowed_origins": list(dict.fromkeys([*own, *settings.edge.allowed_origins])),
        "edge.anonymous_raw_models": True,
    }


def _node_address(port: int, settings: Settings) -> dict[str, Any]:
    """The settings that make a node on ``port`` and lead the edge to it, whatever place the person gave each: tailnet
    and certificates are for other machines."""
    upstream: dict[str, Any] = {"kind": "link", "url": f"ws://{ports.HOST}:{port}/link"}
    flags: dict[str, Any] = {"node.listen": f"{ports.HOST}:{port}", "node.tls": {}, "edge.upstreams.default": upstream}
    default = settings.edge.upstreams.get("default")
    if default is not None:
        upstream |= {"priority": default.priority, "links": default.links}
    if default is not None and default.token is not None:
        upstream["token"] = default.token.get_secret_value()
    else:
        flags["node.tokens"] = []  # both then take the one of the state
    return flags


def _environment(flags: Mapping[str, Any], config: Path | None) -> dict[str, str]:
    """For a child: the person's own, ``flags`` as variables, and no proxy between the two."""
    environment = dict(os.environ)
    for key, value in flags.items():
        name = "HEARTHLINK_" + key.upper().replace(".", "__")
        for part in [part for part in environment if part.startswith(f"{name}__")]:
            del environment[part]  # of a section that is replaced as a whole
        environment[name] = value if isinstance(value, str) else json.dumps(value)
    environment["HEARTHLINK_LOGS__FORMAT"] = "json"
    if config is not None:
        environment["HEARTHLINK_CONFIG"] = str(config.expanduser().absolute())
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, (environment.get(name), _LOOPBACK)))
    return environment


@dataclass(slots=True)
class _Up:
    """One run: start, tell, wait for a signal or a death, stop."""

    settings: Settings
    port: int
    environment: Callable[[int], Mapping[str, str]]
    config: Path | None
    browser: bool
    verbose: bool

    async def run(self) -> int:
        """The exit status: 0 when it was stopped after it had answered. Raises Failure when the pair does not start, or
        a part of it ends by itself."""
        from hearthlink.pair import Pair
        from hearthlink.progress import Progress

        with _signals() as signals, Progress() as progress:
            log = _Log(progress, self.verbose)
            drain = max(self.settings.edge.drain_timeout, self.settings.node.drain_timeout)
            pair = Pair(self.port, self.environment, log.show, drain, self.verbose)
            try:
                served = await self._serve(pair, progress, log, signals)
            finally:
                log.quiet = True
                await _stop(pair, signals)
        return Status.OK if served and not signals.second.is_set() else Status.INTERRUPTED

    async def _serve(self, pair: Pair, progress: Progress, log: _Log, signals: _Signals) -> bool:
        """Until the first signal; False when that came before anything could be answered. Raises Failure."""
        ready = await _unless(signals.first, pair.start(progress))
        progress.stop()
        if ready is None:
            return False
        log.quiet = False
        url = f"http://{ports.HOST}:{self.port}"
        print(welcome.text(url, self.port + 1, ready, self.settings, self.config), flush=True)
        if ready.closed:
            say("It is closed to all but admins, see hearthlink maintenance show. Open it: hearthlink maintenance off")
        if self.browser and self.settings.edge.page:
            welcome.open_page(url)
        ended = await _unless(signals.first, pair.ended())
        if ended is not None:
            raise Failure(ended.why())
        say("Stopping: running answers may finish. Ctrl-C again cuts them.")
        return True


@dataclass(slots=True)
class _Log:
    """What the children log, as far as it is for the person. ``quiet``: while they start, the edge tells that it cannot
    reach the node yet, and while they stop, that it is gone."""

    progress: Progress
    verbose: bool
    quiet: bool = True

    def show(self, name: str, level: str, message: str) -> None:
        if self.verbose or name == "node" or not self.quiet:
            self.progress.note(": ".join(filter(None, (name, level.lower(), message))))


@dataclass(slots=True)
class _Signals:
    """``first`` asks to stop, ``second`` to stop at once."""

    first: asyncio.Event = field(default_factory=asyncio.Event)
    second: asyncio.Event = field(default_factory=asyncio.Event)
    _first_at: float = 0.0

    def received(self) -> None:
        now = time.monotonic()
        if not self.first.is_set():
            self.first.set()
            self._first_at = now
        elif now - self._first_at > _ECHO_SECONDS:
            self.second.set()


@contextmanager
def _signals() -> Iterator[_Signals]:
    loop = asyncio.get_running_loop()
    signals = _Signals()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, signals.received)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _unless(event: asyncio.Event, work: Awaitable[T]) -> T | None:
    """The result of ``work``, or None, and ``work`` cancelled, once ``event`` is set."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


async def _stop(pair: Pair, signals: _Signals) -> None:
    """Let both drain, or kill them at the second signal; they are gone afterwards."""
    stopping = asyncio.create_task(pair.stop())
    await _unless(signals.second, asyncio.shield(stopping))
    if not stopping.done():
        pair.kill()
    await stopping
