"""The one place where requests are counted: each limited route enters here and nowhere else.

    enter            who calls, and may they be here at all
    take_request     count one request of theirs
    charge           both: for routes that start no answer
    admit            count one request, one stream and the tokens: for answers, once their cost is known

How the limits stand after it is shown on whatever is answered then, refusals and errors included.
"""

from __future__ import annotations

from edge.api.audit import note
from edge.api.caller import Caller, identify
from edge.services import Services
from edge.store.ledger import Cost, Grant
from shared.asgi.front import add_headers
from shared.asgi.types import Scope
from shared.contract.errors import ApiError


def enter(scope: Scope, edge: Services, route: str, needs: str | None = "chat") -> Caller:
    """The caller of ``route``, who is counted nowhere yet. ``needs`` is the scope that the credential must hold, None
    for a route that is open to every credential. Raises ApiError 401 or 403."""
    note(scope, route=route)
    caller = identify(scope, edge)
    note(scope, principal=caller.principal.id, plan=caller.plan.name)
    if needs is not None and not (needs in caller.principal.scopes and needs in caller.plan.scopes):
        text = f"This route needs the scope {needs!r}, which this credential or its plan does not have."
        raise ApiError("insufficient_scope", text)
    return caller


async def charge(scope: Scope, edge: Services, route: str, needs: str | None = "chat") -> Caller:
    """``enter`` and ``take_request``; raises what they raise."""
    caller = enter(scope, edge, route, needs)
    await take_request(scope, edge, caller)
    return caller


async def take_request(scope: Scope, edge: Services, caller: Caller) -> None:
    """Raises ApiError 401 for a revoked credential, 429, and ``overloaded``."""
    _show(scope, await edge.store.charge_request(caller.ip, caller.principal, caller.plan))


async def admit(scope: Scope, edge: Services, caller: Caller, cost: Cost, chat_id: str) -> None:
    """As ``Ledger.admit``: the caller of this owes exactly one ``settle`` of ``chat_id``."""
    _show(scope, await edge.store.admit(caller.ip, caller.principal, caller.plan, cost, chat_id))


def _show(scope: Scope, grant: Grant) -> None:
    add_headers(scope, grant.headers())
