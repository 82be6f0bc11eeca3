"""``DELETE /v1/chat/{id}``: stop a generation, wherever it runs."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from edge.api.accounting import charge
from edge.chats import Chat
from edge.services import Services
from shared.contract.errors import ApiError


class StopRoute:
    def __init__(self, edge: Services) -> None:
        self._edge = edge

    async def stop(self, request: Request) -> Response:
        """204 once the chat is stopped; 404 for an id that is unknown, ended, or somebody else's."""
        caller = await charge(request.scope, self._edge, "/v1/chat/{id}")
        chat_id, owner = request.path_params["id"], caller.link_id(self._edge)
        if (chat := self._edge.chats.get(chat_id, owner)) is not None:
            stopped = await _stop_here(chat)
        else:  # another edge may run it: ask every linked node, which checks the owner
            sessions = [session for upstream in self._edge.upstreams.all for session in upstream.sessions]
            stopped = any(await asyncio.gather(*(session.stop(chat_id, owner) for session in sessions)))
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
    chat.end_with(
        ApiError("node_unavailable", "The chat was stopped while its node did not answer.", should_retry=False)
    )
    return True
