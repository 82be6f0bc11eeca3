"""What the node carries out beside answers: one handler for each row of ``OPERATIONS``. The link and the node's own
HTTP surface both end here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from node.api import conversations, debugging, model_operations
from node.services import Services
from shared.contract.errors import ApiError
from shared.contract.operation import Operation
from shared.link.call import Call, End, Outlet

# Answers ``call`` into ``out`` with what ``node.api.replies`` has for it; raises ApiError. It is cancelled when the
# caller leaves.
Handler = Callable[[Call, Outlet, Services], Awaitable[End]]

HANDLERS: Mapping[str, Handler] = MappingProxyType(
    {
        "models.list": model_operations.list_,
        "models.activate": model_operations.activate,
        "models.load": model_operations.load,
        "models.unload": model_operations.unload,
        "models.yield": model_operations.yield_,
        "models.resume": model_operations.resume,
        "events": debugging.events,
        "capture": debugging.capture,
        "metrics": debugging.metrics,
        "conversations.list": conversations.list_,
        "conversations.export": conversations.export,
        "conversations.clear": conversations.clear,
        "conversations.read": conversations.read,
        "conversations.delete": conversations.delete,
    }
)


async def operate(call: Call, out: Outlet, node: Services) -> End:
    """Carry out ``call``, whose surface is an Operation. Raises ApiError: ``insufficient_scope`` where whoever brought
    it may not administer the node, ``runtime_error`` past its deadline, and what the handler raises."""
    operation = call.surface
    assert isinstance(operation, Operation)
    if operation.role == "admin" and not call.admin:
        raise ApiError("insufficient_scope", _NO_ROLE)
    try:
        async with asyncio.timeout_at(call.deadline):
            return await HANDLERS[operation.name](call, out, node)
    except TimeoutError:
        text = f"The node did not finish {operation.name} within {operation.seconds:g} s. Its log may say why."
        raise ApiError("runtime_error", text) from None


_NO_ROLE = (
    "The edge's machine may ask this node for answers and not administer it. Grant it the role in the tailnet's policy:"
    ' {"role": "admin"} as a value of the capability that node and edge use (tailscale.node_capability).'
)
