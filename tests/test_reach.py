"""Why a node cannot be reached: one table, each row of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args

import pytest

from edge.upstreams.path import AGREE_AFTER, SteadyPath
from edge.upstreams.reach import Cause, Facts, Failure, explain
from shared.tailscale.errors import NotAnswering, Unreachable
from shared.tailscale.nodes import Node, Path
from shared.tailscale.states import State, not_running
from tests.tailnet.shapes import peer

URL = "ws://100.64.0.2:8001/link"
GPU = Node.from_status(peer(2, "gpu", tags=["tag:gpu"]))
OFFLINE = replace(GPU, online=False, last_seen=datetime(2026, 11, 21, 9, 30, tzinfo=UTC))
# A node named by its machine, which is found and was dialled.
FOUND = Facts("edge.upstreams.x", URL, wanted="gpu", port=8001, machine=GPU, seen=True, answers=True)
HIDDEN = replace(FOUND, url="", machine=None, seen=False, answers=None)
BY_URL = Facts("edge.upstreams.x", URL)
REFUSED = Failure("refused", detail="Connection refused")
SILENT = Failure("timeout", seconds=5.0)


def failed(facts: Facts, failure: Failure, **known: object) -> Facts:
    return replace(facts, failure=failure, **known)


ROWS: list[tuple[Cause, Facts, list[str]]] = [
    ("tailscaled_down", replace(HIDDEN, problem=Unreachable("tailscaled does not run.")), ["does not run"]),
    ("tailscaled_down", failed(FOUND, SILENT, problem=NotAnswering("It hangs.")), ["hangs"]),
    ("tailscaled_down", replace(HIDDEN, problem=not_running(State.STOPPED)), ["tailscale up"]),
    ("not_logged_in", replace(HIDDEN, problem=not_running(State.NEEDS_LOGIN, "http://a/b")), ["open http://a/b"]),
    ("not_logged_in", replace(HIDDEN, problem=not_running(State.NEEDS_MACHINE_AUTH)), ["approved"]),
    ("not_logged_in", replace(HIDDEN, problem=not_running(State.RUNNING, expired=True)), ["--force-reauth"]),
    ("no_such_machine", HIDDEN, ["no machine gpu", "edge.upstreams.x.node", "tailscale status", "tcp:8001"]),
    ("no_such_machine", replace(HIDDEN, wanted="tag:gpu"), ["no machine with tag:gpu", "tcp:8001"]),
    ("policy_blocks", replace(HIDDEN, seen=True), ["not visible any more", "policy", "tcp:8001"]),
    ("machine_offline", failed(FOUND, SILENT, machine=OFFLINE, answers=False), ["offline since 2026-11-21 09:30 UTC"]),
    ("machine_offline", replace(FOUND, machine=OFFLINE, answers=None), ["offline since"]),
    ("machine_offline", failed(FOUND, Failure("ended", detail="the link ended"), machine=OFFLINE), ["offline since"]),
    ("machine_offline", failed(FOUND, SILENT, answers=False), ["does not answer", "lists it as online"]),
    ("machine_offline", failed(FOUND, Failure("unreachable"), answers=None), ["gpu.tail.test"]),
    ("key_expired", failed(FOUND, SILENT, machine=replace(GPU, expired=True)), ["key of gpu", "--force-reauth"]),
    ("policy_blocks", failed(FOUND, SILENT), ["port 8001", "policy", "tcp:8001", "--shields-up=false"]),
    ("app_not_listening", failed(FOUND, REFUSED), ["nothing listens on its port 8001", "edge.upstreams.x.port"]),
    ("app_not_listening", failed(BY_URL, REFUSED), [URL, "Connection refused", "hearthlink node", "x.url"]),
    ("token_refused", failed(FOUND, Failure("status", 401)), ["refuses this edge's token", "x.token", "node.tokens"]),
    ("token_refused", failed(BY_URL, Failure("status", 401)), ["refuses this edge's token", "x.token", "node.tokens"]),
    ("machine_refused", failed(FOUND, Failure("status", 403)), ["does not admit", "tag:edge", "node_capability"]),
    ("machine_refused", failed(BY_URL, Failure("status", 403)), ["does not listen under that name", "x.url"]),
    ("other", failed(FOUND, Failure("status", 503)), ["restarting", "tailscaled"]),
    ("other", failed(BY_URL, Failure("status", 503)), ["restarting"]),
    ("other", failed(BY_URL, Failure("status", 404)), ["not a Hearthlink node", "404", "x.url"]),
    ("other", failed(FOUND, Failure("tls", detail="certificate required")), ["certificate required", "x.tls"]),
    ("other", replace(FOUND, userspace=True), ["--outbound-http-proxy-listen=", "tailscale.proxy"]),
    (
        "other",
        failed(FOUND, Failure("proxy"), userspace=True, proxy="http://127.0.0.1:1055"),
        ["--outbound-http-proxy-listen=127.0.0.1:1055", "tailscale.proxy"],
    ),
    ("other", failed(BY_URL, SILENT), ["no answer", "5 s", URL]),
    ("other", failed(BY_URL, Failure("ended", detail="the link ended: silent for 12 s")), ["silent for 12 s"]),
    ("other", failed(FOUND, Failure("other", detail="Connection reset by peer")), ["reset by peer", "x.node"]),
    ("other", failed(BY_URL, Failure("name", detail="Name or service not known")), [URL, "not known", "x.url", "DNS"]),
    ("other", BY_URL, ["not connected yet"]),
]


@pytest.mark.parametrize(("cause", "facts", "says"), ROWS)
def test_what_is_known_gives_a_cause_and_what_to_do(cause: Cause, facts: Facts, says: list[str]) -> None:
    reach = explain(facts)
    assert reach.cause == cause, reach.sentence
    for part in says:
        assert part in reach.sentence
    assert "None" not in reach.sentence


def test_every_cause_has_a_row() -> None:
    assert {cause for cause, _, _ in ROWS} == set(get_args(Cause))


def test_an_answer_of_the_node_proves_more_than_what_tailscaled_thinks() -> None:
    facts = failed(FOUND, Failure("status", 401), machine=OFFLINE, problem=Unreachable("gone"), answers=False)
    assert explain(facts).cause == "token_refused"


# -- the path ---------------------------------------------------------------------------------------------------------


def samples(*taken: tuple[float, Path]) -> list[Path]:
    """The path after each sample."""
    steady, seen = SteadyPath(), []
    for now, path in taken:
        steady.take(path, now)
        seen.append(steady.path)
    return seen


def test_a_path_is_believed_when_two_samples_agree_that_lie_apart() -> None:
    assert samples((0, Path.RELAYED), (AGREE_AFTER, Path.RELAYED)) == [Path.UNKNOWN, Path.RELAYED]
    assert samples((0, Path.RELAYED), (AGREE_AFTER / 2, Path.RELAYED)) == [Path.UNKNOWN, Path.UNKNOWN]


def test_a_path_that_flaps_stays_what_it_was() -> None:
    known = [(0, Path.DIRECT), (4, Path.DIRECT)]
    flapping = [(8, Path.RELAYED), (12, Path.DIRECT), (16, Path.RELAYED), (20, Path.PEER_RELAYED), (24, Path.RELAYED)]
    assert set(samples(*known, *flapping)[1:]) == {Path.DIRECT}


def test_a_sample_without_traffic_says_nothing() -> None:
    seen = samples((0, Path.DIRECT), (4, Path.DIRECT), (8, Path.UNKNOWN), (12, Path.UNKNOWN))
    assert seen[1:] == [Path.DIRECT] * 3
    assert samples((0, Path.RELAYED), (3, Path.UNKNOWN), (6, Path.RELAYED))[-1] is Path.RELAYED


def test_the_first_direct_answer_is_believed_at_once() -> None:
    steady = SteadyPath()
    assert steady.undecided
    steady.begin(Path.DIRECT)
    assert (steady.path, steady.undecided) == (Path.DIRECT, False)
    steady.take(Path.RELAYED, 0)
    assert (steady.path, steady.undecided) == (Path.DIRECT, True)
