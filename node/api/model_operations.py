"""``/admin/models``: what the owner does to the models of the node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from loguru import logger

from node.api.replies import EventStream, reply
from node.models.defaults import Activation, LoadOrder, Nothing, Unloading, wire_names
from node.models.models import AWAY, Brought
from node.running import Running
from node.services import Services
from shared.contract.body import Body, parse_body
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo
from shared.link.call import Call, End, Outlet

# Seconds that ended answers have to leave before their model goes.
_ENDING_WITHIN = 2.0
# Seconds that answers have to end by themselves before an unload is refused; the operation's own bound is later.
_UNLOAD_WITHIN = 110.0


async def list_(call: Call, out: Outlet, node: Services) -> End:
    """``GET /admin/models``."""
    status, models = node.models.status(), node.models
    active = status.model(models.active)
    aliases: dict[str, list[str]] = {}
    for model in status.models:
        if model.alias_of:
            aliases.setdefault(model.alias_of, []).append(model.id)
    return await reply(
        out,
        {
            "object": "list",
            "runtime": {
                "kind": node.runtime.kind,
                "state": "yielded" if models.yielded else status.state,
                "reason": status.reason,
                "can_load": node.runtime.can_load,
            },
            "default": status.default_model,
            "active": {"modelKey": active.id, "defaultInference": dict(models.inference)} if active else None,
            "data": [_row(model, aliases.get(model.id, []), node) for model in status.models if not model.alias_of],
        },
    )


async def activate(call: Call, out: Outlet, node: Services) -> End:
    """``POST /admin/models/activate``."""
    body = _read(call, Activation)
    inference = body.default_inference
    model = await node.models.activate(
        body.model_key, None if inference is None else inference.model_dump(exclude_none=True, by_alias=True)
    )
    return await reply(
        out,
        {
            "status": "activated",
            "message": f"Requests that name no model go to {model}.",
            "modelKey": model,
            "defaultInference": dict(node.models.inference),
        },
    )


async def load(call: Call, out: Outlet, node: Services) -> End:
    """``POST /admin/models/load``."""
    body = _read(call, LoadOrder)

    async def work(tell: Callable[[str, float | None], None]) -> dict[str, Any]:
        config = body.load_config.config()
        brought = await node.models.load(body.model_key, config, tell)
        model = node.models.named(body.model_key)
        if body.activates:
            inference = body.default_inference
            given = None if inference is None else inference.model_dump(exclude_none=True, by_alias=True)
            await node.models.activate(model, given)
        elif brought.status == "activated":
            steps = " ".join(brought.loaded.workflow)
            raise ApiError("not_supported", f"{node.runtime.kind} has no way to load a model. {steps}")
        return _outcome(brought, model, node.models.status().default_model, activated=body.activates)

    return await _with_progress(call, out, work)


async def unload(call: Call, out: Outlet, node: Services) -> End:
    """``POST /admin/models/unload``."""
    body = _read(call, Unloading)
    try:
        async with asyncio.timeout(_UNLOAD_WITHIN):
            model, gone = await node.models.unload(body.model_key)
    except TimeoutError:
        text = "Answers of the model still run. Try again later, or end them all with POST /admin/models/yield."
        raise ApiError("overloaded", text) from None
    message = f"{model} is out of memory." if gone else f"{model} was not in memory."
    return await reply(out, {"status": "unloaded" if gone else "not_loaded", "message": message, "modelKey": model})


async def yield_(call: Call, out: Outlet, node: Services) -> End:
    """``POST /admin/models/yield``."""
    _read(call, Nothing)
    freed = await node.models.give_up(lambda: _end_answers(node.running))
    message = "The node answers nobody until `hearthlink model resume`."
    if freed:
        message += f" Out of memory: {', '.join(freed)}."
    if not node.runtime.can_load:
        message += f" {node.runtime.kind} has no way to unload from outside: free its memory there."
    return await reply(out, {"status": "yielded", "message": message, "unloaded": freed})


async def resume(call: Call, out: Outlet, node: Services) -> End:
    """``POST /admin/models/resume``."""
    _read(call, Nothing)

    async def work(tell: Callable[[str, float | None], None]) -> dict[str, Any]:
        was = node.models.yielded
        loaded = await node.models.resume(tell)
        message = "The node answers again." if was else "The node was not yielded: it answers as before."
        if loaded:
            message += f" In memory: {', '.join(loaded)}."
        return {"status": "resumed", "message": message, "loaded": loaded}

    return await _with_progress(call, out, work)


async def _end_answers(running: Running) -> None:
    """End all, each with a typed error, and wait until they have left. What has not begun yet another node may
    answer: the edge asks one when this one is unavailable."""
    running.end_all(lambda begun: ApiError("server_draining" if begun else "node_unavailable", AWAY))
    try:
        async with asyncio.timeout(_ENDING_WITHIN):
            while len(running):  # noqa: ASYNC110 - once in a while, and for an instant
                await asyncio.sleep(0.01)
    except TimeoutError:
        logger.warning("{} answers did not end in time and lose their model", len(running))


def _read(call: Call, kind: type[Body]) -> Body:
    return parse_body(kind, call.body or b"{}")


async def _with_progress(
    call: Call, out: Outlet, work: Callable[[Callable[[str, float | None], None]], Awaitable[dict[str, Any]]]
) -> End:
    """What ``work`` gives as the answer: as JSON, or on a stream as ``result`` behind ``loading`` events."""
    if not call.stream:
        return await reply(out, await work(lambda model, progress: None))
    stream = EventStream(out)
    result = await work(lambda model, progress: stream.note("loading", {"model": model, "progress": progress}))
    return await stream.end("result", result)


def _outcome(brought: Brought, model: str, default: str, *, activated: bool) -> dict[str, Any]:
    said = {
        "loaded": f"{model} is in memory.",
        "already_loaded": f"{model} was in memory already.",
        "activated": f"Requests that name no model go to {model}; nothing was loaded.",
    }[brought.status]
    if model != default:
        said += f" Requests that name no model still go to {default}."
    elif activated and brought.status != "activated":
        said += " Requests that name no model go to it."
    loaded = brought.loaded
    return {
        "status": brought.status,
        "message": said,
        "modelKey": model,
        "applied": wire_names(loaded.applied),
        "ignored": wire_names(loaded.ignored),
        "workflow": {f"step{n}": step for n, step in enumerate(loaded.workflow, 1)} or None,
    }


def _row(model: ModelInfo, aliases: list[str], node: Services) -> dict[str, Any]:
    """``context_length`` and ``max_context_length`` are tokens, ``size`` bytes; 0 where the runtime does not say."""
    config = node.models.config(model.id).given()
    return {
        "id": model.id,
        "state": model.state,
        "kind": model.kind,
        "context_length": model.context,
        "max_context_length": model.max_context,
        "size": model.size,
        "slots": model.slots or node.turns.slots,
        "vision": model.vision,
        "aliases": aliases,
        "running": node.models.users(model.id),
        "load_config": dict(zip(wire_names(config), config.values(), strict=True)),
    }
