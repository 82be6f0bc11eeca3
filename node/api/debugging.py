"""``/admin/events`` and ``/admin/metrics``: what the node does, for its owner."""

from __future__ import annotations

import asyncio
import dataclasses

from loguru import logger
from pydantic import BaseModel, ConfigDict, Field

from node.api.replies import DONE, EventStream, reply
from node.services import Services
from shared import __version__
from shared.contract.body import parse_body
from shared.link.call import Call, End, Outlet

# Seconds after which a stream on which nothing happened says that it lives.
_ALIVE_EVERY = 15.0
# What was said is told for an hour at most: capturing that somebody forgot ends by itself.
_MOST_MINUTES = 60.0


class CaptureOrder(BaseModel):
    """Body of ``POST /admin/events/capture``."""

    model_config = ConfigDict(extra="forbid")

    minutes: float = Field(ge=0, le=_MOST_MINUTES)


async def events(call: Call, out: Outlet, node: Services) -> End:
    """``GET /admin/events``: as they happen, until the caller leaves or the node ends. With
    ``recent`` in the query the remembered ones come first; to one who wants no stream they are the answer."""
    if not call.stream:
        return await reply(out, {"capturing": node.events.capturing, "events": node.events.recent()})
    stream = EventStream(out)
    stream.begin()
    with node.events.watching(replay="recent" in call.path) as watcher:
        while True:
            try:
                async with asyncio.timeout(_ALIVE_EVERY):
                    event = await anext(watcher)
            except TimeoutError:
                await out.data(b": nothing new\n\n")
            except StopAsyncIteration:
                return DONE
            else:
                await stream.send(event["kind"], event)


async def capture(call: Call, out: Outlet, node: Services) -> End:
    """``POST /admin/events/capture``: let events hold what is said, for some minutes; 0 ends it."""
    minutes = parse_body(CaptureOrder, call.body).minutes
    node.events.capture(minutes * 60)
    if minutes:
        logger.warning("events hold what is said for {:g} minutes: the owner captures", minutes)
    node.events.publish("capture", minutes=minutes)
    return await reply(out, {"capturing": node.events.capturing, "minutes": minutes})


async def metrics(call: Call, out: Outlet, node: Services) -> End:
    """``GET /admin/metrics``: what Prometheus is told, as JSON."""
    await node.gpus.refresh()
    status = node.models.status()
    return await reply(
        out,
        {
            "node": {"id": node.node_id, "version": __version__},
            "runtime": {"kind": node.runtime.kind, "state": status.state, "default_model": status.default_model},
            "lanes": [
                {"lane": name or "shared", "slots": slots, "running": running, "queued": queued}
                for name, (slots, running, queued) in node.turns.lanes().items()
            ],
            "gpus": [dataclasses.asdict(gpu) for gpu in node.gpus.now],
            "metrics": node.metrics.to_json(),
        },
    )
