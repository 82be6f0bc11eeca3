"""What the tailnet's tunnel costs: the pair on two machines of a tailnet, beside the same pair on loopback.

The machines are network namespaces with a real tailscaled each, made by the tests' harness; the way between them is
direct, and as fast as memory. So this is what WireGuard in tailscaled costs, and no network. Linux, root and Go.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.client import Wave
from bench.processes import BenchError, Place, Result
from bench.report import Figure
from bench.sections import Bench, body, each
from bench.targets import CHAT, Pair, Target, hearthlink_pair, upstream

if TYPE_CHECKING:
    from tests.tailnet.member import Member
    from tests.tailnet.namespaces import Namespace

_STREAMS = 60
_ANSWER_SECONDS = 2.0
_MEETINGS = 20


def tunnel(bench: Bench) -> list[Figure]:
    """Time to first token, alone and with 60 streams running, and CPU per event. No figures where no tailnet can be
    made. Raises BenchError when one can and something of it fails."""
    from tests.tailnet.requirements import missing  # the harness, of a checkout with its development tools, like Go

    if why := missing():
        bench.log(f"tunnel: left out. {why}")
        return []
    folder = bench.folder / "tunnel"
    (folder / "loopback").mkdir(parents=True)
    runtime = f"http://127.0.0.1:{bench.upstream_port}"
    try:
        with (
            _two_machines(bench) as (edge, node),
            tunnelled_pair(bench, folder, edge, node) as through,
            hearthlink_pair(folder / "loopback", bench.cpus, runtime) as loopback,
        ):
            targets = {"direct": bench.targets["direct"], "loopback": loopback, "tunnel": through}
            return _figures(*_measure(replace(bench, targets=targets)))
    except (AssertionError, RuntimeError) as error:  # the harness says so when something does not start
        raise BenchError(f"no tailnet could be made: {error}") from error


@contextmanager
def _two_machines(bench: Bench) -> Iterator[tuple[Member, Member]]:
    """Edge and node as members of a tailnet with a direct path, their tailscaleds on the measured CPUs. Its event loop
    runs while they begin and end only: what is measured meanwhile is not its business."""
    from tests.tailnet.tailnet import running_tailnet

    async def begin() -> tuple[Member, Member]:
        tailnet = await stack.enter_async_context(running_tailnet())
        edge = await tailnet.member("edge", tags=["tag:edge"])
        node = await tailnet.member("gpu", tags=["tag:gpu"])
        await _meet(edge, await node.address())
        return edge, node

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        bench.log("tunnel: making a tailnet; the first time its programs are built, which takes minutes")
        os.sched_setaffinity(0, bench.cpus.measured)
        try:
            members = runner.run(begin())
            os.sched_setaffinity(0, bench.cpus.load)
            yield members
        finally:
            os.sched_setaffinity(0, bench.cpus.load)
            runner.run(stack.aclose())


async def _meet(edge: Member, address: str) -> None:
    """Wait until ``edge`` has a direct path to ``address``. A member that has just joined is not known at once."""
    for more in reversed(range(_MEETINGS)):
        try:
            await edge.tailscale("ping", "--until-direct", address)
            return
        except AssertionError:
            if not more:
                raise
            await asyncio.sleep(0.2)


@contextmanager
def tunnelled_pair(bench: Bench, folder: Path, edge: Member, node: Member) -> Iterator[Target]:
    """As ``targets.hearthlink_pair``, each side on its machine: the upstream beside the node, the generator beside the
    edge."""
    at_edge, at_node = _place(edge.machine), _place(node.machine)
    link = {"HEARTHLINK_EDGE__UPSTREAMS__DEFAULT__NODE": node.name, "HEARTHLINK_NODE__LISTEN": "tailnet"}
    with upstream(folder, bench.cpus, at_node) as (port, upstream_pid):
        pair = Pair.prepare(folder, bench.cpus, f"http://127.0.0.1:{port}", link)
        key = pair.key("bench")
        with (
            pair.start("node", at_node, HEARTHLINK_TAILSCALE__SOCKET=str(node.socket)) as node_process,
            pair.start("edge", at_edge, HEARTHLINK_TAILSCALE__SOCKET=str(edge.socket)) as edge_process,
        ):
            edge_process.wait_ready(pair.edge_url("/healthz"))
            processes = {"edge": edge_process, "node": node_process}
            daemons = {"tailscaled of the edge": edge.pid, "tailscaled of the node": node.pid}
            url = pair.edge_url(CHAT)
            yield Target("tunnel", url, key, processes, place=at_edge, daemons=daemons, helpers=(upstream_pid,))


def _place(machine: Namespace) -> Place:
    def connect(address: tuple[str, int]) -> socket.socket:
        made = machine.socket()
        try:
            made.settimeout(_ANSWER_SECONDS)
            made.connect(address)
        except OSError:
            made.close()
            raise
        return made

    return Place(machine.inside(), connect)


Times = Mapping[str, Mapping[str, float]]


def _measure(bench: Bench) -> tuple[Times, Mapping[str, Sequence[Result]]]:
    """Milliseconds to the first token by what was asked and target, and the runs of paced streams."""
    turns = 1 if bench.quick else 3  # of 2 s
    paced = Wave(body(100, 20), _STREAMS * turns, workers=_STREAMS, stagger=0.02, events=100)
    warm = replace(paced, body=body(5, 20), requests=_STREAMS, events=5)
    bench.log(f"tunnel: {_STREAMS} streams at 50/s")
    runs = bench.compare(("loopback", "tunnel"), paced, warm)
    times: dict[str, dict[str, float]] = {}
    for name, target in bench.targets.items():
        bench.log(f"tunnel: first token, {name}")
        bench.run(target, [Wave(body(2, 10), 20, workers=1, events=2)]).checked()
        for what, (wave, *meanwhile) in _arrivals(bench.quick).items():
            seen = bench.run(target, [wave, *meanwhile], 90).checked().waves[0]
            for share in ("p50", "p99"):
                times.setdefault(f"{share}, {what}", {})[name] = seen[f"first_{share}"]
            bench.log(f"  {what}: p50 {seen['first_p50']:.2f} ms, p99 {seen['first_p99']:.2f} ms")
    return times, runs


def _arrivals(quick: bool) -> dict[str, list[Wave]]:
    """Requests whose time to first token is taken, and what runs meanwhile."""
    requests = 50 if quick else 200
    alone = Wave(body(2, 10), requests, workers=1, events=2)
    arriving = Wave(body(10, 20), requests, rate=5, events=10)
    running = Wave(body(4000, 20), _STREAMS, workers=_STREAMS, stagger=0.02, events=4000)
    return {"idle": [alone], f"{_STREAMS} running, 5 arrivals/s": [arriving, running]}


def _figures(times: Times, runs: Mapping[str, Sequence[Result]]) -> list[Figure]:
    figures = [
        Figure(
            f"added time to first token over the tailnet, {what}",
            measured=f"{by['tunnel'] - by['direct']:.1f} ms",
            loopback=f"{by['loopback'] - by['direct']:.1f} ms",
            direct=f"{by['direct']:.1f} ms",
        )
        for what, by in times.items()
    ]
    ours, parts = _cost(runs["tunnel"], ("edge", "node"))
    loopback, _ = _cost(runs["loopback"], ("edge", "node"))
    daemons, sides = _cost(runs["tunnel"], ("tailscaled of the edge", "tailscaled of the node"))
    what = f"per event over the tailnet, {_STREAMS} streams at 50/s"
    return [
        *figures,
        Figure(f"CPU {what}", measured=f"{ours:.1f} µs", parts=parts, loopback=f"{loopback:.1f} µs"),
        Figure(f"CPU of tailscaled {what}", measured=f"{daemons:.1f} µs", parts=sides),
    ]


def _cost(results: Sequence[Result], names: Sequence[str]) -> tuple[float, str]:
    """Median µs of CPU per event that the named processes took, and how it splits over them."""
    chosen = [replace(result, cpu={name: result.cpu[name] for name in names}) for result in results]
    return each(chosen, lambda result: result.waves[0]["events"])
