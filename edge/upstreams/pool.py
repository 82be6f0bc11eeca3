"""All nodes, in the order in which they are asked. They come and go while the edge runs."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Collection, Iterable

import aiohttp

from edge.upstreams.sockets import connector
from edge.upstreams.upstream import Upstream
from shared.contract.errors import ApiError


class Upstreams:
    """``all`` is in the order in which they are asked; one that was removed is not in it, also while its last streams
    run."""

    def __init__(self, upstreams: Iterable[Upstream] = ()) -> None:
        self.all = sorted(upstreams, key=_priority)
        self._group: asyncio.TaskGroup | None = None
        self._client: aiohttp.ClientSession | None = None

    def add(self, upstream: Upstream) -> None:
        """One more node, dialled at once where the others are."""
        bisect.insort(self.all, upstream, key=_priority)
        self._keep(upstream)

    def remove(self, upstream: Upstream) -> None:
        """It gets no new streams, and its links end when the running ones have ended."""
        self.all.remove(upstream)
        upstream.leave()

    def choose(self) -> Upstream:
        """The first node that could answer now; else the first that is connected, whose own refusal says more than
        ours. Raises ApiError ``node_unavailable``."""
        for upstream in self.all:
            if upstream.ready:
                return upstream
        for upstream in self.all:
            if upstream.connected:
                return upstream
        raise ApiError("node_unavailable", "The machine with the model cannot be reached just now. Try again soon.")

    def another(self, asked: Collection[str]) -> Upstream | None:
        """The first node that could answer now and is none of those ``asked``, by name."""
        return next((upstream for upstream in self.all if upstream.ready and upstream.name not in asked), None)

    @property
    def ready(self) -> bool:
        return any(upstream.ready for upstream in self.all)

    async def run(self) -> None:
        """Keep every link up until cancelled. Environment proxies are never used for links."""
        async with aiohttp.ClientSession(trust_env=False, connector=connector()) as self._client:
            try:
                async with asyncio.TaskGroup() as self._group:
                    for upstream in self.all:
                        self._keep(upstream)
                    await asyncio.Event().wait()  # there may be none at times
            finally:
                self._group = None

    def _keep(self, upstream: Upstream) -> None:
        if self._group is not None and self._client is not None:
            self._group.create_task(upstream.run(self._client))


def _priority(upstream: Upstream) -> int:
    return upstream.address.priority
