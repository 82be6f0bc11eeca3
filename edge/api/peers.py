"""Machines of the tailnet at a port of loopback: in userspace networking tailscaled connects there in their place.

Their address is this machine's, and they are no more of this machine than anybody on the network: not its owner where
authentication is off, not whom ``X-User-Id`` names, not an operator, and not Tailscale Serve.
"""

from __future__ import annotations

import asyncio

from loguru import logger

from edge.api.caller import by_serve
from edge.services import Services
from shared.asgi.responses import send_error
from shared.asgi.types import Scope, Send
from shared.contract.errors import ApiError
from shared.tailscale.errors import TailscaleError, Unreachable

# Seconds for tailscaled to say whose a connection is, which takes it a millisecond; the health waits for that.
_TOLD_WITHIN = 1.0


def may_be_peers(scope: Scope, edge: Services) -> bool:
    """Whether tailscaled has to be asked: where it is not known to have an interface of its own, and on a listener
    where to be on this machine means anything."""
    if edge.tailnet is None or edge.tailnet.view.tun is True or scope["type"] != "http" or not scope["client"]:
        return False
    policy = edge.policy
    return scope["state"].get("listener") != "public" or policy.user_ids or not policy.require_authentication


async def is_peers(scope: Scope, edge: Services) -> bool:
    """Whether the connection is a peer's, by whois of its own two ends; also when that cannot be told."""
    assert edge.local is not None
    host, port = scope["client"]
    try:
        async with asyncio.timeout(_TOLD_WITHIN):
            return await edge.local.whois(host, port, protocol="tcp") is not None
    except Unreachable:
        return False  # whom it connected went with it
    except (TailscaleError, TimeoutError) as error:
        why = str(error) or "tailscaled does not say whose the connection is"
        logger.warning("a caller from {} has no rights of this machine: {}", host, why)
        return True


async def treat_as_peers(scope: Scope, send: Send) -> bool:
    """Take the rights of this machine from the request; False: it is answered already, with 403
    ``address_not_allowed``, since where Serve hands over nobody else has any business."""
    if not by_serve(scope):
        scope["state"]["listener"] = "tailnet"
        return True
    text = "This connection comes from the tailnet itself and not from Tailscale Serve. Open the edge through Serve."
    error = scope["state"]["error"] = ApiError("address_not_allowed", text)
    await send_error(send, error, scope["state"]["request_id"])
    return False
