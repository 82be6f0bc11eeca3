"""Whose turn it is when one caller floods the node, and how equal the shares of equal callers are, with a real
llama.cpp of one slot: there, one generation is what the next one waits at most."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import aiohttp

from bench.model_speed import llama
from bench.processes import BenchError
from bench.report import Figure
from bench.sections import Bench
from bench.targets import CHAT, Pair

# Answers of about half a second on a common machine: long beside everything that is not generation.
_PARAMETERS = 30_000_000
_TOKENS = 48
_FLOOD = 50
_EQUAL = 4
# Requests that each of the equal ones keeps waiting: one does not, so that what is fair is not the number of requests.
_EAGER = (6, 2, 2, 2)

Headers = Mapping[str, str]


def fairness(bench: Bench) -> list[Figure]:
    """Time to first token alone and behind a flood, and Jain's index of equal callers' tokens."""
    from bench.random_model import make  # numpy and gguf, for this section only

    folder = bench.folder / "fairness"
    folder.mkdir()
    model = make(folder / "random.gguf", parameters=_PARAMETERS, context=1024)
    with llama(bench, folder, model) as port, _pair(bench, f"http://127.0.0.1:{port}") as (url, keys):
        bench.log(f"fairness: a flood of {_FLOOD}, then {_EQUAL} equal callers")
        return asyncio.run(_measure(bench, url, keys))


@contextmanager
def _pair(bench: Bench, runtime_url: str) -> Iterator[tuple[str, Sequence[Headers]]]:
    """A pair whose node has one slot; where it answers, and a key for each caller."""
    folder = bench.folder / "fairness"
    pair = Pair.prepare(folder, bench.cpus, runtime_url)
    pair.environment["HEARTHLINK_NODE__SLOTS"] = "1"
    keys = [pair.key("bench", f"caller-{number}") for number in range(_EQUAL)]
    with pair.start("node") as node, pair.start("edge") as edge:
        node.wait_ready(f"http://127.0.0.1:{pair.node_port}/healthz")
        edge.wait_ready(pair.edge_url("/healthz"))
        yield pair.edge_url(CHAT), keys


async def _measure(bench: Bench, url: str, keys: Sequence[Headers]) -> list[Figure]:
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(trust_env=False, timeout=timeout, connector=connector) as client:
        guest, flooding = keys[:2]
        times = 5 if bench.quick else 15
        await _ask(client, url, guest)  # warms everything
        alone = [await _ask(client, url, guest) for _ in range(times)]
        generation = statistics.median(total for _, total in alone)
        behind = await _behind_a_flood(client, url, guest, flooding, times, generation)
        shares = await _shares(client, url, keys, answers=24 if bench.quick else 80)
    first = statistics.median(first for first, _ in alone)
    worst, usual = max(behind), statistics.median(behind)
    bench.log(f"  alone {first:.3f} s, one generation {generation:.3f} s, behind {[round(wait, 3) for wait in behind]}")
    bench.log(f"  tokens of each: {shares}")
    jain = sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
    return [
        Figure("time to first token alone, one slot", measured=f"{first * 1000:.0f} ms"),
        Figure("one generation", measured=f"{generation * 1000:.0f} ms"),
        Figure(
            f"time to first token behind a flood of {_FLOOD}, p50",
            "≤ alone + one generation",
            f"{usual * 1000:.0f} ms",
            met=usual <= first + generation,
        ),
        Figure(f"time to first token behind a flood of {_FLOOD}, worst of {times}", measured=f"{worst * 1000:.0f} ms"),
        Figure(f"Jain's index of {_EQUAL} equal callers", "≥ 0.95", f"{jain:.3f}", met=jain >= 0.95),
    ]


async def _behind_a_flood(
    client: aiohttp.ClientSession, url: str, guest: Headers, flooding: Headers, times: int, generation: float
) -> list[float]:
    """Seconds to the guest's first tokens, while another caller always has ``_FLOOD`` requests there. The guest asks at
    any moment of the flood's ``generation`` (seconds), not at its beginning."""
    chance = random.Random(1)

    async def flood() -> None:
        while True:
            await _ask(client, url, flooding)

    tasks = [asyncio.create_task(flood()) for _ in range(_FLOOD)]
    try:
        await asyncio.sleep(2.0)  # until they are all in the queue
        waits = []
        for _ in range(times):
            await asyncio.sleep(chance.uniform(0, generation))
            waits.append((await _ask(client, url, guest))[0])
        return waits
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _shares(client: aiohttp.ClientSession, url: str, keys: Sequence[Headers], answers: int) -> list[int]:
    """Tokens that each got of the first ``answers``, while all wanted more."""
    got = [0] * len(keys)
    ended = asyncio.Event()

    async def want(caller: int) -> None:
        while True:
            await _ask(client, url, keys[caller])
            got[caller] += _TOKENS
            if sum(got) >= answers * _TOKENS:
                ended.set()

    tasks = [asyncio.create_task(want(caller)) for caller, wants in enumerate(_EAGER) for _ in range(wants)]
    try:
        async with asyncio.timeout(120):
            await ended.wait()
    except TimeoutError:
        raise BenchError(f"{sum(got) // _TOKENS} of {answers} answers ended within 120 s") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return got


async def _ask(client: aiohttp.ClientSession, url: str, headers: Headers) -> tuple[float, float]:
    """Seconds to the first token and to the end of one answer. Raises BenchError when it is not whole."""
    messages = [{"role": "user", "content": "Say something."}]
    body = {"stream": True, "max_tokens": _TOKENS, "temperature": 0, "messages": messages}
    asked = time.perf_counter()
    first: float | None = None
    async with client.post(url, json=body, headers=headers) as answer:
        if answer.status != 200:
            raise BenchError(f"the pair answered {answer.status}: {(await answer.text())[:200]}")
        async for line in answer.content:
            if first is None and line.startswith(b"data: {") and b'"content":"' in line:
                delta = json.loads(line[6:])["choices"][0]["delta"]
                first = time.perf_counter() if delta.get("content") else None
            if line.startswith(b"data: [DONE]") and first is not None:
                return first - asked, time.perf_counter() - asked
    raise BenchError("an answer ended without a token or [DONE]")
