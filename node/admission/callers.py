"""Which machine calls, and what it may do: tailscaled's word about the address that a connection came from.

A machine tagged ``tag:edge`` may ask for answers. Any other needs a grant of the policy: the values of the capability
say ``{"roles": ["infer"]}`` or ``{"role": "admin"}``, the values of several grants add up, and whoever may administer
may also ask. What is not said is not allowed.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from shared.asgi.types import Scope
from shared.contract.errors import ApiError
from shared.tailscale.errors import TailscaleError

if TYPE_CHECKING:  # only a node beside a tailscaled needs an HTTP client for it, and loading that takes 0.1 s
    from shared.tailscale.client import LocalClient
    from shared.tailscale.whois import WhoIs

Role = Literal["infer", "admin"]

EDGE_TAG = "tag:edge"
NO_ROLES = frozenset[Role]()
# Seconds that an answer holds. A change of policy comes without an event, so this is how long it may take to matter.
KEPT = 30.0


@dataclass(frozen=True, slots=True)
class Caller:
    """``name`` is the machine's where it is tagged, else the person's login, for the log; empty is nobody of the
    tailnet. ``until``, in the loop's seconds, is when to ask again; infinity where nothing can change any more."""

    name: str
    roles: frozenset[Role]
    until: float


@dataclass(slots=True)
class _Known:
    caller: Caller | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Callers(ABC):
    """``capability`` is the name of the grant's. An answer holds for ``kept`` seconds and for its connection alone: in
    userspace networking all come from 127.0.0.1, and the next connection from a port may be anybody's."""

    def __init__(self, capability: str, kept: float) -> None:
        self.capability = capability
        self._kept = kept

    async def who(self, scope: Scope) -> Caller:
        """The caller of a request; one without roles may do nothing. Requests at once on one connection share one
        question. Raises ApiError ``node_unavailable``, caused by the TailscaleError that says why."""
        known = _known(scope)
        async with known.asking:
            if known.caller is None or asyncio.get_running_loop().time() >= known.caller.until:
                known.caller = await self._find(*scope["client"])
            return known.caller

    def seen(self, scope: Scope) -> Caller | None:
        """What was answered last about this connection, nothing is asked."""
        return _known(scope).caller

    @abstractmethod
    async def _find(self, host: str, port: int) -> Caller:
        """Ask who calls from there now. Raises as ``who``."""

    def _caller(self, found: WhoIs | None, strangers: frozenset[Role]) -> Caller:
        """``strangers`` are the roles of those whom the tailnet does not know."""
        name, roles = ("", strangers) if found is None else (found.name, roles_of(found, self.capability))
        return Caller(name, roles, asyncio.get_running_loop().time() + self._kept)


class TailnetCallers(Callers):
    """On a tailnet's listener, where nobody else has business. Asks ``client``, which stays its maker's."""

    def __init__(self, client: LocalClient, capability: str, *, kept: float = KEPT) -> None:
        super().__init__(capability, kept)
        self._client = client

    async def _find(self, host: str, port: int) -> Caller:
        try:
            found = await self._client.whois(host, port, protocol="tcp")
            if found is None:
                # One that is starting or stopped knows nobody, and answers so. Believe it only once it runs.
                problem = (await self._client.status(peers=False)).problem
                if problem is not None:
                    raise problem
                found = await self._client.whois(host, port, protocol="tcp")
        except TailscaleError as error:
            raise cannot_tell() from error
        return self._caller(found, NO_ROLES)


def cannot_tell() -> ApiError:
    text = "The node cannot ask its tailscaled who calls, and lets nobody in unknown. Its log says why."
    return ApiError("node_unavailable", text)


def roles_of(found: WhoIs, capability: str) -> frozenset[Role]:
    roles = set[Role]()
    if EDGE_TAG in found.node.tags and not found.node.shared:  # another tailnet's tags are not our policy's
        roles.add("infer")
    for value in found.capabilities.get(capability, ()):
        roles |= {role for role in get_args(Role) if role in _named(value)}
    if "admin" in roles:
        roles.add("infer")
    return frozenset(roles)


def _named(value: Any) -> Iterable[object]:
    if not isinstance(value, dict):
        return ()
    several = value.get("roles")
    return [value.get("role"), *(several if isinstance(several, list) else ())]


def _known(scope: Scope) -> _Known:
    connection = scope["state"]["connection"]
    if (known := connection.get("caller")) is None:
        known = connection["caller"] = _Known()
    return known
