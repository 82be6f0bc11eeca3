"""The tailnet as it is now: a watcher that holds it and tells of every change.

    tailnet = Tailnet(client)
    tailnet.listen(lambda before, after: ...)
    task = asyncio.create_task(tailnet.run())
    view = await tailnet.until(lambda view: view.problem is None)

Whoever starts the task cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from shared.tailscale.bus import Mask
from shared.tailscale.client import LocalClient
from shared.tailscale.errors import NotAnswering, Refused, TailscaleError
from shared.tailscale.view import View, after

Listener = Callable[[View, View], None]

# Seconds between two attempts to hear from tailscaled.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
_DELTAS = Mask.INITIAL_STATE | Mask.INITIAL_HEALTH | Mask.INITIAL_STATUS | Mask.PEER_CHANGES
# tailscaled 1.100 was the first to have all of those; older ones tell that something changed, and status says what.
_DELTAS_SINCE = 141
_HINTS = Mask.INITIAL_STATE | Mask.INITIAL_NETMAP


class Tailnet:
    """``view`` is what is known; before the first word from tailscaled its ``failure`` says so. The client stays the
    caller's."""

    def __init__(self, client: LocalClient) -> None:
        self.view = View(failure=NotAnswering("tailscaled has not been asked yet."))
        self._client = client
        self._listeners: set[Listener] = set()
        self._changed = asyncio.Event()
        self._heard = False

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with the views before and after each change. It must return at once and not raise."""
        self._listeners.add(listener)

    def unlisten(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    async def until(self, wanted: Callable[[View], bool]) -> View:
        """The first view, from now on, that is ``wanted``. Put a deadline around it."""
        while not wanted(self.view):
            await self._changed.wait()
        return self.view

    async def run(self) -> None:
        """Follow tailscaled until cancelled, whatever becomes of it meanwhile."""
        pause = _FIRST_PAUSE
        while True:
            self._heard = False
            try:
                await self._follow()
            except Refused as error:
                # Also how it sends away a reader that fell behind; what is known stays true for the moment.
                if not self._heard:
                    self._fail(error)
            except TailscaleError as error:
                self._fail(error)
            pause = _FIRST_PAUSE if self._heard else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _follow(self) -> None:
        """One session of the bus, to its end, which is always an error."""
        await self._client.status(peers=False)  # tells which version it is, which may be another than last time
        deltas = self._client.capability_version >= _DELTAS_SINCE
        async with self._client.watch(_DELTAS if deltas else _HINTS) as notifications:
            async for notification in notifications:
                # A new state or a new network map (told as a change of this machine) brings peers, and does not name
                # those that are gone with it.
                ask = not deltas or (self._heard and (notification.state_told or notification.node is not None))
                self._heard = True
                view = after(replace(self.view, failure=None), notification)
                self._set(View.of(await self._client.status(), view.warnings) if ask else view)

    def _fail(self, error: TailscaleError) -> None:
        """Once for each failure, however often it is met."""
        if repr(error) != repr(self.view.failure):
            self._set(replace(self.view, failure=error))

    def _set(self, view: View) -> None:
        before, self.view = self.view, view
        if before == view:
            return
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener in list(self._listeners):
            listener(before, view)
