"""What Prometheus may ask of the node at any moment: slots, links, GPUs, disks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from node.services import Services

_GPU = {
    "gpu_utilization": ("utilization", "Share of time that the GPU computed lately, 0 to 1"),
    "gpu_memory_used_bytes": ("memory_used", "Memory of the GPU in use"),
    "gpu_memory_total_bytes": ("memory_total", "Memory of the GPU"),
    "gpu_temperature_celsius": ("temperature_celsius", "Temperature of the GPU"),
    "gpu_power_watts": ("power_watts", "Power that the GPU draws"),
}
_LANES = (
    ("lane_slots", "Slots of a lane"),
    ("lane_running", "Answers running in it"),
    ("lane_queued", "Waiting in it"),
)


def add_gauges(node: Services, links: Callable[[], int], folders: Mapping[str, Path]) -> None:
    """``links`` counts the edges connected; ``folders`` are those whose disks must not fill up, by what they hold."""
    gauge, gauges = node.metrics.gauge, node.metrics.gauges
    gauge("running", "Answers running", lambda: node.turns.running)
    gauge("queued", "Requests waiting for a slot", lambda: node.turns.queued)
    gauge("slots", "Answers that may run at once", lambda: node.turns.slots)
    gauge("ready", "1 when the runtime can answer", lambda: node.models.status().state == "ready")
    gauge("links", "Edges connected", links)
    for column, (name, text) in enumerate(_LANES):
        gauges(name, f'{text}: a model with slots of its own, or "shared"', "lane", partial(_lanes, node, column))
    for name, (field, text) in _GPU.items():
        gauges(name, text, "gpu", partial(node.gpus.values, field))
    gauges("disk_free_bytes", "Room on the disk of a folder", "folder", partial(_room, folders))


def _lanes(node: Services, column: int) -> dict[str, float]:
    return {name or "shared": lane[column] for name, lane in node.turns.lanes().items()}


def _room(folders: Mapping[str, Path]) -> dict[str, float]:
    """Bytes that may still be written; a folder that is not there yet has the room of the one that it will be in.
    Nothing of one that cannot be looked at."""
    found: dict[str, float] = {}
    for name, folder in folders.items():
        with suppress(OSError):  # a share that is away, a folder of somebody else
            there = next((path for path in (folder, *folder.parents) if path.exists()), None)
            if there is not None:
                found[name] = shutil.disk_usage(there).free
    return found
