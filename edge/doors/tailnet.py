"""The door for people of the tailnet: who Tailscale Serve says is calling, where whois says the same.

Serve, which runs in tailscaled, replaces these headers on whatever it passes on, so on a listener that only Serve can
reach they are its own word. A port of loopback can be reached by every user of this machine (a peer of the tailnet that
gets there is sent away before, see ``edge.api.peers``). So nothing is believed that whois does not confirm.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from loguru import logger

from edge.doors.grants import Granted, example, merge
from edge.plans import Plan
from edge.principals import Principal, tailnet_id
from shared.contract.errors import ApiError
from shared.tailscale.errors import TailscaleError
from shared.tailscale.nodes import Node
from shared.tailscale.status import Status
from shared.tailscale.whois import WhoIs

_DEFAULT_PORTS = {"http": 80, "https": 443}
# The order of scopes in a token.
_SCOPES = ("chat", "admin")
_SHOW_ONE = 'send {"invite":"hli_…"} with an invite, or an API key.'
_T = TypeVar("_T")


class Asker(Protocol):
    """What is needed of ``LocalClient``."""

    async def status(self, *, peers: bool = True) -> Status: ...
    async def whois(self, host: str, port: int = 0, *, protocol: str = "") -> WhoIs | None: ...


@dataclass(frozen=True, slots=True)
class Served:
    """A request as Serve passed it on. ``login`` is empty where Serve names none: a tagged machine, or this one.
    ``address`` is the caller's; ``url`` is scheme, host and port as the caller wrote them, of which ``host`` and
    ``port`` are parts; ``origin`` and ``fetch_site`` are what a browser says."""

    login: str
    address: str
    url: str
    host: str
    port: int
    origin: str | None
    fetch_site: str | None

    @classmethod
    def read(cls, headers: Sequence[tuple[bytes, bytes]]) -> Served:
        """Of ASGI's headers. Raises ApiError ``address_not_allowed`` for what Serve never sends."""
        found = {name: _only(headers, name) for name in _HEADERS}
        scheme = "https" if found["x-forwarded-proto"] == "https" else "http"
        url = f"{scheme}://{(found['x-forwarded-host'] or '').lower()}"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS[scheme]
        except ValueError:
            raise _refused("The header X-Forwarded-Host names no host.") from None
        return cls(
            login=_decoded(found["tailscale-user-login"] or ""),
            address=found["x-forwarded-for"] or "",
            url=url,
            host=host.removesuffix("."),
            port=port,
            origin=found["origin"],
            fetch_site=found["sec-fetch-site"],
        )


_HEADERS = (
    *("tailscale-user-login", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"),
    *("origin", "sec-fetch-site"),
)


class TailnetDoor:
    """``capability`` is the name that grants have, ``secret`` as for ``tailnet_id``; ``invites``: whom this door does
    not know may show one. Nothing is remembered: a change of the policy holds from the next token on."""

    def __init__(
        self, client: Asker, capability: str, plans: Mapping[str, Plan], secret: bytes, *, invites: bool = False
    ) -> None:
        self._client = client
        self._capability = capability
        self._plans = plans
        self._secret = secret
        self._invites = invites

    async def enter(self, request: Served) -> Principal:
        """The person, with plan, scopes and limits of the grant, locked to the page's origin where a page asks.

        Raises ApiError ``missing_token`` for a caller that is nobody's, ``address_not_allowed`` for one that is not who
        it says, ``origin_not_allowed`` for another page than ours, ``insufficient_scope`` without a grant (where there
        are invites ``missing_token``, as a page then asks for one), and ``node_unavailable`` when tailscaled cannot be
        asked.
        """
        if not request.login:
            raise self._nobodys()
        caller = await self._asked(self._caller(request))
        own = await self.check_page(request)
        granted = self._granted(caller, request, own)
        plan, *more = granted.plans
        return Principal(
            tailnet_id(self._secret, request.login),
            "tailnet",
            plan.name,
            tuple(scope for scope in _SCOPES if scope in granted.scopes),
            origin=request.origin,
            limits=granted.limits,
            more_plans=tuple(other.name for other in more) or None,
        )

    async def check_page(self, request: Served) -> Node:
        """Whether it is our own page that asks, or a program; this machine. Raises as ``enter`` does."""
        own = await self._asked(self._client.status(peers=False))
        if own.node is None or own.problem is not None:
            logger.warning("the door of the tailnet is shut: {}", own.problem or "this machine has no name there")
            raise _unknown()
        _check_page(request, own.node)
        return own.node

    async def _asked(self, answer: Awaitable[_T]) -> _T:
        try:
            return await answer
        except TailscaleError as error:
            logger.warning("the door of the tailnet is shut: {}", error)
            raise _unknown() from None

    async def _caller(self, request: Served) -> WhoIs:
        """Whose address it is, if that is who the headers name."""
        if not _is_address(request.address):
            raise _refused("Tailscale Serve names one address of a caller, and there is none.")
        caller = await self._client.whois(request.address)
        if caller is None:
            raise _refused(f"Nobody in the tailnet has the address {request.address}.")
        if caller.node.tags:
            raise self._nobodys()
        if caller.user.login != request.login:
            raise _refused("The login in the headers is not the one that Tailscale knows for the caller's address.")
        return caller

    def _granted(self, caller: WhoIs, request: Served, own: Node) -> Granted:
        login = caller.user.login
        merged = merge(caller.capabilities.get(self._capability, ()), self._plans)
        for fault in merged.faults:
            logger.warning("something is wrong with the grants of {} for {}: {}", self._capability, login, fault)
        if merged.granted is not None:
            return merged.granted
        if merged.faults:
            what = f"The grant of {login} in the policy of the tailnet gives nothing: {merged.faults[0]}."
            raise self._ungranted(f"{what} The owner of this edge has to mend it.")
        here = own.tags[0] if own.tags else next(iter(own.addresses), own.name)
        line = json.dumps(example(login, here, request.port, self._capability))
        logger.info("{} asked for a token and has no grant of {}", login, self._capability)
        what = f"{login} has no grant for this edge. Its owner adds one to the policy of the tailnet: {line}"
        raise self._ungranted(what)

    def _nobodys(self) -> ApiError:
        text = "Tailscale names no person for this caller: a tagged machine, or the edge's own."
        if self._invites:
            return ApiError("missing_token", f"{text} Otherwise {_SHOW_ONE}", param="invite")
        return ApiError("missing_token", f"{text} Send an API key.")

    def _ungranted(self, why: str) -> ApiError:
        """A page asks for an invite when it reads ``missing_token`` with this ``param``."""
        if self._invites:
            return ApiError("missing_token", f"{why} Until then {_SHOW_ONE}", param="invite")
        return ApiError("insufficient_scope", why)


def _check_page(request: Served, own: Node) -> None:
    """Only our own page, under a name of this machine's: a page from elsewhere could make the browser of a person of
    the tailnet ask, and a name that points here (DNS rebinding) would make it look like ours. Another machine of the
    tailnet is the same site, so only the same origin will do."""
    if request.host not in _names(own):
        raise _foreign(f"This edge is called {own.name} in the tailnet: open it under that name.")
    if request.origin is not None and request.origin != request.url:
        raise _foreign("A page from elsewhere gets no token here.")
    if request.fetch_site not in (None, "same-origin"):
        raise _foreign("The browser says (Sec-Fetch-Site) that another page made this request.")


def _names(own: Node) -> set[str]:
    name = own.name.lower()
    return {name, name.partition(".")[0], *own.addresses} - {""}


def _only(headers: Sequence[tuple[bytes, bytes]], name: str) -> str | None:
    values = [value for key, value in headers if key == name.encode()]
    if len(values) > 1:
        raise _refused(f"The header {name} was sent twice.")
    return values[0].decode("latin-1") if values else None


def _decoded(value: str) -> str:
    """A login as Serve writes it: as it is, or in the Q encoding of RFC 2047 when it is not ASCII. Empty for what
    cannot be read."""
    if not value.startswith("=?"):
        return value
    try:
        parts = [(text, charset) for text, charset in decode_header(value)]
        return "".join(text if isinstance(text, str) else text.decode(charset or "ascii") for text, charset in parts)
    except (HeaderParseError, UnicodeDecodeError, LookupError, ValueError):
        return ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _refused(why: str) -> ApiError:
    return ApiError("address_not_allowed", f"{why} Open the edge through Tailscale Serve, or use an API key.")


def _foreign(why: str) -> ApiError:
    return ApiError("origin_not_allowed", why)


def _unknown() -> ApiError:
    # Clients take this code for a trouble that passes, and try again or elsewhere.
    text = "Tailscale on the edge's machine cannot say who is calling. Try again in a moment; the edge's log has why."
    return ApiError("node_unavailable", text)
