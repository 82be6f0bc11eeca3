"""The process that holds llama.cpp: ``python -m node.runtimes.llama_child``, started and watched by ``embedded``.

    stdin   one line of JSON (``Order``), then nothing; its end means that the parent is gone, and so are we
    stdout  one line of JSON: {"address", "batch", "gpu"} when answers can be had, or {"failed", "message"}
    stderr  llama.cpp's own errors

A process of its own because loading holds the GIL for as long as it takes, and a failed assertion in llama.cpp ends the
process it happens in. Only the standard library and xllamacpp are imported here.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

# Longest time that reading one batch of a prompt should take. llama.cpp notices that a client has left when a batch is
# done, and by then often has begun the next one: a cancelled prompt goes on for two of these, 100 ms.
BATCH_SECONDS = 0.05
# Floating-point operations a second while reading prompts: measured for the generic wheel with batches of 32 tokens on
# one core of a 2024 server CPU (f16 weights; 34 G with batches of 512); and what a mid-range GPU does.
CPU_FLOPS_PER_THREAD = 27e9
GPU_FLOPS = 40e12
# Below the minimum prompts are read noticeably slower and cancelled hardly earlier; above the maximum, llama.cpp's own
# default, nothing gets faster.
MIN_BATCH_CPU, MIN_BATCH_GPU, MAX_BATCH = 16, 64, 512
_TILE = 8  # matrix kernels work on this many columns at once
PROMPT_CACHE_MIB = 256  # of RAM for prompts of conversations that left their slot; llama.cpp's default is 8 GiB
ERRORS_ONLY = 1  # llama.cpp's verbosity: its warnings and infos quote requests
_CONTEXT_STEP = 256  # llama.cpp rounds each slot's context up to this
_POOLING = {"mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama_pooling_type
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Order:
    """What to load, from stdin. ``context`` is in tokens per slot; ``parameters`` those that one token passes through;
    ``key`` is the bearer token that the server will ask for; ``gpu_layers`` -1 means all that fit. ``pooling`` ("mean",
    "cls", "last", "rank") is for a model that makes embeddings or ranks; ``projector`` a file that makes it see images;
    ``rope_base`` and ``rope_scale`` 0 leave positions as the model has them."""

    model: str
    alias: str
    slots: int
    context: int
    threads: int
    gpu_layers: int
    parameters: int
    key: str
    pooling: str = ""
    projector: str = ""
    rope_base: float = 0.0
    rope_scale: float = 0.0


def batch_size(parameters: int, threads: int, slots: int, *, gpu: bool) -> int:
    """Prompt tokens that are read at once: as many as take ``BATCH_SECONDS`` at two operations per weight and token,
    within the bounds, and at least one per slot. It is both n_batch and n_ubatch: llama.cpp looks for cancelled
    requests once per n_batch, however small the pieces are that it computes."""
    flops = GPU_FLOPS if gpu else CPU_FLOPS_PER_THREAD * threads
    fitting = int(BATCH_SECONDS * flops / (2 * max(parameters, 1))) // _TILE * _TILE
    return max(slots, min(MAX_BATCH, max(MIN_BATCH_GPU if gpu else MIN_BATCH_CPU, fitting)))


def prompt_batch(order: Order, *, gpu: bool) -> int:
    """``batch_size``, but a whole context where one vector is made of all tokens, which must be read at once then. Some
    models read an image like that, too, and 256 tokens of it are usual: less ends the process."""
    if order.pooling:
        steps = -(-order.context // _CONTEXT_STEP)
        # llama.cpp b11549 ends the process where mean pooling does not divide among the slots.
        return -(-steps * _CONTEXT_STEP // order.slots) * order.slots
    if order.projector:
        return max(order.slots, MAX_BATCH)
    return batch_size(order.parameters, order.threads, order.slots, gpu=gpu)


def assign(target: Any, names: Iterable[str], value: Any) -> bool:
    """Set the first attribute of ``names`` that ``target`` has, in the shape it has now: xllamacpp follows llama.cpp,
    which renames settings and makes lists of them. False when there is none."""
    for name in names:
        if hasattr(target, name):
            shape = type(getattr(target, name))
            setattr(target, name, shape([value]) if shape in (list, set) else value)
            return True
    return False


def configure(params: Any, order: Order, batch: int) -> None:
    """Fill ``xllamacpp.CommonParams``. Raises AttributeError when one that safety or the contract needs is gone."""
    params.model.path = order.model
    needed: list[tuple[tuple[str, ...], Any]] = [
        (("hostnames", "hostname"), "127.0.0.1"),
        (("port",), 0),
        (("api_keys",), order.key),
        (("n_parallel",), order.slots),
        (("n_ctx",), order.slots * order.context),
        (("n_batch",), batch),
        (("n_ubatch",), batch),
        (("n_gpu_layers",), order.gpu_layers),
        (("endpoint_slots",), True),
        (("verbosity",), ERRORS_ONLY),
    ]
    wanted: list[tuple[tuple[str, ...], Any]] = [
        (("model_alias",), order.alias),
        (("ui", "webui"), False),
        (("cors_origins",), ""),
        (("cors_credentials",), False),
        (("cache_ram_mib",), PROMPT_CACHE_MIB),
        (("kv_unified",), False),
        (("endpoint_props",), False),
        (("endpoint_metrics",), False),
    ]
    if order.pooling:
        needed.append((("embedding",), True))
        needed.append((("pooling_type",), type(params.pooling_type)(_POOLING[order.pooling])))
    if order.rope_base:
        needed.append((("rope_freq_base",), order.rope_base))
    if order.rope_scale:
        needed.append((("rope_freq_scale",), order.rope_scale))
    for names, value in needed:
        if not assign(params, names, value):
            raise AttributeError(f"xllamacpp.CommonParams has no {names[0]}")
    for names, value in wanted:
        assign(params, names, value)
    if order.projector:
        params.mmproj.path = order.projector
    params.cpuparams.n_threads = order.threads
    params.cpuparams_batch.n_threads = order.threads


def main() -> None:
    report = _take_stdout()
    _outlive_signals()
    _die_with_parent()
    order = Order(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError as error:
        missing = "package" if isinstance(error, ModuleNotFoundError) else "library"
        _fail(report, missing, str(error))
    gpu = order.gpu_layers != 0 and _has_gpu(xllamacpp)
    batch = prompt_batch(order, gpu=gpu)
    try:
        params = xllamacpp.CommonParams()
        configure(params, order, batch)
        server = xllamacpp.Server(params)
    except Exception as error:  # llama.cpp says why on stderr
        _fail(report, "load", f"{type(error).__name__}: {error}")
    _outlive_signals()  # some builds put their own handlers in place
    _say(report, {"address": server.listening_address, "batch": batch, "gpu": gpu})
    threading.Event().wait()


def _take_stdout() -> int:
    """Keep stdout for the report; whatever llama.cpp prints there goes to stderr."""
    report = os.dup(1)
    os.dup2(2, 1)
    return report


def _outlive_signals() -> None:
    """Ctrl-C and a stopping service signal every process of the group, but the node drains first and then closes our
    stdin: running answers must not end before."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _die_with_parent() -> None:
    """While a model loads nobody reads stdin, so let Linux end us with the parent. Elsewhere loading goes on, and the
    end of stdin is seen after it."""
    if sys.platform == "linux":
        parent = os.getppid()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def _exit_at_end_of_input() -> NoReturn:
    while os.read(0, 4096):
        pass
    os._exit(0)  # an orderly end waits up to 30 s for open streams, and nobody is left to read them


def _has_gpu(xllamacpp: Any) -> bool:
    try:
        return any("GPU" in device["type"].name.rpartition("_")[2] for device in xllamacpp.get_device_info())
    except Exception:  # an older or newer binding: llama.cpp finds its devices by itself
        return False


def _say(report: int, message: dict[str, Any]) -> None:
    os.write(report, json.dumps(message).encode() + b"\n")


def _fail(report: int, what: str, message: str) -> NoReturn:
    _say(report, {"failed": what, "message": message})
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
