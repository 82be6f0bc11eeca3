"""The bus of tailscaled: one notification after the other, each a JSON object on a line of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import IntFlag

from shared.tailscale.errors import Refused, UnexpectedAnswer, Unreachable
from shared.tailscale.nodes import Node, User
from shared.tailscale.reading import Json, mapping, mappings, number, text
from shared.tailscale.states import State
from shared.tailscale.status import Status

# Bytes of one line: the first one holds the whole status.
_LONGEST_LINE = 256 << 20


class Mask(IntFlag):
    """What a watcher wants to hear (``ipn.NotifyWatchOpt``). Bits that a version does not know are passed over."""

    INITIAL_STATE = 1 << 1
    INITIAL_NETMAP = 1 << 3  # 1.98 and older; on others it costs and says nothing more
    INITIAL_HEALTH = 1 << 7  # not sent without INITIAL_STATE
    PEER_CHANGES = 1 << 12  # as whole nodes
    INITIAL_STATUS = 1 << 14


@dataclass(frozen=True, slots=True)
class HealthWarning:
    """A trouble that tailscaled sees. ``severity`` is high, medium or low."""

    code: str
    severity: str
    title: str
    text: str
    impacts_connectivity: bool


@dataclass(frozen=True, slots=True)
class Notification:
    """What one message says; None and empty: nothing about that. ``status`` and ``session`` are in the first one only.
    ``state`` is None too where ``state_told`` and this version does not know it. ``node`` is this machine as it is
    now, ``removed`` are numbers of nodes, ``warnings`` are all that there are now, by code."""

    session: str
    state: State | None
    state_told: bool
    status: Status | None
    node: Node | None
    changed: tuple[Node, ...]
    removed: tuple[int, ...]
    users: Mapping[int, User]
    warnings: Mapping[str, HealthWarning] | None
    browse_to: str
    login_finished: bool

    @classmethod
    def read(cls, message: Json) -> Notification:
        status, node, health = message.get("InitialStatus"), message.get("SelfChange"), message.get("Health")
        removed = message.get("PeersRemoved")
        users = [User.from_profile(mapping(profile)) for profile in mapping(message.get("UserProfiles")).values()]
        return cls(
            session=text(message.get("SessionID")),
            state=State.read(message.get("State")),
            state_told=message.get("State") is not None,
            status=Status.read(status) if isinstance(status, dict) else None,
            node=Node.from_node(node) if isinstance(node, dict) else None,
            changed=tuple(Node.from_node(peer) for peer in mappings(message.get("PeersChanged"))),
            removed=tuple(number(item) for item in removed) if isinstance(removed, list) else (),
            users={user.id: user for user in users},
            warnings=_warnings(health) if isinstance(health, dict) else None,
            browse_to=text(message.get("BrowseToURL")),
            login_finished=message.get("LoginFinished") is not None,
        )


def _warnings(health: Json) -> Mapping[str, HealthWarning]:
    return {
        code: HealthWarning(
            code=code,
            severity=text(mapping(warning).get("Severity")),
            title=text(mapping(warning).get("Title")),
            text=text(mapping(warning).get("Text")),
            impacts_connectivity=mapping(warning).get("ImpactsConnectivity") is True,
        )
        for code, warning in mapping(health.get("Warnings")).items()
    }


async def read_notifications(pieces: AsyncIterator[bytes]) -> AsyncIterator[Notification]:
    """The notifications in a stream of bytes, however it is cut. Raises Unreachable when the stream ends, Refused when
    tailscaled says that it ends it, UnexpectedAnswer when it is not a bus."""
    line = bytearray()
    async for piece in pieces:
        # Only at line feeds: Go leaves other characters as they are that Python takes for the end of a line.
        *ended, rest = piece.split(b"\n")
        for end in ended:
            line += end
            if line.strip():
                yield _notification(bytes(line))
            line.clear()
        line += rest
        if len(line) > _LONGEST_LINE:
            raise UnexpectedAnswer(f"A message on tailscaled's bus is longer than {_LONGEST_LINE >> 20} MiB.")
    raise Unreachable("tailscaled ended its bus: it was stopped or restarted.")


def _notification(line: bytes) -> Notification:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise UnexpectedAnswer("A message on tailscaled's bus is not a JSON object.")
    # A user's own session elsewhere is told in the same field, with the state that says so.
    if (said := text(message.get("ErrMessage"))) and message.get("State") is None:
        raise Refused(f"tailscaled ended its bus: {said}")
    return Notification.read(message)
