"""Who is calling: one credential, checked before anything else is looked up."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge.client_address import behind_serve
from edge.doors.credentials import credential
from edge.plans import Plan
from edge.principals import Principal, link_id
from edge.services import Services
from edge.tokens import Tokens
from shared.asgi.types import Scope, header
from shared.contract.errors import ApiError
from shared.contract.secrets import API_KEY, INVITE, NODE_TOKEN, TOKEN

_SECRET_IN_QUERY = re.compile(
    rf"{API_KEY}|{TOKEN}|{INVITE}|{NODE_TOKEN}|(^|&)(access_)?(token|api_?key)=".encode(), re.I
)
# Methods that a browser sends from its own pages without an Origin header.
_WITHOUT_ORIGIN = frozenset({"GET", "HEAD"})
# Rights of those who are not this machine, whatever address they call from.
_FROM_ELSEWHERE = frozenset({"serve", "tailnet"})


@dataclass(frozen=True, slots=True)
class Caller:
    """``ip`` is the caller's, not a proxy's; None where the address has no rate of its own. ``tokens`` verified the
    credential, if it is one."""

    ip: str | None
    principal: Principal
    plan: Plan
    tokens: Tokens

    def link_id(self, edge: Services) -> str:
        """All that a node learns of the principal."""
        return link_id(edge.pseudonym_key, self.principal.id)

    def revoked(self, edge: Services) -> bool:
        """Whether the credential is revoked, or the keys that verified it leaked: whoever has those writes into a token
        what they like, also that it was issued after the revocation."""
        forged = self.principal.jti is not None and not edge.tokens.follows(self.tokens)
        return forged or edge.store.revoked(self.principal)


def identify(scope: Scope, edge: Services) -> Caller:
    """Raises ApiError 401 for a missing or wrong credential, 403 for one used from another origin than its own."""
    principal = _principal(scope, edge)
    check_origin(scope, principal)
    ip = None if _exempt(scope, principal, edge) else caller_ip(scope, edge)
    return Caller(ip, principal, plan_of(principal, edge), edge.tokens)


def _exempt(scope: Scope, principal: Principal, edge: Services) -> bool:
    """Whether the caller's address has no rate of its own. A program can write any Origin; it still has the rate of its
    principal, and what has no name is one principal per address and origin."""
    exempt = edge.policy.exempt_origins
    if not exempt:
        return False
    origin = header(scope, b"origin")
    return (principal.origin if origin is None else origin.decode("latin-1")) in exempt


def plan_of(principal: Principal, edge: Services) -> Plan:
    """The plan with what the credential, and then the owner (``hearthlink limit set``), changes of it. Raises ApiError
    403 when the plan that it was made with is gone."""
    plan = edge.plans.get(principal.plan)
    if plan is None:
        text = f"The plan {principal.plan!r} of this credential is not in the edge's settings any more."
        raise ApiError("insufficient_scope", text)
    for name in principal.more_plans or ():
        if (more := edge.plans.get(name)) is not None:
            plan = plan.with_lists_of(more)
    if principal.limits is not None:
        plan = plan.limited(principal.limits)
    own = edge.store.records.limits.get(principal.id)
    return plan if own is None else plan.limited(own)


def by_serve(scope: Scope) -> bool:
    """Whether Tailscale Serve handed the request over: only there its headers are read."""
    return scope["state"].get("listener") == "serve"


def caller_ip(scope: Scope, edge: Services) -> str:
    """The caller's address, read once a request; ``client_address.UNKNOWN`` where it cannot be told."""
    state = scope["state"]
    if (ip := state.get("ip")) is None:
        if by_serve(scope):
            ip = behind_serve(scope["headers"])
        else:
            ip = edge.addresses.of(scope["client"][0] if scope["client"] else None, scope["headers"])
        state["ip"] = ip
    return ip


def given_credential(scope: Scope) -> str | None:
    """Raises ApiError 400 for one in the URL, 401 for two that differ or one that cannot be read."""
    if scope["query_string"] and _SECRET_IN_QUERY.search(scope["query_string"]):
        text = "Credentials do not belong in a URL, which is logged on its way. Send Authorization: Bearer instead."
        raise ApiError("invalid_request", text)
    authorization, key = header(scope, b"authorization"), header(scope, b"x-api-key")
    return credential(
        None if authorization is None else authorization.decode("latin-1"),
        None if key is None else key.decode("latin-1"),
    )


def _principal(scope: Scope, edge: Services) -> Principal:
    text = given_credential(scope)
    if text is None:
        if (user := user_of(scope, edge)) is not None:
            return user
        # What may be open to this machine alone is not open to all whom its tailscaled lets in.
        if not edge.policy.require_authentication and scope["state"].get("listener") not in _FROM_ELSEWHERE:
            return Principal("local", "local", "owner", edge.plans["owner"].scopes)
        raise ApiError("missing_token", "Get a token from POST /v1/token and send it as Authorization: Bearer hlt_….")
    if text.startswith(API_KEY):
        return edge.store.lookup(text)
    return edge.tokens.verify(text)


def user_of(scope: Scope, edge: Services) -> Principal | None:
    """Whom ``X-User-Id`` names, where the owner wants that to be believed. Raises what that door raises."""
    if not edge.policy.user_ids or scope["state"].get("listener") in _FROM_ELSEWHERE:
        return None
    if header(scope, b"x-user-id") is None:
        return None
    from edge.doors import user_id  # for developing only
    from edge.doors.pages import Page

    headers = scope["headers"]
    return user_id.enter(
        headers,
        Page.read(headers),
        http_version=scope["http_version"],
        allowed_origins=edge.policy.allowed_origins,
        plan=edge.plans["member"],
    )


def check_origin(scope: Scope, principal: Principal) -> None:
    """A token minted for a page works for that page only; a key or an unlocked token from everywhere. Raises ApiError
    403."""
    if principal.origin is None:
        return
    origin = header(scope, b"origin")
    if origin is None and scope["method"] in _WITHOUT_ORIGIN:
        return
    if origin is None or origin.decode("latin-1") != principal.origin:
        raise ApiError(
            "origin_not_allowed", "This token was given to a page on another origin. Send that Origin header."
        )
