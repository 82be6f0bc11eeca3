"""vLLM as it behaves towards its peers, without a GPU.

Each behaviour cites the part of the reference on runtimes that it is written from.

    async with FakeVLLM("base", adapters=["lora"], context=2048) as vllm:
        vllm.running, vllm.waiting = 4, 2    # what /metrics says
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.fake_presets import PRESETS
from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import DONE, Script, chunk, event, refuse, usage_chunk, words

ROUTES = ("chat/completions", "completions", "embeddings", "responses")


class FakeVLLM(FakeRuntime):
    """``dev_mode``: started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1. ``metrics`` switches /metrics off.

    ``running``, ``waiting`` (for room), ``deferred`` (for other reasons), ``memory`` (0 to 1) and ``tokens`` are what
    /metrics says, each half of two engines. ``old`` says it as older versions did. ``bytes_per_token`` is how it counts
    prompts; ``thoughts`` come before each answer.
    """

    def __init__(
        self,
        model: str = "base",
        *,
        adapters: Sequence[str] = (),
        context: int = 2048,
        blocks: int = 1024,
        dev_mode: bool = False,
        metrics: bool = True,
        openapi: bool = True,
    ) -> None:
        super().__init__(self._chat, server_header="uvicorn", context=context)
        self.base = model
        self.adapters = adapters
        self.blocks = blocks
        self.dev_mode = dev_mode
        self.metrics = metrics
        self.openapi = openapi
        self.old = False
        self.bytes_per_token = 4
        self.thoughts: Sequence[str] = ()
        self.asleep = False
        self.running: float = 0
        self.waiting = self.deferred = self.tokens = 0
        self.memory = 0.0
        self.slept: list[str] = []  # queries of /sleep

    async def answer(self, exchange: Exchange) -> None:
        if exchange.path == "/metrics" and self.metrics:
            self.exchanges.append(exchange)
            await exchange.respond(200, self._metrics().encode(), "text/plain; version=0.0.4")
        elif (found := self._own(exchange)) is not None:
            self.exchanges.append(exchange)
            self.changed()
            if self.asleep:
                await self._abort()
            await exchange.respond(*found)
        else:
            await super().answer(exchange)

    def _own(self, exchange: Exchange) -> tuple[int, Any] | None:
        path = exchange.path
        if path == "/v1/models":
            return 200, {"object": "list", "data": [self._item(self.base), *map(self._item, self.adapters)]}
        if path == "/openapi.json" and self.openapi:
            return 200, {"openapi": "3.1.0", "paths": {f"/v1/{route}": {} for route in ROUTES}}
        if path in ("/is_sleeping", "/sleep", "/wake_up") and self.dev_mode:
            if path == "/is_sleeping":
                return 200, {"is_sleeping": self.asleep}  # runtimes §3
            assert exchange.method == "POST"
            self.asleep = path == "/sleep"
            if self.asleep:
                self.slept.append(exchange.query)
            return 200, b""
        return None

    def _item(self, name: str) -> dict[str, Any]:
        """(runtimes §3: data[]{id, owned_by, root, parent, max_model_len}; adapters have their base as parent)"""
        item: dict[str, Any] = {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": name}
        if name == self.base:
            return {**item, "parent": None, "max_model_len": self.context}
        return {**item, "parent": self.base, "max_model_len": None}

    def _metrics(self) -> str:
        """(runtimes §3: the gauge by reason beside the one without, a sample per engine, an info of the cache)"""
        names = {"vllm:num_requests_running": self.running, "vllm:num_requests_waiting": self.waiting + self.deferred}
        memory = "vllm:gpu_cache_usage_perc" if self.old else "vllm:kv_cache_usage_perc"
        names |= {"vllm:prompt_tokens_total": self.tokens, "vllm:generation_tokens_total": self.tokens}
        lines = ["# HELP vllm:num_requests_running Number of requests.", "# TYPE vllm:num_requests_running gauge"]
        for name, value in names.items():
            lines += [f'{name}{{engine="{engine}",model_name="x"}} {value / 2}' for engine in (0, 1)]
        if not self.old:
            for reason, value in (("capacity", self.waiting), ("deferred", self.deferred)):
                lines.append(f'vllm:num_requests_waiting_by_reason{{engine="0",reason="{reason}"}} {value:.1f}')
        lines.append(f'{memory}{{engine="0"}} {self.memory}')
        lines.append(f'vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="{self.blocks}"}} 1.0')
        return "\n".join(lines) + "\n"

    def _script_for(self, exchange: Exchange) -> Script:
        """An unknown model is a 404, and prompt and longest answer together beyond the context are a 400 (runtimes §3).
        One that sleeps crashes when it is asked (vllm-project/vllm #15483)."""
        script = super()._script_for(exchange)
        body = exchange.json
        prompt = sum(len(message["content"]) // self.bytes_per_token for message in body["messages"])
        if self.asleep:
            return PRESETS["reset_before_headers"]
        if body["model"] not in (self.base, *self.adapters):
            return refuse(404, _error("NotFoundError", f"The model `{body['model']}` does not exist.", 404))
        if prompt + body["max_tokens"] > self.context:
            text = f"This model's maximum context length is {self.context} tokens."
            return refuse(400, _error("BadRequestError", text, 400))
        return script

    async def _chat(self, exchange: Exchange) -> None:
        """(runtimes §3: a first chunk with a role and no text, ``reasoning``, ``stop_reason`` in the last but the
        usage)"""
        await exchange.start_stream()
        thoughts = [chunk({"reasoning": thought}) for thought in self.thoughts]
        for piece in (chunk({"role": "assistant", "content": ""}), *thoughts):
            await exchange.send(piece)
        for word in words(5):
            await exchange.send(chunk({"content": word}))
        last = {"index": 0, "delta": {"content": ""}, "finish_reason": "stop", "stop_reason": None}
        await exchange.send(event({"id": "x", "object": "chat.completion.chunk", "created": 1, "choices": [last]}))
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        await exchange.send(usage_chunk(usage) + DONE)
        await exchange.end_stream()

    async def _abort(self) -> None:
        """What sleep does to the answers under way (runtimes §3: mode=abort; ``finish_reason`` abort)."""
        for exchange in self.chats:
            if exchange.outcome == "running":
                await exchange.send(chunk({}, "abort") + DONE)
                await exchange.end_stream()
                await exchange.drop()


def _error(kind: str, message: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
