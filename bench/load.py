"""The load generator: a process of its own that reads a plan, runs it, and prints what it saw.

    python -m bench.load < plan.json > seen.json

A plan is ``{"url", "headers", "waves": [Wave…], "pids": {name: [pid…]}, "helpers": [pid…], "seconds"}``. Waves run side
by side; the first one decides when it is over. CPU of the named processes is read just before the first request and
just after the last answer, their memory every quarter of a second. ``helpers`` are other processes of the bench: what
they use is not taken for a disturbance.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench import procfs
from bench.client import Answer, Seen, Wave

_SAMPLE_SECONDS = 0.25


class Load:
    """Runs waves against one URL over a pool of keep-alive connections."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "127.0.0.1", parts.port or 80, parts.path
        self._headers = headers
        self._idle: list[Answer] = []

    async def run(self, wave: Wave, seen: Seen) -> None:
        request = self._request(wave)
        if wave.rate:
            await self._at_rate(wave, request, seen)
        else:
            numbers = iter(range(wave.requests))
            workers = (self._worker(number, numbers, wave, request, seen) for number in range(wave.workers))
            await asyncio.gather(*workers)

    async def _worker(self, number: int, numbers: Iterator[int], wave: Wave, request: bytes, seen: Seen) -> None:
        await asyncio.sleep(wave.stagger * number / wave.workers)
        for _ in numbers:
            await self._one(wave, request, seen)

    async def _at_rate(self, wave: Wave, request: bytes, seen: Seen) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(wave.requests):
                await asyncio.sleep(max(0.0, start + number / wave.rate - loop.time()))
                tasks.create_task(self._one(wave, request, seen))

    async def _one(self, wave: Wave, request: bytes, seen: Seen) -> None:
        while self._idle and not self._idle[-1].open:
            self._idle.pop()
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
        except OSError as error:
            seen.bad += 1
            seen.error = seen.error or str(error)
            return
        await connection.ask(request, wave, seen)
        if connection.closing:
            connection.transport.close()
        elif connection.open:
            self._idle.append(connection)

    async def _connect(self) -> Answer:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Answer, self._host, self._port))[1]

    def _request(self, wave: Wave) -> bytes:
        body = wave.body.encode()
        named = {
            "Host": f"{self._host}:{self._port}",
            "Content-Type": "application/json",
            **self._headers,
            **wave.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        return f"POST {self._path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _sample(pids: dict[str, list[int]], highest: dict[str, int]) -> None:
    """Keep the highest memory seen of each named group."""
    while True:
        for name, group in pids.items():
            with suppress(OSError):
                highest[name] = max(highest[name], sum(map(procfs.rss_bytes, group)))
        await asyncio.sleep(_SAMPLE_SECONDS)


def _cpu(pids: dict[str, list[int]]) -> dict[str, float]:
    return {name: sum(map(procfs.cpu_seconds, group)) for name, group in pids.items()}


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    pids: dict[str, list[int]] = plan["pids"]
    waves = [Wave(**wave) for wave in plan["waves"]]
    load = Load(plan["url"], plan["headers"])
    seen = [Seen() for _ in waves]
    highest = dict.fromkeys(pids, 0)
    before = _cpu(pids)
    helpers, everything = sum(map(procfs.cpu_seconds, plan["helpers"])), procfs.machine_seconds()
    own, start = time.process_time(), time.perf_counter()
    tasks = [asyncio.create_task(load.run(wave, note)) for wave, note in zip(waves, seen, strict=True)]
    sampler = asyncio.create_task(_sample(pids, highest))
    late = False
    try:
        async with asyncio.timeout(plan["seconds"]):
            await tasks[0]
    except TimeoutError:
        late = True
    elapsed = time.perf_counter() - start
    cpu = {name: after - before[name] for name, after in _cpu(pids).items()}
    busy = time.process_time() - own
    ours = busy + sum(cpu.values()) + sum(map(procfs.cpu_seconds, plan["helpers"])) - helpers
    others = procfs.machine_seconds() - everything - ours
    for task in (*tasks, sampler):
        task.cancel()
    await asyncio.gather(*tasks, sampler, return_exceptions=True)
    return {
        "waves": [note.summary() for note in seen],
        "cpu": cpu,
        "rss": highest,
        "elapsed": elapsed,
        "generator_busy": busy / elapsed,
        "others_busy": max(0.0, others / elapsed),
        "late": late,
    }


def main() -> None:
    gc.disable()  # a collection would show as lag that is not the proxy's
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(runner.run(run(json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    main()
