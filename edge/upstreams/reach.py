"""Why a node cannot be reached: one table from what is known to a cause and a sentence with what to do. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shared.tailscale.errors import NotRunning, TailscaleError
from shared.tailscale.states import State

if TYPE_CHECKING:  # an edge outside of tailnets starts sooner without it
    from shared.tailscale.nodes import Node

Cause = Literal[
    "tailscaled_down",
    "not_logged_in",
    "no_such_machine",
    "machine_offline",
    "key_expired",
    "policy_blocks",
    "app_not_listening",
    "token_refused",
    "machine_refused",
    "other",
]
Kind = Literal["status", "timeout", "refused", "unreachable", "name", "tls", "proxy", "ended", "other"]
# States in which a person must let this machine into the tailnet; in the others tailscaled itself must be started.
_LOGGED_OUT = (State.NEEDS_LOGIN, State.NEEDS_MACHINE_AUTH, State.IN_USE_OTHER_USER)


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended. ``status`` is the HTTP answer's of kind "status"; ``seconds`` the deadline of "timeout";
    ``detail`` is in the words of whoever noticed it."""

    kind: Kind
    status: int = 0
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one node. ``setting`` is its key in the settings; ``url`` what was dialled, empty where
    nothing could be; ``failure`` how that ended. The rest is for a node that is named by its machine (``wanted``):
    ``problem`` is why this machine is not in the tailnet, ``machine`` the one that was found, ``seen`` whether it was
    found before, ``answers`` whether it answered the last disco ping, ``userspace`` whether connections to it need a
    proxy of tailscaled's, and ``proxy`` which one is set."""

    setting: str
    url: str = ""
    failure: Failure | None = None
    wanted: str = ""
    port: int = 0
    problem: TailscaleError | None = None
    machine: Node | None = None
    seen: bool = False
    answers: bool | None = None
    userspace: bool = False
    proxy: str | None = None

    @property
    def kind(self) -> Kind | None:
        return self.failure.kind if self.failure is not None else None

    @property
    def status(self) -> int:
        return self.failure.status if self.failure is not None else 0

    @property
    def node(self) -> str:
        """The node, in the middle of a sentence."""
        return f"the node on {self.name} ({self.url})" if self.wanted else f"the node at {self.url}"

    @property
    def name(self) -> str:
        return self.machine.name if self.machine is not None else self.wanted

    @property
    def place(self) -> str:
        """The setting that says where the node is."""
        return f"{self.setting}.{'node' if self.wanted else 'url'}"


@dataclass(frozen=True, slots=True)
class Reach:
    cause: Cause
    sentence: str


def explain(facts: Facts) -> Reach:
    """The first row of the table that fits."""
    for cause, fits, sentence in _TABLE:
        if fits(facts):
            return Reach(cause, sentence(facts))
    raise AssertionError("the last row fits everything")


def _no_machine(facts: Facts) -> str:
    if facts.wanted.startswith("tag:"):
        what = f"no machine with {facts.wanted} is visible in the tailnet. Give the machine with the node that tag"
    else:
        what = (
            f"no machine {facts.wanted} is visible in the tailnet. Log it in under that name, or correct {facts.place}"
            " (`tailscale status` lists the names)"
        )
    return f"{what}; if it is there already, the policy gives this machine nothing at it: grant it tcp:{facts.port}."


def _hidden(facts: Facts) -> str:
    return (
        f"{facts.wanted} was in the tailnet and is not visible any more: the policy gives this machine nothing at it"
        f" now, or it was removed. Grant this machine tcp:{facts.port} there, or log that machine in again."
    )


def _blocked(facts: Facts) -> str:
    return (
        f"{facts.name} answers, and connections to its port {facts.port} are dropped: the tailnet's policy does not"
        f" allow them. Add a grant from this machine to that one for tcp:{facts.port} (docs/tailnet.md has one); on"
        " that machine, `tailscale set --shields-up=false` and a firewall that lets tailscale0 in."
    )


def _offline(facts: Facts) -> str:
    if facts.machine is not None and facts.machine.online is False:
        said = "is offline"
        if (last := facts.machine.last_seen) is not None:
            said += f" since {last:%Y-%m-%d %H:%M} UTC"
    else:
        said = "does not answer, though the tailnet still lists it as online"
    return f"{facts.name} {said}. Switch it on, and run `sudo tailscale up` there."


def _silent(facts: Facts) -> bool:
    """Whether it is the machine that is not there; where no attempt tells, the control server is believed."""
    if facts.kind in (None, "ended"):
        return facts.machine is not None and facts.machine.online is False
    return bool(facts.wanted) and facts.kind in ("timeout", "unreachable") and facts.answers is not True


def _detail(facts: Facts) -> str:
    return facts.failure.detail if facts.failure is not None else ""


def _unlisted(facts: Facts) -> str:
    if facts.failure is not None and facts.failure.kind == "ended":
        return facts.failure.detail
    if facts.failure is None:
        return "not connected yet"
    what = f" ({facts.failure.detail})" if facts.failure.detail else ""
    return f"cannot reach {facts.node}{what}. Start `hearthlink node` there or correct {facts.place}."


def _not_admitted(facts: Facts) -> str:
    if not facts.wanted:
        return f"{facts.node} does not listen under that name. Correct {facts.place} or node.listen there."
    return (
        f"{facts.node} does not admit this machine: it has neither tag:edge nor a grant of the capability in"
        " tailscale.node_capability. Give it one of them in the tailnet's policy; the node's log names the caller."
    )


def _restarting(facts: Facts) -> str:
    also = ", or cannot ask its tailscaled who calls; its log says which" if facts.wanted else ""
    return f"{facts.node} is restarting{also}."


# The order matters: what answered proves more than what tailscaled thinks, which explains what did not answer.
_Row = tuple[Cause, Callable[[Facts], bool], Callable[[Facts], str]]
_TABLE: tuple[_Row, ...] = (
    (
        "token_refused",
        lambda facts: facts.status == 401,
        lambda facts: (
            f"{facts.node} refuses this edge's token. Set {facts.setting}.token to one of the node's node.tokens, or"
            " where it has none to what its file node-token holds, and restart the edge."
        ),
    ),
    ("machine_refused", lambda facts: facts.status == 403, _not_admitted),
    ("other", lambda facts: facts.status == 503, _restarting),
    (
        "other",
        lambda facts: facts.kind == "status",
        lambda facts: (
            f"what answers at {facts.url} is not a Hearthlink node (HTTP {facts.status}). Correct {facts.place}."
        ),
    ),
    (
        "not_logged_in",
        lambda facts: isinstance(facts.problem, NotRunning) and facts.problem.state in _LOGGED_OUT,
        lambda facts: str(facts.problem),
    ),
    ("tailscaled_down", lambda facts: facts.problem is not None, lambda facts: str(facts.problem)),
    ("policy_blocks", lambda facts: bool(facts.wanted) and facts.machine is None and facts.seen, _hidden),
    ("no_such_machine", lambda facts: bool(facts.wanted) and facts.machine is None, _no_machine),
    (
        "key_expired",
        lambda facts: facts.machine is not None and facts.machine.expired,
        lambda facts: (
            f"the key of {facts.name} in the tailnet has expired. Log in again there: sudo tailscale up --force-reauth"
        ),
    ),
    (
        "other",
        lambda facts: facts.userspace and facts.proxy is None,
        lambda facts: (
            "tailscaled on this machine runs in userspace networking, so that connections into the tailnet need its"
            " proxy. Start it with --outbound-http-proxy-listen=127.0.0.1:1055 and set"
            ' tailscale.proxy = "http://127.0.0.1:1055".'
        ),
    ),
    (
        "other",
        lambda facts: facts.kind == "proxy",
        lambda facts: (
            f"nothing answers at {facts.proxy}, which tailscale.proxy names. Start tailscaled with"
            f" --outbound-http-proxy-listen={(facts.proxy or '').removeprefix('http://')}, or correct it."
        ),
    ),
    (
        "other",
        lambda facts: facts.kind == "tls",
        lambda facts: (
            f"the TLS handshake with {facts.node} failed: {_detail(facts)}. Both sides show a certificate of the same"
            f" authority: {facts.setting}.tls here, node.tls there."
        ),
    ),
    (
        "other",
        lambda facts: facts.kind == "name",
        lambda facts: (
            f"no machine is to be found at {facts.url} ({_detail(facts)}). Correct {facts.place}; where the name is"
            " right, see to the DNS of this machine."
        ),
    ),
    (
        "app_not_listening",
        lambda facts: bool(facts.wanted) and facts.kind == "refused",
        lambda facts: (
            f"{facts.name} is there, and nothing listens on its port {facts.port}. Start `hearthlink node` there with"
            f' node.listen = "tailnet", or correct {facts.setting}.port.'
        ),
    ),
    ("app_not_listening", lambda facts: facts.kind == "refused", _unlisted),
    (
        "policy_blocks",
        lambda facts: bool(facts.wanted) and facts.kind == "timeout" and facts.answers is True,
        _blocked,
    ),
    (
        "machine_offline",
        _silent,
        _offline,
    ),
    (
        "other",
        lambda facts: facts.kind == "timeout",
        lambda facts: (
            f"no answer from {facts.url} within {facts.failure.seconds if facts.failure else 0:g} s. Is that machine"
            " on, and is the address right?"
        ),
    ),
    ("other", lambda facts: True, _unlisted),
)
