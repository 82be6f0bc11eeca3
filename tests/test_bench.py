"""The bench's own parts tell the truth: what the generator counts is what the upstream sent."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import procfs, tunnel
from bench.__main__ import main
from bench.client import Wave
from bench.processes import BenchError, Cpus, Result, run_load
from bench.report import Figure, table
from bench.sections import Bench, by_store
from bench.targets import Target, direct, upstream
from tests.fake_runtime import CHAT, FakeRuntime
from tests.tailnet import requirements

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench reads /proc")


def body(events: int, interval_ms: int, stream: bool = True) -> str:
    return json.dumps({"model": "bench", "stream": stream, "max_tokens": events, "seed": interval_ms, "messages": []})


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with upstream(tmp_path_factory.mktemp("bench"), Cpus.shared()) as (port, _):
        yield direct(port)


def test_counts_paced_events_and_their_lag(target: Target) -> None:
    wave = Wave(body(10, 10), 6, workers=3, events=10)
    result = run_load(target.url, {}, [wave], {"self": [os.getpid()]}, Cpus.shared()).checked()
    seen = result.waves[0]
    assert (seen["good"], seen["bad"], seen["events"]) == (6, 0, 60)
    assert result.elapsed > 2 * 9 * 0.010  # two rounds of nine intervals
    assert 0 <= seen["lag_p50"] <= seen["lag_p99"]
    assert result.rss["self"] > 1e6


def test_waves_run_side_by_side_and_the_first_one_ends_them(target: Target) -> None:
    short = Wave(body(2, 10), 5, rate=50, events=2)
    long = Wave(body(10_000, 10), 3, workers=3, events=10_000)
    result = run_load(target.url, {}, [short, long], {}, Cpus.shared()).checked()
    assert result.waves[0]["good"] == 5
    assert result.waves[1]["events"] > 0
    assert result.elapsed < 10


def test_json_answers_and_statuses_are_checked(target: Target) -> None:
    run_load(target.url, {}, [Wave(body(3, 0, stream=False), 10, workers=2)], {}, Cpus.shared()).checked()
    wrong = run_load(target.url, {}, [Wave(body(3, 0, stream=False), 10, workers=2, status=401)], {}, Cpus.shared())
    assert wrong.waves[0]["bad"] == 10
    with pytest.raises(BenchError, match="10 of 10 requests failed: 200"):
        wrong.checked()


@pytest.mark.parametrize(
    "script", ["eof_without_done", "reset_mid_stream", "error_data", "vllm_busy", "cut_mid_stream"]
)
async def test_a_broken_answer_is_never_a_good_one(script: str) -> None:
    async with FakeRuntime(script) as runtime:
        wave = Wave(body(2, 0), 2, workers=1, events=2)
        result = await asyncio.to_thread(run_load, runtime.url + CHAT, {}, [wave], {}, Cpus.shared())
        assert (result.waves[0]["good"], result.waves[0]["bad"]) == (0, 2)
        assert result.waves[0]["error"]


def test_cpu_time_of_a_process_is_its_own() -> None:
    before, start = procfs.cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - start < 0.1:
        pass
    assert procfs.cpu_seconds(os.getpid()) - before == pytest.approx(time.process_time() - start, abs=0.03)
    assert procfs.family(os.getpid())[0] == os.getpid()


def test_what_redis_uses_itself_is_shown_and_not_taken_for_the_pairs() -> None:
    cpu = {"edge": 0.001, "node": 0.002}
    wave = {"good": 10}

    def result(**more: float) -> Result:
        return Result([wave], {**cpu, **more}, {}, 1.0, 0.0, 0.0, False)

    found = {"nginx": [result()], "hearthlink": [result()], "redis": [result(redis=0.009)]}
    rows = by_store("CPU per answer", "≤ 300 µs", found, lambda seen: seen.waves[0]["good"], 300)
    assert [(row.name, row.measured, row.parts, row.met) for row in rows] == [
        ("CPU per answer, SQLite", "300.0 µs", "100 + 200", True),
        ("CPU per answer, Redis", "300.0 µs", "100 + 200", True),
        ("CPU per answer, Redis itself", "900.0 µs", "", None),
    ]


def test_the_table_leaves_out_what_nobody_measured() -> None:
    text = table([Figure("edge start", "≤ 1.5 s", "0.9 s", met=True), Figure("lag", measured="3 ms")])
    header, rule, first, second = text.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["figure", "promised", "Hearthlink", "met"]
    assert set(rule) == {"|", "-"}
    assert "yes" in first
    assert second.rstrip(" |").endswith("-")


def test_unknown_sections_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "everything"])
    assert "known: events, json" in capsys.readouterr().err


def test_results_have_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import report

    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.md")
    for _ in range(2):
        report.save([Figure("lag", measured="3 ms")], "python -m bench", report.machine(Cpus.shared(), "nothing"))
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Results of `python -m bench`")
    assert text.count("\n## 2") == 2
    assert "| lag " in text


def test_the_tunnel_is_left_out_with_one_line_where_no_tailnet_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "missing", lambda: "A tailnet of its own is built with Go.")
    said: list[str] = []
    assert tunnel.tunnel(Bench(tmp_path, Cpus.shared(), 1, 1, quick=True, log=said.append)) == []
    assert said == ["tunnel: left out. A tailnet of its own is built with Go."]


def test_what_tailscaled_costs_is_told_from_what_the_pair_costs() -> None:
    def run(**cpu: float) -> Result:
        return Result([{"events": 1000}], cpu, {}, 1.0, 0.1, 0.0, False)

    through = {"tailscaled of the edge": 0.004, "tailscaled of the node": 0.006}
    runs = {"tunnel": [run(edge=0.03, node=0.04, **through)], "loopback": [run(edge=0.02, node=0.03)]}
    times = {"p50, idle": {"direct": 0.5, "loopback": 1.5, "tunnel": 3.0}}
    first, pair, daemons = tunnel._figures(times, runs)
    assert (first.measured, first.loopback, first.direct) == ("2.5 ms", "1.0 ms", "0.5 ms")
    assert (pair.measured, pair.parts, pair.loopback) == ("70.0 µs", "30 + 40", "50.0 µs")
    assert (daemons.measured, daemons.parts) == ("10.0 µs", "4 + 6")
