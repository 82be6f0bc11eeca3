"""One tiny answer through the edge, as a caller gets it: do its events arrive as they are made, or all at the end?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hearthlink.client import EdgeClient
from hearthlink.doctor.machine import Machine, edge_url
from hearthlink.doctor.probes import Probe, in_thread
from hearthlink.doctor.report import Group, Line
from hearthlink.output import Failure, Status

if TYPE_CHECKING:
    from shared.settings import Settings

EDGE = Group("edge")
_SECONDS = 9.0  # both answers, from a model that is in memory
_ONE_ANSWER = 4.0  # of one that takes longer its first events are enough
_TOKENS = 16
_TOKEN_LIVES = 60.0
_QUESTION = {"messages": [{"role": "user", "content": "Count from one to nine."}], "max_tokens": _TOKENS}
# Fewer events, or all of them sooner than this, and nothing can be told from when they come.
_FEW_EVENTS = 5
_QUICK_SECONDS = 0.03
# Events that take that long to be made and come in a tenth of it were collected on their way.
_COLLECTED_SHARE = 0.1
# Without an answer to compare with: words that come at once after such a silence. As `smoke` judges.
_SILENT_SECONDS = 1.0
_AT_ONCE_SHARE = 0.05
_NO_BUFFERING = "proxy_buffering off;"


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one answer: when each of its events came, in seconds since the question; ``whole``: to its end."""

    at: tuple[float, ...]
    whole: bool

    @property
    def events(self) -> int:
        return len(self.at)

    @property
    def first(self) -> float:
        return self.at[0]

    def spread(self, events: int) -> float:
        """Seconds from the first to the last of so many."""
        return self.at[events - 1] - self.at[0]


def probes(machine: Machine) -> list[Probe]:
    return [Probe(EDGE, "stream", lambda: stream(machine), _SECONDS)]


async def stream(machine: Machine) -> Sequence[Line]:
    """Through the public URL where there is one, compared with the edge's own listener."""
    health = await machine.edge()
    if not await machine.edge_runs():
        return []
    if health.json["status"] == "maintenance":
        return [EDGE.absent("stream", "No answer was asked for: the edge is closed to all but admins.")]
    if health.json["status"] not in ("ok", "degraded"):
        return [EDGE.absent("stream", "No answer was asked for: no node can give one now.")]
    token = await in_thread(lambda: _token(machine.settings))
    if token is None:
        text = "No answer was asked for: the keys that sign tokens are not on this machine, or are of another user."
        return [EDGE.absent("stream", text)]
    own, url = edge_url(machine.settings), machine.settings.edge.public_url
    try:
        near = await _time(own, token)
    except Failure as failure:
        return [_failed(failure, own, _ask(own))]
    if not near.events:
        return [_wordless(near, own)]
    if url is None:
        text = f"An answer of {near.events} events came, the first after {near.first * 1000:.0f} ms."
        return [EDGE.ok("stream", text)]
    try:
        far = await _time(url, token)
    except Failure as failure:
        return [_failed(failure, url, f"curl -v {url}/healthz")]
    if far.events:
        return [_judged(near, far, url)]
    if near.whole or far.whole or near.events < _FEW_EVENTS:
        return [_wordless(far, url)]
    # Whatever collects an answer that takes longer than we wait shows none of it.
    return [_collected(f"Through {url} no event of a running answer came within {_ONE_ANSWER:g} s")]


def _ask(url: str) -> str:
    """The command that asks the same, and waits."""
    asked = f'hearthlink chat "Count from one to nine." --token - --url {url}'
    return f"hearthlink token mint doctor --hours 0.1 | {asked}"


def _token(settings: Settings) -> str | None:
    """One that the edge of this machine accepts, good for a minute; None where it cannot be made."""
    from hearthlink.tokens import mint_local

    here = settings.edge.store.get_secret_value() == "sqlite" and not settings.edge.signing_keys
    if here and not (settings.state / "signing-keys").exists():
        return None
    try:
        return mint_local(settings, "doctor", "owner", _TOKEN_LIVES)[0]
    except Failure:
        return None


async def _time(url: str, token: str) -> Timing:
    """What came until the answer or our time was over. Raises Failure."""
    began = time.monotonic()
    at: list[float] = []
    try:
        async with (
            asyncio.timeout(_ONE_ANSWER),
            EdgeClient(url, {"Authorization": f"Bearer {token}"}) as edge,
            edge.stream(_QUESTION) as answer,
        ):
            async for part in answer.parts():
                if part.text:
                    at.append(time.monotonic() - began)
    except TimeoutError:
        return Timing(tuple(at), whole=False)
    return Timing(tuple(at), whole=True)


def _failed(failure: Failure, url: str, mend: str) -> Line:
    if failure.status is Status.AUTH:
        text = f"The edge at {url} refuses a token made with the keys of this machine: is it another one? {failure}"
        return EDGE.broken("stream", text, mend)
    return EDGE.broken("stream", f"An answer through {url} failed. {failure}", mend)


def _wordless(answer: Timing, url: str) -> Line:
    when = "and it ended so" if answer.whole else f"within {_ONE_ANSWER:g} s"
    return EDGE.warning("stream", f"No word of an answer through {url} came, {when}.", _ask(url))


def _collected(what: str) -> Line:
    text = (
        f"{what}: something between here and the edge collects them. Readers see nothing until an answer is complete."
        f" Turn its buffering off (nginx: {_NO_BUFFERING.removesuffix(';')})."
    )
    return EDGE.broken("stream", text, _NO_BUFFERING, "in the proxy's configuration")


def _judged(near: Timing, far: Timing, url: str) -> Line:
    """``near`` was not carried by anything; what happened to ``far`` happened on the way."""
    came = f"Through {url} an answer of {far.events} events"
    both = min(near.events, far.events)
    made, carried = near.spread(both), far.spread(both)
    at_once = far.first > _SILENT_SECONDS and carried < _AT_ONCE_SHARE * (far.first + carried)
    collected = made >= _QUICK_SECONDS and carried < _COLLECTED_SHARE * made
    if both < _FEW_EVENTS:
        return EDGE.absent("stream", f"{came} came, too few to tell whether they are collected on the way.")
    if at_once or collected:
        return _collected(f"{came} came all at once, {far.first:.1f} s after the question")
    if made < _QUICK_SECONDS:
        text = f"{came} came whole. This model answers too quickly to tell whether they are collected on the way."
        return EDGE.ok("stream", text)
    text = f"{came} came one by one, over {carried * 1000:.0f} ms, the first after {far.first * 1000:.0f} ms."
    return EDGE.ok("stream", text)
