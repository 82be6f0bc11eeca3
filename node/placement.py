"""Where a node can be called that is not on loopback: sockets at the addresses that this machine has in its tailnet, or
on a network interface, moved as those change. Nothing is ever listened on instead.

    placement = TailnetPlacement(8001, tailnet, client)
    async with serving(app, [], limits, ticker) as listening:
        task = asyncio.create_task(placement.run(listening))

Whoever starts the task cancels it. Open connections go on when their socket is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from loguru import logger

from shared.addresses import NODE_PORT, OnAddress, OnInterface, OnTailnet, is_tailnet
from shared.asgi.listener import CannotListen, Listener, Rights
from shared.tailscale.errors import TailscaleError

if TYPE_CHECKING:
    from shared.asgi.server import Listening
    from shared.tailscale.client import LocalClient
    from shared.tailscale.socket import Endpoint
    from shared.tailscale.tailnet import Tailnet
    from shared.tailscale.view import View

_LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# Seconds until the next attempt to bind: tailscaled says that it runs moments before its address can be bound.
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0
# Seconds between two looks at what nobody tells of: an interface's addresses, and whether shields are up.
_INTERFACE_EVERY = 5.0
_SHIELDS_EVERY = 30.0
# Seconds between two lines about connections from one host elsewhere, and for so many hosts: whoever makes them could
# fill the disk.
_DROPPED_EVERY = 30.0
_MOST_DROPPED = 300
# For a connection to tailscaled's socket, which is on this machine.
_ANSWERS_WITHIN = 1.0

Where = OnAddress | OnTailnet | OnInterface


async def settled(where: Where, socket: str) -> Where:
    """``where``, with "auto" decided: the tailnet if tailscaled answers now at its ``socket`` ("" for the usual one),
    else loopback, which is logged: as a warning on a machine that has a tailscaled."""
    if not isinstance(where, OnTailnet) or where.certain:
        return where
    from shared.tailscale.socket import find

    place = None
    with contextlib.suppress(OSError, TimeoutError, TailscaleError):
        async with asyncio.timeout(_ANSWERS_WITHIN):
            place = await asyncio.to_thread(find, socket)
            await _connect(place)
            return where
    logger.log(
        "WARNING" if place is not None and _installed(place) else "INFO",
        "no tailscaled answers at {}, so the node stays on loopback, where no edge on another machine reaches it;"
        ' node.listen = "tailnet" waits for tailscaled',
        place or "any place known here",
    )
    return OnAddress(_LOOPBACK, NODE_PORT)


async def _connect(place: Endpoint) -> None:
    if place.path:
        _, writer = await asyncio.open_unix_connection(place.path)
    else:
        _, writer = await asyncio.open_connection(_LOOPBACK, place.port)
    writer.close()


def _installed(place: Endpoint) -> bool:
    """Whether a tailscaled that does not answer has left traces: a socket, a folder of its own for it, or on macOS the
    file that names its port."""
    folder, _ = os.path.split(place.path)
    own = any(part.lower().startswith("tailscale") for part in folder.split("/"))
    return not place.path or os.path.exists(place.path) or (own and os.path.isdir(folder))


class Placement(ABC):
    """``reason`` is the sentence about why the node cannot be called, "" when it can; ``addresses`` are those that
    callers use; ``tailnet`` is what health says of the tailnet, None without one."""

    def __init__(self, rights: Rights, port: int, tls: ssl.SSLContext | None) -> None:
        self.reason = "The node has just started and has no address yet."
        self._rights: Rights = rights
        self._port = port
        self._tls = tls
        self._open: dict[str, Listener] = {}
        self._said = ""
        self._missing = ""  # what was last logged about addresses that are not there

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(self._open)

    @property
    def tailnet(self) -> dict[str, Any] | None:
        return None

    @abstractmethod
    def __contains__(self, host: object) -> bool:
        """Whether a caller may have written ``host`` (lower case, no port, no brackets) to get here. A page whose name
        was made to lead here has written another one."""

    async def run(self, listening: Listening) -> None:
        """Be where the node belongs, until cancelled."""
        try:
            await self._stay(listening)
        except Exception:
            self._say(
                "A fault in the node, which its log describes, keeps it from following its addresses. Restart it."
            )
            raise

    @abstractmethod
    async def _stay(self, listening: Listening) -> None: ...

    async def _move(
        self, listening: Listening, hosts: Collection[str], admits: Callable[[str], bool] | None = None
    ) -> list[CannotListen]:
        """Listen at ``hosts`` and nowhere else: first the new ones, so that somebody answers all the while."""
        failures: list[CannotListen] = []
        for host in hosts:
            if host in self._open:
                continue
            try:
                opened = await listening.open(Listener(self._rights, host, self._port, tls=self._tls, admits=admits))
            except CannotListen as error:
                failures.append(error)
            else:
                self._open[host] = opened
                logger.info("node listens on {}", opened.url)
        for host in self._open.keys() - set(hosts):
            left = self._open.pop(host)
            await listening.shut(left)
            logger.info("node listens no more on {}", left.url)
        return failures

    def _say(self, reason: str, *, log: bool = True) -> None:
        """Keep ``reason``, and log it where it is another one than was logged last."""
        self.reason = reason
        if log and reason != self._said:
            self._said = reason
            if reason:
                logger.warning("the node cannot be called: {}", reason)
            else:
                logger.info("the node can be called again")

    def _warn_of_missing(self, missing: str) -> None:
        """Log once why the node is not at every address that it should be at."""
        if missing and missing != self._missing:
            logger.warning("the node can be called at {} only: {}", ", ".join(self.addresses), missing)
        self._missing = missing


class TailnetPlacement(Placement):
    """At every address of this machine in its tailnet. In userspace networking no interface has them and tailscaled
    itself calls the node, at 127.0.0.1. While tailscaled is away or logged out the sockets stay: they work again
    as soon as the address is back, which mostly is the same."""

    def __init__(self, port: int, tailnet: Tailnet, client: LocalClient, tls: ssl.SSLContext | None = None) -> None:
        super().__init__("tailnet", port, tls)
        self.userspace = False
        self.shields_up: bool | None = None
        self._watched = tailnet
        self._unasked = tailnet.view
        self._client = client
        self._dropped_at: dict[str, float] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._watched.view.addresses if self.userspace else super().addresses

    @property
    def tailnet(self) -> dict[str, Any]:
        view = self._watched.view
        return {
            "state": None if view.failure is not None or view.state is None else str(view.state),
            "reason": self.reason,
            "addresses": list(self.addresses),
            "userspace": self.userspace,
            "shields_up": self.shields_up,
        }

    def __contains__(self, host: object) -> bool:
        view = self._watched.view
        name = view.node.name.lower() if view.node is not None else ""
        return (
            host in LOOPBACK_NAMES or host in view.addresses or (host in (name, name.partition(".")[0]) and host != "")
        )

    async def _stay(self, listening: Listening) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(listening))
            group.create_task(self._look_at_shields())

    async def _follow(self, listening: Listening) -> None:
        changed = asyncio.Event()

        def heard(before: View, after: View) -> None:
            if _own(before) != _own(after):
                changed.set()

        self._watched.listen(heard)
        pause = _FIRST_PAUSE
        try:
            while True:
                done = await self._adapt(listening, self._watched.view, patient=pause < _LONGEST_PAUSE)
                try:
                    async with asyncio.timeout(None if done else pause):
                        await changed.wait()
                    changed.clear()
                    pause = _FIRST_PAUSE
                except TimeoutError:
                    pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            self._watched.unlisten(heard)

    async def _adapt(self, listening: Listening, view: View, *, patient: bool) -> bool:
        """Be where ``view`` says; whether that is done. ``patient``: an address that is not there is no news yet."""
        if view.problem is not None:
            self._say(str(view.problem), log=view is not self._unasked)
            return True
        userspace = view.tun is False
        if userspace and not self.userspace:
            logger.info("tailscaled runs in userspace networking: it hands callers to the node at {}", _LOOPBACK)
        self.userspace = userspace
        hosts = (_LOOPBACK,) if userspace else view.addresses
        failures = await self._move(listening, hosts, self._admits)
        if self._open:
            self._say("")
            if not userspace and not (failures and patient):
                self._warn_of_missing(_all_of(failures) or _missing_family(hosts))
        elif failures:
            self._say(_not_there(hosts, failures), log=not patient)
        else:
            self._say("Tailscale runs and has given this machine no address. Look at it: tailscale status")
        return not failures

    def _admits(self, host: str) -> bool:
        """Whether a connection can have come through the tailnet. On Linux a machine of another network that has a
        route to here can connect too, and gets no answer at all."""
        admitted = (host == _LOOPBACK) if self.userspace else is_tailnet(host)
        if admitted:
            return True
        self._log_dropped(host)
        return False

    def _log_dropped(self, host: str) -> None:
        now = asyncio.get_running_loop().time()
        last = self._dropped_at.get(host)
        if last is not None and now - last < _DROPPED_EVERY:
            return
        self._dropped_at = {known: at for known, at in self._dropped_at.items() if now - at < _DROPPED_EVERY}
        if len(self._dropped_at) < _MOST_DROPPED:
            self._dropped_at[host] = now
            logger.warning("dropped a connection from {}, which did not come through the tailnet", host)

    async def _look_at_shields(self) -> None:
        """They keep everything out that others begin, and tailscaled tells nobody that they are why."""
        while True:
            await self._watched.until(lambda view: view.problem is None)
            with contextlib.suppress(TailscaleError):
                shields_up = (await self._client.prefs()).shields_up
                if shields_up and not self.shields_up:
                    logger.warning("Tailscale lets nothing in here (shields up): tailscale set --shields-up=false")
                self.shields_up = shields_up
            await asyncio.sleep(_SHIELDS_EVERY)


class InterfacePlacement(Placement):
    """At every address of the network interface ``name``, whose callers ``tls`` knows by their certificates."""

    def __init__(self, name: str, port: int, tls: ssl.SSLContext) -> None:
        super().__init__("interface", port, tls)
        self._name = name

    def __contains__(self, host: object) -> bool:
        """Any: its owner may have given this machine any name, and no page gets here without a certificate."""
        return True

    async def _stay(self, listening: Listening) -> None:
        while True:
            await self._look(listening)
            await asyncio.sleep(_INTERFACE_EVERY)

    async def _look(self, listening: Listening) -> None:
        from shared.interfaces import addresses_of

        try:
            hosts = addresses_of(self._name)
        except OSError as error:
            why = f"The system does not tell the addresses of its interfaces: {os.strerror(error.errno or 0)}."
            if self._open:
                self._warn_of_missing(why)
            else:
                self._say(why)
            return
        failures = await self._move(listening, hosts)
        missing = _all_of(failures)
        if self._open:
            self._say("")
            self._warn_of_missing(missing)
        elif hosts:
            self._say(missing)
        else:
            self._say(f"There is no network interface {self._name} with an address. Look at it: ip address")


def _own(view: View) -> tuple[object, ...]:
    """What of a view says where this machine is."""
    return (repr(view.failure), str(view.problem), view.tun, view.addresses)


def _not_there(hosts: Sequence[str], failures: Sequence[CannotListen]) -> str:
    if all(error.errno == errno.EADDRNOTAVAIL for error in failures):
        return (
            f"No interface has {' or '.join(hosts)}, this machine's in the tailnet, yet. If that stays so, restart"
            " tailscaled: sudo systemctl restart tailscaled"
        )
    return _all_of(failures)


def _missing_family(hosts: Sequence[str]) -> str:
    """A tailnet mostly gives one address of each family. The sentence for where it did not, else ""."""
    of_v6 = [":" in host for host in hosts]
    if any(of_v6) and not all(of_v6):
        return ""
    return f"This machine has no {'IPv4' if all(of_v6) else 'IPv6'} address in its tailnet."


def _all_of(failures: Sequence[CannotListen]) -> str:
    return " ".join(str(error) for error in failures)
