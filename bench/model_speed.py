"""Tokens per second of a real llama.cpp, straight and through the pair. The model's weights are random: its speed is
that of its size, its text is noise."""

from __future__ import annotations

import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.processes import BenchError, Process, free_port
from bench.report import Figure
from bench.sections import Bench
from bench.targets import CHAT, Target, hearthlink_pair

_PARAMETERS = 110_000_000  # design §7: at least 100 M
_CONTEXT = 2048
_TOKENS = 256
_LOAD_SECONDS = 60.0


def speed(bench: Bench) -> list[Figure]:
    """Decoding speed between the first and the last token. Rounds alternate between the two ways, so that both see the
    same machine. llama.cpp runs on the generator's CPUs, as it would on a GPU: not on those of edge and node."""
    from bench.random_model import make  # numpy and gguf, for this section only

    folder = bench.folder / "speed"
    folder.mkdir()
    bench.log(f"speed: making a model of {_PARAMETERS // 10**6} M random weights")
    model = make(folder / "random.gguf", parameters=_PARAMETERS, context=_CONTEXT)
    with (
        llama(bench, folder, model) as port,
        hearthlink_pair(folder, bench.cpus, f"http://127.0.0.1:{port}") as pair,
    ):
        straight = Target("direct", f"http://127.0.0.1:{port}{CHAT}")
        found: dict[str, list[float]] = {"direct": [], "hearthlink": []}
        for target in (straight, pair) * (2 * bench.rounds + 2):
            found[target.name].append(_tokens_per_second(target))
    ours, floor = (statistics.median(found[name][1:]) for name in ("hearthlink", "direct"))  # the first one warms up
    bench.log(f"  tokens/s: {found}")
    measured = f"{ours:.1f}/s, {ours / floor:.1%}"
    name = "tokens/s of a real llama.cpp through the pair"
    return [Figure(name, "≥ 99 % of direct", measured, direct=f"{floor:.1f}/s", met=ours >= 0.99 * floor)]


@contextmanager
def llama(bench: Bench, folder: Path, model: Path) -> Iterator[int]:
    port = free_port()
    threads = str(len(bench.cpus.load))
    command = [sys.executable, "-m", "bench.llama_server", str(model), str(port), str(_CONTEXT), threads]
    with Process("llama", command, folder, bench.cpus.load) as process:
        process.wait_ready(f"http://127.0.0.1:{port}/health", _LOAD_SECONDS)
        yield port


def _tokens_per_second(target: Target) -> float:
    """Raises BenchError when the answer is not whole."""
    messages = [{"role": "user", "content": "Say something."}]
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": _TOKENS, "temperature": 0}
    body = json.dumps({"model": "bench", "messages": messages, **options}).encode()
    headers = {"Content-Type": "application/json", **target.headers}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    stamps: list[float] = []
    ended = counted = False
    with opener.open(urllib.request.Request(target.url, body, headers), timeout=60) as answer:
        for line in answer:
            if line.startswith(b'data: {"') and b'"content":"' in line:
                stamps.append(time.perf_counter())
            counted = counted or (b'"completion_tokens":%d' % _TOKENS) in line
            ended = ended or line.startswith(b"data: [DONE]")
    if not (ended and counted):
        raise BenchError(f"{target.name} sent {len(stamps)} of {_TOKENS} tokens; ended with [DONE]: {ended}")
    return (_TOKENS - 1) / (stamps[-1] - stamps[0])
