"""What a caller does with conversations of its own, besides going on with them: list, read, export, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.api.replies import reply, reply_with, to_json
from node.conversations.conversation import Heading, Storage
from node.conversations.conversations import Conversations
from node.services import Services
from shared.contract.errors import ApiError
from shared.link.call import Call, End, Outlet

_PER_PAGE = 1000  # headings in one answer
# Bytes of an exported page after which no further conversation is added; with the last one it stays under what an edge
# passes on (8 MiB): of 1 MiB of text, JSON's escapes make 6 at most.
_PAGE_BYTES = 2 << 20


async def list_(call: Call, out: Outlet, node: Services) -> End:
    """The newest first. ``?after=ID`` goes on behind that one."""
    headings = await _after(call, conversations_of(node).storage)
    page = headings[:_PER_PAGE]
    return await reply(out, _page([heading.to_wire() for heading in page], more=len(headings) > _PER_PAGE))


async def export(call: Call, out: Outlet, node: Services) -> End:
    """Whole conversations, the newest first, as many as make a page. ``?after=ID`` goes on behind that one."""
    storage = conversations_of(node).storage
    headings = await _after(call, storage)
    rows: list[bytes] = []
    last = ""
    for heading in headings:
        if sum(map(len, rows)) > _PAGE_BYTES:
            break
        if (conversation := await storage.read(call.principal, heading.id)) is not None:
            rows.append(to_json(conversation.to_wire()))
            last = heading.id
    page = to_json(_page([], more=bool(rows) and last != headings[-1].id))
    return await reply_with(out, page.replace(b"[]", b"[" + b",".join(rows) + b"]", 1))


async def clear(call: Call, out: Outlet, node: Services) -> End:
    """Forget all of them."""
    return await reply(out, {"deleted": await conversations_of(node).forget_all(call.principal)})


async def read(call: Call, out: Outlet, node: Services) -> End:
    conversation = await conversations_of(node).storage.read(call.principal, call.path["id"])
    if conversation is None:
        raise _unknown()
    return await reply(out, conversation.to_wire())


async def delete(call: Call, out: Outlet, node: Services) -> End:
    if not await conversations_of(node).forget(call.principal, call.path["id"]):
        raise _unknown()
    return await reply(out, {"id": call.path["id"], "deleted": True})


def conversations_of(node: Services) -> Conversations:
    """Raises ApiError ``not_supported``."""
    if node.conversations is None:
        text = "This node keeps no conversations (node.conversations.keep). Send the whole conversation to /v1/chat."
        raise ApiError("not_supported", text)
    return node.conversations


async def _after(call: Call, storage: Storage) -> list[Heading]:
    headings = await storage.headings(call.principal)
    after = call.path.get("after")
    if after is None:
        return headings
    for index, heading in enumerate(headings):
        if heading.id == after:
            return headings[index + 1 :]
    raise ApiError("invalid_request", "You have no conversation of that id to go on behind.", param="after")


def _page(rows: list[dict[str, Any]], *, more: bool) -> Mapping[str, Any]:
    return {"object": "list", "data": rows, "has_more": more}


def _unknown() -> ApiError:
    text = (
        "You have no conversation of this id; it may have been forgotten. GET /api/conversations lists those you have."
    )
    return ApiError("not_found", text)
