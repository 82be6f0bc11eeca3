"""``python -m bench``: start everything, measure, print one table.

    python -m bench                        all sections, about ten minutes
    python -m bench --quick                less of everything, about three minutes
    python -m bench --only events,json     some sections
    python -m bench --litellm VENV         LiteLLM from that virtual environment beside it
    python -m bench --save                 append the table to bench/results.md

Everything runs on loopback, or in network namespaces that nothing leaves, and ends with the run. Linux, and nginx
and redis-server installed; the section `tunnel` needs root and Go besides.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from bench import fairness, model_speed, report, sections, targets, tunnel
from bench.processes import BenchError, Cpus
from bench.report import Figure
from bench.sections import Bench

SECTIONS: Mapping[str, Callable[[Bench], list[Figure]]] = MappingProxyType(
    {
        "events": sections.events,
        "json": sections.answers,
        "refused": sections.refusals,
        "first": sections.first_token,
        "crowd": sections.crowd,
        "start": sections.start,
        "speed": model_speed.speed,
        "fairness": fairness.fairness,
        "tunnel": tunnel.tunnel,
    }
)
_TARGETS = ("nginx", "hearthlink", "redis", "litellm")
# Sections that start what they measure themselves.
_ALONE = frozenset({"start", "speed", "fairness", "tunnel"})
# Sections that measure the pair on either store.
_WITH_REDIS = frozenset({"json", "refused", "first"})


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    cpus = Cpus.split() if options.pin else Cpus.shared()
    os.sched_setaffinity(0, cpus.load)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that what was started is ended
    try:
        figures, disturbed = _measure(options, cpus)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    about = report.machine(cpus, disturbed)
    print(f"\n{about}\n\n{report.table(figures)}")
    if options.save:
        report.save(figures, shlex.join(["python", "-m", "bench", *(arguments or sys.argv[1:])]), about)
    return int(any(figure.measured == "failed" for figure in figures))


def _measure(options: argparse.Namespace, cpus: Cpus) -> tuple[list[Figure], str]:
    """All sections, one that fails is a row that says so; and how far other programs disturbed them."""
    figures: list[Figure] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hearthlink-bench-")))
        port, pid = stack.enter_context(targets.upstream(folder, cpus))
        bench = Bench(folder, cpus, port, pid, options.quick, log=_log)
        bench.targets["direct"] = targets.direct(port)
        if not set(options.only) <= _ALONE:
            _start_targets(bench, stack, options)
        for name in options.only:
            try:
                figures += SECTIONS[name](bench)
            except BenchError as error:
                print(f"bench: {name}: {error}", file=sys.stderr)
                figures.append(Figure(f"section {name}", measured="failed", met=False))
    return figures, bench.disturbance()


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _start_targets(bench: Bench, stack: ExitStack, options: argparse.Namespace) -> None:
    port = bench.upstream_port
    if "nginx" in options.targets:
        bench.targets["nginx"] = stack.enter_context(targets.nginx_pair(bench.folder, bench.cpus, port))
    if "hearthlink" in options.targets:
        pair = targets.hearthlink_pair(bench.folder, bench.cpus, f"http://127.0.0.1:{port}")
        bench.targets["hearthlink"] = stack.enter_context(pair)
    if "redis" in options.targets and _WITH_REDIS & set(options.only):
        pair = targets.redis_pair(bench.folder / "redis", bench.cpus, f"http://127.0.0.1:{port}")
        bench.targets["redis"] = stack.enter_context(pair)
    if options.litellm is not None:
        proxy = targets.litellm(bench.folder, bench.cpus, port, options.litellm)
        bench.targets["litellm"] = stack.enter_context(proxy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="What Hearthlink costs, beside two nginx hops."
    )
    names = ",".join(SECTIONS)
    parser.add_argument("--only", type=_names(SECTIONS), default=list(SECTIONS), help=f"sections: {names}")
    parser.add_argument("--targets", type=_names(_TARGETS), default=list(_TARGETS), help="nginx,hearthlink,redis")
    parser.add_argument("--quick", action="store_true", help="measure less of everything")
    parser.add_argument("--litellm", type=Path, metavar="VENV", help="virtual environment with litellm[proxy]")
    parser.add_argument("--save", action="store_true", help="append to bench/results.md")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="let processes share all CPUs")
    return parser


def _names(known: Mapping[str, object] | Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; known: {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
