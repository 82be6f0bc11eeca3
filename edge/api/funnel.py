"""What comes from the internet by Tailscale Funnel is refused: the listener for Serve is for people of the tailnet."""

from __future__ import annotations

import time

from loguru import logger

from edge.api.caller import by_serve
from shared.asgi.responses import send_error
from shared.asgi.types import Scope, Send, header
from shared.contract.errors import ApiError

# Seconds between two lines that say how Funnel is turned off: the internet knocks all day.
_SAY_EVERY = 3600.0


class FunnelGuard:
    """The answer is a stranger's, so what to do about it goes to the log, for the owner."""

    def __init__(self) -> None:
        self._said = float("-inf")

    def concerns(self, scope: Scope) -> bool:
        """Whether a request of HTTP came that way. There is no WebSocket here that it could open."""
        return scope["type"] == "http" and by_serve(scope) and header(scope, b"tailscale-funnel-request") is not None

    async def refuse(self, scope: Scope, send: Send) -> None:
        """Answer it with 403 ``address_not_allowed``."""
        if (now := time.monotonic()) - self._said >= _SAY_EVERY:
            self._said = now
            # `tailscale funnel … off` would take out whatever else is served at that port.
            logger.warning(
                "somebody from the internet came by Tailscale Funnel and was refused: this edge is for its tailnet."
                " Take it off Funnel: hearthlink setup tailnet --off, and then hearthlink setup tailnet"
            )
        error = ApiError("address_not_allowed", "This edge is open to its tailnet, and not to the internet.")
        scope["state"]["error"] = error
        await send_error(send, error, scope["state"]["request_id"])
