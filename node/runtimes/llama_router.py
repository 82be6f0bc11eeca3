"""llama.cpp as a router: it starts a process per model. Where there are too many it ends the one longest unused, with
what that answers just then; so there never are too many by our doing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from node.runtime import LoadConfig, Loaded
from node.runtimes import load_errors
from node.runtimes.client import Client
from node.runtimes.fields import number, rows, table, text
from node.runtimes.transport import Reply
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo

POLL_SECONDS = 0.25  # its loads go on by themselves, so their end is looked for
BEGIN_SECONDS = 5.0  # from the order to the first sign of a load
LOAD_SECONDS = 1800.0  # 100 GB at 60 MB/s; one without a source stays "loading" for ever (ggml-org/llama.cpp #27541)
ORDER_SECONDS = 15.0  # an unload is answered once the process has ended
UNLOAD_SECONDS = 30.0  # it kills what does not end within 10 s
_ALREADY = re.compile(r"already|not running|not loaded", re.I)
_UNKNOWN = re.compile(r"not found|does not exist", re.I)
# What its presets call the fields of LoadConfig; there is no share of the layers.
_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "context_length": "ctx-size",
        "gpu_layers": "n-gpu-layers",
        "cpu_threads": "threads",
        "rope_frequency_base": "rope-freq-base",
        "rope_frequency_scale": "rope-freq-scale",
    }
)


class LlamaRouter:
    """Its models by name. One load or unload at a time is its user's care: two at once can strand a request
    (ggml-org/llama.cpp #28443)."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def props(self, model: str) -> Mapping[str, Any]:
        """Of the process that has ``model`` in memory; neither wakes nor loads it."""
        return await self._client.json(f"/props?model={quote(model, safe='')}&autoload=false")

    async def load(self, model: ModelInfo, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        """As ``Runtime.load``. How a model is loaded stands in the router's own presets."""
        async with _within(LOAD_SECONDS, "was not loaded in time. The router's own log says why"):
            if model.state not in ("loaded", "sleeping"):
                await self._order("load", model.id)
                await self._loaded(model.id, tell)
            context = number(table(await self.props(model.id), "default_generation_settings"), "n_ctx")
        applied = ("context_length",) if context and config.context_length == context else ()
        ignored = tuple(name for name in config.given() if name not in applied)
        return Loaded(applied, ignored, _by_hand(model.id, config, ignored))

    async def unload(self, model: ModelInfo) -> None:
        """As ``Runtime.unload``; it is out of memory on return."""
        async with _within(UNLOAD_SECONDS, "was not unloaded in time. The router's own log says why"):
            await self._order("unload", model.id)
            while True:
                if (status := await self._status(model.id)) is not None and text(status, "value") in ("unloaded", ""):
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def _order(self, verb: str, model: str) -> None:
        reply = await self._client.ask(f"{self._client.root}/models/{verb}", {"model": model}, ORDER_SECONDS)
        if reply.status == 200:
            return
        said = _said(reply)
        if _UNKNOWN.search(said):
            raise ApiError("model_not_found", "The router has no such model (any more).", param="model")
        if not _ALREADY.search(said):
            raise _failed(f"was not {verb}ed: the router answered HTTP {reply.status}")

    async def _loaded(self, model: str, tell: Callable[[float | None], None]) -> None:
        """Wait for the end of a load. Only one that was seen to begin has failed when the model is out of memory:
        before, the router may not have come to it, and ``failed`` can stand from earlier (llama.cpp #23257)."""
        began, since = False, asyncio.get_running_loop().time()
        while True:
            if (status := await self._status(model)) is not None:
                value = text(status, "value")
                if value in ("loaded", "sleeping"):
                    return
                loading = value in ("loading", "downloading")
                began = began or loading
                if not loading and (began or asyncio.get_running_loop().time() - since > BEGIN_SECONDS):
                    raise _failed("could not be loaded. The router's own log says why")
                tell(_share(status.get("progress")))
            await asyncio.sleep(POLL_SECONDS)

    async def _status(self, model: str) -> dict[str, Any] | None:
        """What the list says of ``model``, {} when it is not there; None when the router is too busy to tell."""
        try:
            listed = rows(await self._client.json("/models"), "data")
        except TimeoutError:
            return None
        return next((table(item, "status") for item in listed if text(item, "id") == model), {})


@asynccontextmanager
async def _within(seconds: float, failure: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise _failed(failure) from None
    except OSError:
        raise load_errors.gone() from None


def _share(progress: object) -> float | None:
    if isinstance(progress, int | float) and not isinstance(progress, bool) and 0 <= progress <= 1:
        return float(progress)
    return None


def _said(reply: Reply) -> str:
    error = reply.payload.get("error") if isinstance(reply.payload, dict) else reply.payload
    return text(error, "message") or str(error)


def _failed(what: str) -> ApiError:
    return ApiError("runtime_error", f"The model {what}.", should_retry=False)


def _by_hand(model: str, config: LoadConfig, ignored: tuple[str, ...]) -> tuple[str, ...]:
    if not ignored:
        return ()
    given = config.given()
    lines = [f"{_OPTIONS[name]} = {given[name]:g}" for name in ignored if name in _OPTIONS]
    if "gpu_ratio" in ignored and "gpu_layers" not in ignored:
        lines.append("n-gpu-layers = the number of layers that is this share")
    return (
        f"Write into the file of `llama-server --models-preset`, under [{model}]: {', '.join(lines)}.",
        "Start llama-server again, then load the model.",
    )
