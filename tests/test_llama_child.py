"""The supervised child: how it is started, watched, explained and ended. The real one wherever it can be."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from node.runtimes import cpu
from node.runtimes.embedded import EmbeddedRuntime
from node.runtimes.llama_child import Order, batch_size, configure, prompt_batch
from node.runtimes.llama_process import StderrTail, explain_exit
from shared.contract.errors import ApiError
from tests.runtime_support import DEMO, REQUEST, ask, is_ready, is_unavailable, poll, read_all, running
from tests.waiting import HANGS

ROOT = Path(__file__).parents[1]


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def child_that(does: str) -> list[str]:
    """A command in place of the child's: Python that runs this text."""
    return [sys.executable, "-c", f"import json, os, signal, sys, time\nsys.stdin.readline()\n{does}"]


def child_whose_xllamacpp(does: str) -> list[str]:
    """The real child, with another module in the place of xllamacpp."""
    return [
        sys.executable,
        "-c",
        "import sys, importlib.abc, importlib.machinery\n"
        "class Loader(importlib.abc.Loader):\n"
        "    def create_module(self, spec): return None\n"
        f"    def exec_module(self, module):\n        {does}\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'xllamacpp': return importlib.machinery.ModuleSpec(name, Loader())\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from node.runtimes.llama_child import main\nmain()",
    ]


# -- life and death ---------------------------------------------------------------------------------------------------


async def test_a_killed_child_breaks_its_streams_and_is_started_again() -> None:
    async with running(runtime := EmbeddedRuntime(DEMO)) as until:
        await until(is_ready)
        first = runtime.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)  # so that the answer cannot be over before the kill
        with pytest.raises(ApiError) as broken:
            task = asyncio.create_task(read_all(runtime, ask("demo")))
            await asyncio.sleep(0.1)
            os.kill(first, signal.SIGKILL)
            await task
        assert broken.value.code in ("runtime_error", "node_unavailable")
        await until(is_unavailable)
        await until(is_ready)
        assert runtime.pid != first
        assert b"[DONE]" in await read_all(runtime, ask("demo"))


async def test_close_ends_the_child_even_with_a_stream_open() -> None:
    runtime = EmbeddedRuntime(DEMO)
    async with running(runtime) as until:
        await until(is_ready)
        pid = runtime.pid
        assert pid is not None and alive(pid)
        async with runtime.stream(ask("demo", max_tokens=900), REQUEST) as stream:
            await stream.read()
            async with asyncio.timeout(HANGS):
                await runtime.close()
    await poll(lambda: not alive(pid))


async def test_signals_to_the_group_do_not_end_the_child() -> None:
    """Ctrl-C and a stopping service reach it too, while the node still drains."""
    async with running(runtime := EmbeddedRuntime(DEMO)) as until:
        await until(is_ready)
        assert runtime.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(runtime.pid, number)
        assert b"[DONE]" in await read_all(runtime, ask("demo"))


PARENT = f"""
import asyncio, pathlib, sys
from node.runtimes.embedded import EmbeddedRuntime
async def main():
    runtime = EmbeddedRuntime(pathlib.Path({str(DEMO)!r}))
    ready = asyncio.Event()
    await runtime.start(lambda: runtime.status().state == sys.argv[1] and ready.set())
    await ready.wait()
    while runtime.pid is None:
        await asyncio.sleep(0.001)
    print(runtime.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["loading", "ready"])
async def test_the_child_ends_when_its_parent_is_killed(state: str) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, state, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(20):
            pid = int(await parent.stdout.readline())
        assert alive(pid)
    finally:
        parent.kill()
        await parent.wait()
    await poll(lambda: not alive(pid))


# -- what a person is told --------------------------------------------------------------------------------------------


async def test_no_model_file_and_then_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    async with running(runtime := EmbeddedRuntime(path)) as until:
        reason = (await until(is_unavailable)).reason
        assert str(path) in reason and "--model PATH" in reason
        path.write_bytes(DEMO.read_bytes())
        assert (await until(is_ready)).default_model == "my-model"
        assert b"[DONE]" in await read_all(runtime, ask("my-model"))


async def test_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("<!doctype html><title>Not found</title>")
    async with running(EmbeddedRuntime(path)) as until:
        assert "does not begin with the letters GGUF" in (await until(is_unavailable)).reason


async def test_no_model_set() -> None:
    async with running(EmbeddedRuntime(None)) as until:
        assert "--runtime URL" in (await until(is_unavailable)).reason


@pytest.mark.parametrize(
    ("bytes_left", "says"), [(2_000_000, "is no model: it is cut"), (-70_000, "not within the file bounds")]
)
async def test_a_gguf_whose_weights_are_cut(tmp_path: Path, bytes_left: int, says: str) -> None:
    """Seen in the header where whole tensors are missing, else by llama.cpp, whose first word on it is the reason."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(DEMO.read_bytes()[:bytes_left])
    async with running(EmbeddedRuntime(path)) as until:
        reason = (await until(is_unavailable)).reason
        assert says in reason and str(path) in reason


async def test_xllamacpp_not_installed() -> None:
    command = child_whose_xllamacpp("raise ModuleNotFoundError(\"No module named 'xllamacpp'\")")
    async with running(EmbeddedRuntime(DEMO, command=command)) as until:
        reason = (await until(is_unavailable)).reason
        assert "not installed" in reason and "--runtime URL" in reason


async def test_libgomp_missing() -> None:
    command = child_whose_xllamacpp(
        "raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')"
    )
    async with running(EmbeddedRuntime(DEMO, command=command)) as until:
        reason = (await until(is_unavailable)).reason
        assert "libgomp.so.1" in reason and "apt-get install libgomp1" in reason and "--runtime URL" in reason


async def test_an_illegal_instruction() -> None:
    command = child_that("os.kill(os.getpid(), signal.SIGILL)")
    async with running(EmbeddedRuntime(DEMO, command=command)) as until:
        reason = (await until(is_unavailable)).reason
        assert "processor lacks" in reason and "--runtime URL" in reason


def test_the_missing_cpu_feature_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse pni ssse3 sse4_1 sse4_2 avx f16c\n")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    assert cpu.missing_features(cpuinfo) == ("avx2", "fma", "bmi2")
    assert cpu.missing_features(tmp_path / "none") == ()
    monkeypatch.setattr(cpu, "missing_features", lambda: ("avx2",))
    assert "lacks avx2" in str(explain_exit(-signal.SIGILL, ""))


async def test_a_crash_while_loading_tells_the_last_error() -> None:
    command = child_that("sys.stderr.write('0.00.081.123 E ggml: out of memory\\n'); sys.stderr.flush(); os.abort()")
    async with running(EmbeddedRuntime(DEMO, command=command)) as until:
        reason = (await until(is_unavailable)).reason
        assert "SIGABRT" in reason and "ggml: out of memory" in reason


async def test_loading_tells_how_large_and_how_long() -> None:
    async with running(EmbeddedRuntime(DEMO, command=child_that("time.sleep(30)"))) as until:
        assert "4.8 MB" in (await until(lambda status: status.state == "loading")).reason
        await until(lambda status: "1 s so far" in status.reason)


async def test_a_child_that_talks_nonsense_is_tried_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    command = child_that(f"open({str(starts)!r}, 'a').write('x'); print('not json', flush=True); time.sleep(30)")
    async with running(EmbeddedRuntime(DEMO, command=command)) as until:
        await until(is_unavailable)
        await poll(lambda: len(starts.read_text()) >= 2)


def test_after_the_start_only_a_dying_process_is_quoted() -> None:
    tail = StderrTail()
    tail.feed(b"0.00.003.354 E gguf: invalid ma")
    tail.feed(b"gic\nsomething else\n")
    assert tail.last() == "gguf: invalid magic."
    tail.started()
    tail.feed(b"0.01.000.000 E srv send_error: task 5, error: the private prompt\n" + b"x" * 100_000)
    assert tail.last() == ""
    tail.feed(b"\n/src/ggml.c:99: GGML_ASSERT(n > 0) failed\n\x1b[31mthe private prompt\n")
    assert tail.last() == "/src/ggml.c:99: GGML_ASSERT(n > 0) failed."


# -- how llama.cpp is set up ------------------------------------------------------------------------------------------

ORDER = Order("/m.gguf", "m", slots=3, context=100, threads=2, gpu_layers=-1, parameters=10, key="secret")


@pytest.mark.parametrize(
    ("parameters", "threads", "slots", "gpu", "size"),
    [
        (2_400_000, 2, 4, False, 512),  # the demo model
        (20_000_000, 2, 4, False, 64),
        (100_000_000, 2, 4, False, 16),
        (100_000_000, 8, 4, False, 48),
        (8_000_000_000, 8, 4, False, 16),
        (8_000_000_000, 8, 40, False, 40),
        (8_000_000_000, 8, 4, True, 120),
        (70_000_000_000, 8, 4, True, 64),
        (0, 1, 4, False, 512),
    ],
)
def test_batch_size(parameters: int, threads: int, slots: int, gpu: bool, size: int) -> None:
    assert batch_size(parameters, threads, slots, gpu=gpu) == size


@pytest.mark.parametrize("slots", range(1, 8))
def test_what_is_pooled_is_read_at_once_and_divides_among_the_slots(slots: int) -> None:
    """512 tokens and three slots end llama.cpp b11549 in GGML_ASSERT(ggml_can_mul_mat), 513 do not."""
    size = prompt_batch(replace(ORDER, pooling="mean", context=512, slots=slots), gpu=False)
    assert size % slots == 0 and 512 <= size < 512 + slots


def _params(**more: object) -> SimpleNamespace:
    common = {
        "model": SimpleNamespace(path=""),
        "cpuparams": SimpleNamespace(n_threads=-1),
        "cpuparams_batch": SimpleNamespace(n_threads=-1),
        **dict.fromkeys(("port", "n_parallel", "n_ctx", "n_batch", "n_ubatch", "n_gpu_layers", "verbosity"), 0),
        "api_keys": [],
        "endpoint_slots": False,
    }
    return SimpleNamespace(**common, **more)


def test_settings_follow_xllamacpps_renamings() -> None:
    new = _params(hostnames=["0.0.0.0"], ui=True, model_alias=set(), cors_origins="*", cache_ram_mib=8192)
    configure(new, ORDER, 32)
    assert (new.hostnames, new.ui, new.model_alias, new.cors_origins) == (["127.0.0.1"], False, {"m"}, "")
    assert (new.n_ctx, new.n_batch, new.n_ubatch, new.api_keys) == (300, 32, 32, ["secret"])
    assert new.cache_ram_mib < 8192
    old = _params(hostname="0.0.0.0", webui=True, model_alias="")
    configure(old, ORDER, 32)
    assert (old.hostname, old.webui, old.model_alias) == ("127.0.0.1", False, "m")


def test_a_setting_that_safety_needs_must_be_there() -> None:
    with pytest.raises(AttributeError, match="hostnames"):
        configure(_params(), ORDER, 32)


def test_xllamacpp_as_installed_takes_all_of_them() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()  # type: ignore[attr-defined]
    configure(params, ORDER, 32)
    assert params.hostnames == ["127.0.0.1"] and params.api_keys == ["secret"] and params.cors_origins == ""
