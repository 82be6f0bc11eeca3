"""``DELETE /v1/chat/{id}``: stop a generation, wherever it runs."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from edge.api.audit import note
from edge.api.caller import identify
from edge.chats import Chat
from edge.services import Services
from shared.contract.errors import ApiError


class StopRoute:
    def __init__(self, edge: Services) -> None:
        self._edge = edge

    async def stop(self, request: Request) -> Response:
        """204 once the chat is stopped; 404 for an id that is unknown, ended, or somebody else's."""
        note(request.scope, route="/v1/chat/{id}")
        caller = identify(request.scope, self._edge)
        note(request.scope, principal=caller.principal.id)
        await self._edge.store.charge_request(caller.ip, caller.principal, caller.plan)
        chat_id = request.path_params["id"]
        if (chat := self._edge.chats.get(chat_id, caller.link_id)) is not None:
            stopped = await _stop_here(chat)
        else:  # another edge may run it: ask every linked node, which checks the owner
            sessions = [session for upstream in self._edge.upstreams.all for session in upstream.sessions]
            stopped = any(await asyncio.gather(*(session.stop(chat_id, caller.link_id) for session in sessions)))
        if not stopped:
            raise ApiError("not_found", "No chat with this id is running for you.")
        return Response(status_code=204)


async def _stop_here(chat: Chat) -> bool:
    """Whether it ran. Its node ends it cleanly; where that does not answer, or another one has the chat by then, the
    edge ends it, and the node is told as soon as it can be."""
    asked = chat.session
    stopped = await asked.stop(chat.id, chat.principal)
    if stopped is not None and chat.session is asked:
        return stopped
    chat.interrupt.end_with(
        ApiError("node_unavailable", "The chat was stopped while its node did not answer.", should_retry=False)
    )
    return True
