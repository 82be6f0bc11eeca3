"""Probes run at the same time, each with its deadline. One that hangs or crashes is a line like any other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast

from hearthlink.doctor.report import Group, Line

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Probe:
    """``work`` finds lines of ``group``, within ``seconds``; ``check`` names it when it does not."""

    group: Group
    check: str
    work: Callable[[], Awaitable[Sequence[Line]]]
    seconds: float


async def run_probes(probes: Sequence[Probe]) -> list[Line]:
    """What all of them found, in their order. Done within the longest of their deadlines."""
    found = await asyncio.gather(*(_run(probe) for probe in probes))
    return [line for lines in found for line in lines]


async def _run(probe: Probe) -> Sequence[Line]:
    """A probe is left alone when its time is over, even if it does not let itself be cancelled."""
    task = asyncio.ensure_future(probe.work())
    done, _ = await asyncio.wait({task}, timeout=probe.seconds)
    if not done:
        task.cancel()
        text = f"This could not be told within {probe.seconds:g} s: something that it asks is slow, or hangs."
    elif task.cancelled():
        text = "This was not looked at to its end."
    elif (error := task.exception()) is not None:
        # A text that nobody has read may hold anything, a prompt or a token too.
        text = f"This could not be told, because of an unexpected {type(error).__name__}. Please report it."
    else:
        return task.result()
    return [probe.group.warning(probe.check, f"{probe.check}: {text}", "hearthlink doctor")]


class LeftThreads(ThreadPoolExecutor):
    """For a loop that is to end while a look-up of a name still hangs: each piece of work has a thread of its own that
    nobody waits for. A pool's own threads are joined, by the loop and by the interpreter."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future


async def in_thread(work: Callable[[], T]) -> T:
    """The result of ``work``, which blocks. A thread that hangs, in a file system that is gone say, does not keep the
    process alive, as one of ``asyncio.to_thread`` would."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if result.done():  # nobody waits any more
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(cast(T, value))

    def run() -> None:
        value, failed = None, None
        try:
            value = work()
        except Exception as error:
            failed = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=run, daemon=True).start()
    return await result
