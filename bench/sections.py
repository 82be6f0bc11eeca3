"""The measurements. Each section takes a ``Bench`` and gives its figures; limits are design §7."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from bench import procfs
from bench.client import Wave
from bench.processes import Cpus, Result, run_load
from bench.report import Figure
from bench.targets import Pair, Target

# The pair as it is found among the targets, by the store that it is on.
_STORES: Mapping[str, str] = MappingProxyType({"hearthlink": "SQLite", "redis": "Redis"})
_PROMPT = "What should I order at a small Thai place tonight? I like things that are hot."


@dataclass
class Bench:
    """What the sections need. ``targets`` by name: direct always, the others when they run here. ``quick`` measures
    less of everything: good for a look, not for a record."""

    folder: Path
    cpus: Cpus
    upstream_port: int
    upstream_pid: int
    quick: bool
    targets: dict[str, Target] = field(default_factory=dict)
    log: Callable[[str], None] = print
    runs: list[Result] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3

    def run(
        self, target: Target, waves: list[Wave], seconds: float = 60.0, headers: dict[str, str] | None = None
    ) -> Result:
        used = target.headers if headers is None else headers
        helpers = [self.upstream_pid, *target.helpers]
        result = run_load(target.url, used, waves, target.pids(), self.cpus, seconds, helpers, target.place)
        self.runs.append(result)
        return result

    def disturbance(self) -> str:
        """How many CPUs other programs took meanwhile: on average, and in the worst run of a second or more."""
        if not self.runs:
            return "not known"
        average = sum(run.others_busy * run.elapsed for run in self.runs) / sum(run.elapsed for run in self.runs)
        worst = max((run.others_busy for run in self.runs if run.elapsed >= 1), default=0.0)
        return f"{average:.2f} CPUs on average, {worst:.2f} at worst"

    def compare(self, names: Sequence[str], wave: Wave, warm: Wave) -> dict[str, list[Result]]:
        """Run ``wave`` on each target in turn, ``rounds`` times over, so that all share what the machine does. LiteLLM
        costs more than ten times as much: it gets a tenth of the requests, once."""
        found: dict[str, list[Result]] = {}
        for name in names:
            if name in self.targets:
                self.run(self.targets[name], [warm]).checked()
        for turn in range(self.rounds):
            for name in names:
                if name not in self.targets or (name == "litellm" and turn):
                    continue
                small = replace(wave, requests=max(wave.workers, wave.requests // 10)) if name == "litellm" else wave
                result = self.run(self.targets[name], [small]).checked()
                found.setdefault(name, []).append(result)
                self.log(f"  {name}: {_brief(result)}")
        return found


def _brief(result: Result) -> str:
    wave = result.waves[0]
    cpu = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.cpu.items())
    return (
        f"{wave['good']} answers, {wave['events']} events in {result.elapsed:.1f} s; CPU {cpu or '-'}; "
        f"lag p99 {wave['lag_p99']:.1f} ms; generator {result.generator_busy:.0%}, others {result.others_busy:.0%} busy"
    )


def body(events: int, interval_ms: int, stream: bool = True) -> str:
    """A chat completion of ``events`` events that the upstream sends ``interval_ms`` apart."""
    messages = [{"role": "user", "content": _PROMPT}]
    fields = {"model": "bench", "stream": stream, "max_tokens": events, "seed": interval_ms, "messages": messages}
    return json.dumps(fields)


def each(results: Sequence[Result], unit: Callable[[Result], int]) -> tuple[float, str]:
    """Median µs of CPU per unit over the rounds, and how it splits over the processes."""
    middle = sorted(results, key=lambda result: sum(result.cpu.values()) / unit(result))[len(results) // 2]
    parts = [seconds * 1e6 / unit(middle) for seconds in middle.cpu.values()]
    return sum(parts), " + ".join(f"{part:.0f}" for part in parts)


def _per(results: Mapping[str, Sequence[Result]], unit: Callable[[Result], int]) -> dict[str, tuple[float, str]]:
    return {name: each(found, unit) for name, found in results.items() if found[0].cpu}


def _cost(
    name: str, promised: str, costs: Mapping[str, tuple[float, str]], met: Callable[[float, float], bool]
) -> Figure:
    """A row of µs; ``met(ours, nginx's)``."""

    def text(target: str) -> str:
        return f"{costs[target][0]:.1f} µs" if target in costs else ""

    ours, theirs = costs.get("hearthlink", (0.0, ""))[0], costs.get("nginx", (0.0, ""))[0]
    parts = costs["hearthlink"][1] if ours else ""
    ratio = f"{ours / theirs:.2f}x" if ours and theirs else ""
    reached = met(ours, theirs) if ours else None
    others = {"nginx": text("nginx"), "ratio": ratio, "litellm": text("litellm")}
    return Figure(name, promised, text("hearthlink"), parts, met=reached, **others)


def _times(name: str, promised: str, values: Mapping[str, float], limit: float | None = None) -> Figure:
    def text(target: str) -> str:
        return f"{values[target]:.1f} ms" if target in values else ""

    ours = values.get("hearthlink")
    met = None if limit is None or ours is None else ours <= limit
    columns = {"nginx": text("nginx"), "litellm": text("litellm"), "direct": text("direct")}
    return Figure(name, promised, text("hearthlink"), met=met, **columns)


def _lag(results: Mapping[str, Sequence[Result]]) -> dict[str, float]:
    return {name: statistics.median(result.waves[0]["lag_p99"] for result in found) for name, found in results.items()}


def events(bench: Bench) -> list[Figure]:
    """CPU per streamed event: 100 events at 50/s, 60 and 300 streams at a time, starts spread over one interval."""
    figures: list[Figure] = []
    everyone = ("direct", "nginx", "hearthlink", "litellm")
    for streams, names in ((60, everyone), (300, everyone[:3])):
        turns = 1 if bench.quick else 3  # of 2 s
        wave = Wave(body(100, 20), streams * turns, workers=streams, stagger=0.02, events=100)
        warm = Wave(body(5, 20), streams, workers=streams, stagger=0.2, events=5)
        bench.log(f"events: {streams} streams at 50/s")
        found = bench.compare(names, wave, warm)
        costs = _per(found, lambda result: result.waves[0]["events"])
        title = f"CPU per streamed event, {streams} streams at 50/s"
        figures.append(_cost(title, "≤ 2x nginx", costs, lambda ours, nginx: not nginx or ours <= 2 * nginx))
        figures.append(_times(f"lag of an event, p99, {streams} streams", "", _lag(found)))
    return figures


def by_store(
    title: str, promised: str, found: Mapping[str, Sequence[Result]], unit: Callable[[Result], int], limit: float
) -> list[Figure]:
    """A row of µs for the pair on each store, and one for what Redis uses itself, which no budget of ours counts."""
    costs = _per(found, unit)
    figures: list[Figure] = []
    for name, store in _STORES.items():
        if name in found:
            pair = each([_only(result, "edge", "node") for result in found[name]], unit)
            rows = {**costs, "hearthlink": pair}
            figures.append(_cost(f"{title}, {store}", promised, rows, lambda ours, _: ours <= limit))
    if "redis" in found:
        itself, _ = each([_only(result, "redis") for result in found["redis"]], unit)
        figures.append(Figure(f"{title}, Redis itself", measured=f"{itself:.1f} µs"))
    return figures


def _only(result: Result, *names: str) -> Result:
    return replace(result, cpu={name: result.cpu[name] for name in names})


def answers(bench: Bench) -> list[Figure]:
    """CPU per JSON answer of 10 events, 20 clients at a time."""
    bench.log("json: answers of 10 events")
    total = 1000 if bench.quick else 3000
    wave = Wave(body(10, 0, stream=False), total, workers=20)
    found = bench.compare(("nginx", *_STORES, "litellm"), wave, replace(wave, requests=200))
    return by_store("CPU per JSON answer of 10 events", "≤ 450 µs", found, _good, 450)


def refusals(bench: Bench) -> list[Figure]:
    """CPU per refused request: an unknown key, a page's token without its Origin, and a known key over its rate."""
    figures: list[Figure] = []
    pairs = [bench.targets[name] for name in _STORES if name in bench.targets]
    for status in (401, 403, 429):
        bench.log(f"refused: {status}")
        wave = Wave(body(10, 0), 1000 if bench.quick else 4000, workers=20, status=status)
        found: dict[str, list[Result]] = {}
        for pair in pairs:
            bench.run(pair, [replace(wave, requests=100)], headers=pair.refused[status])
        for _ in range(bench.rounds):
            for pair in pairs:
                result = bench.run(pair, [wave], headers=pair.refused[status])
                if result.waves[0]["bad"] > wave.requests // 100:  # a rate lets one through now and then
                    result.checked()
                bench.log(f"  {pair.name}: {_brief(result)}")
                found.setdefault(pair.name, []).append(result)
        figures += by_store(f"CPU per request refused with {status}", "≤ 150 µs", found, _good, 150)
    return figures


def _good(result: Result) -> int:
    return result.waves[0]["good"]


def first_token(bench: Bench) -> list[Figure]:
    """Time to first token beyond the upstream's own: one client alone; then 60 streams running, 5 arrivals a second."""
    idle: dict[str, float] = {}
    busy: dict[str, float] = {}
    alone = Wave(body(2, 10), 50 if bench.quick else 200, workers=1, events=2)
    arrivals = Wave(body(10, 20), 50 if bench.quick else 200, rate=5, events=10)
    running = Wave(body(4000, 20), 60, workers=60, stagger=0.02, events=4000)
    for name in ("direct", "nginx", *_STORES):
        if (target := bench.targets.get(name)) is None:
            continue
        bench.log(f"first token: {name}")
        bench.run(target, [replace(alone, requests=20)]).checked()
        idle[name] = bench.run(target, [alone]).checked().waves[0]["first_p50"]
        busy[name] = bench.run(target, [arrivals, running], 90).checked().waves[0]["first_p99"]
        bench.log(f"  p50 alone {idle[name]:.2f} ms, p99 with 60 running {busy[name]:.2f} ms")
    floor = idle["direct"]
    added = [
        {name: value - floor if name != "direct" else value for name, value in found.items()} for found in (idle, busy)
    ]
    titles = ("p50, idle", 3), ("p99, 60 running, 5 arrivals/s", 10)
    return [
        _times(
            f"added time to first token, {title}, {store}", f"≤ {limit} ms", {**found, "hearthlink": found[name]}, limit
        )
        for (title, limit), found in zip(titles, added, strict=True)
        for name, store in _STORES.items()
        if name in found
    ]


def crowd(bench: Bench) -> list[Figure]:
    """2,000 streams at once, 2 events a second each: errors, memory per stream, lag."""
    streams, opening = (500, 100.0) if bench.quick else (2000, 200.0)
    seconds_open = streams / opening
    length = int(2 * (seconds_open + 10))  # all are open for 10 s
    wave = Wave(body(length, 500), streams, rate=opening, events=length)
    memory, lag, cost, bad = {}, {}, {}, {}
    for name in ("direct", "nginx", "hearthlink"):
        if (target := bench.targets.get(name)) is None:
            continue
        bench.log(f"crowd: {streams} streams on {name}")
        bench.run(target, [Wave(body(5, 20), 20, workers=20, events=5)]).checked()
        before = {role: sum(map(procfs.rss_bytes, pids)) for role, pids in target.pids().items()}
        result = bench.run(target, [wave], 120)
        bench.log(f"  {name}: {_brief(result)}; {result.waves[0]['bad']} failed {result.waves[0]['error']}")
        lag[name], bad[name] = result.waves[0]["lag_p99"], result.waves[0]["bad"]
        memory[name] = {role: (result.rss[role] - before[role]) / 1024 / streams for role in before}
        if result.cpu:
            cost[name] = each([result], lambda seen: seen.waves[0]["events"])
    return _crowd_figures(f"{streams} streams at 2/s", memory, lag, cost, bad)


def _crowd_figures(
    title: str,
    memory: Mapping[str, Mapping[str, float]],
    lag: Mapping[str, float],
    cost: Mapping[str, tuple[float, str]],
    bad: Mapping[str, int],
) -> list[Figure]:
    ours = memory.get("hearthlink")
    parts = " + ".join(f"{ours[role]:.0f}" for role in ("edge", "node")) if ours else ""
    nginx = f"{memory['nginx']['edge']:.0f} KiB" if "nginx" in memory else ""
    failed = {name: str(count) for name, count in bad.items()}
    errors = Figure(
        f"failed streams, {title}",
        "0",
        failed.get("hearthlink", ""),
        nginx=failed.get("nginx", ""),
        direct=failed.get("direct", ""),
        met=bad["hearthlink"] == 0 if "hearthlink" in bad else None,
    )
    size = Figure(
        f"edge memory per stream, {title}",
        "≤ 60 KiB",
        f"{ours['edge']:.0f} KiB" if ours else "",
        parts,
        nginx,
        met=ours["edge"] <= 60 if ours else None,
    )
    return [
        errors,
        size,
        _times(f"lag p99, {title}", "≤ 100 ms", lag, 100),
        _cost(f"CPU per event, {title}", "", cost, lambda _, __: True),
    ]


def start(bench: Bench) -> list[Figure]:
    """From starting the edge's process until /readyz is 200, and its memory two seconds later; no node is there."""
    seconds: list[float] = []
    size = 0.0
    folder = bench.folder / "start"
    folder.mkdir()
    for turn in range(3 if bench.quick else 6):
        pair = Pair.prepare(folder, bench.cpus, f"http://127.0.0.1:{bench.upstream_port}")
        with pair.start("edge") as edge:
            taken = edge.wait_ready(pair.edge_url("/readyz"))
            time.sleep(2)
            size = max(size, procfs.rss_bytes(edge.pid) / 1e6)
        if turn:  # the first start may compile
            seconds.append(taken)
    middle = statistics.median(seconds)
    bench.log(f"start: {', '.join(f'{one:.2f}' for one in seconds)} s; {size:.0f} MB")
    return [
        Figure("edge start until /readyz", "≤ 1.5 s", f"{middle:.2f} s", met=middle <= 1.5),
        Figure("edge memory, idle", "≤ 90 MB", f"{size:.0f} MB", met=size <= 90),
    ]
