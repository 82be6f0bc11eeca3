"""What is refused whoever asks, the cheapest first: before a credential is looked at, or anybody else is asked.

    Gate      the name of the server that is meant, and the caller's address
    open_to   whether the owner has closed the edge for now

Before it come connections, sizes and deadlines (``shared.asgi.protocol``); behind it credential, load and limits.
"""

from __future__ import annotations

from edge.api.caller import caller_ip
from edge.api.maintenance import closed
from edge.services import Services
from shared.asgi.responses import send_error
from shared.asgi.types import App, Receive, Scope, Send, header
from shared.contract.errors import ApiError


class Gate:
    """Right behind Front, so that even a preflight is not answered to whom it shuts out."""

    def __init__(self, app: App, edge: Services) -> None:
        self._app = app
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
            return
        scope["state"]["error"] = error
        await send_error(send, error, scope["state"]["request_id"])

    def _refusal(self, scope: Scope) -> ApiError | None:
        policy, listener = self._edge.policy, scope["state"].get("listener")
        if listener == "public":
            known = policy.hosts.admits(header(scope, b"host"))
        elif listener == "ops":
            known = policy.ops_hosts.admits(header(scope, b"host"))
        else:
            known = True  # behind Tailscale Serve a name is the tailnet's to give
        if not known:
            text = "This edge does not answer to the name in Host. Its owner lists more names in edge.allowed_hosts."
            return ApiError("invalid_request", text)
        # On the listener for operations there is nobody but this machine, whose owner must not lock themselves out.
        if listener == "ops" or policy.callers.empty or policy.callers.allow(caller_ip(scope, self._edge)):
            return None
        return ApiError("address_not_allowed", "This edge does not take requests from your address.")


def open_to(app: App, edge: Services) -> App:
    """``app``, but for whom it is closed while there is maintenance. It belongs inside of Envelope, and of CORS: a page
    shows its visitors the owner's message."""

    async def opened(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := closed(scope, edge)) is not None:
            raise error
        await app(scope, receive, send)

    return opened
