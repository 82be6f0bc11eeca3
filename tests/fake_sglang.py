"""SGLang as it behaves towards its peers, without a GPU.

Each behaviour cites the part of the reference on runtimes that it is written from.
"""

from __future__ import annotations

from typing import Any

from tests.fake_runtime import Choice, Exchange, FakeRuntime


class FakeSGLang(FakeRuntime):
    """``running``, ``queued`` and ``memory`` (0 to 1) are what /metrics says, nothing while ``running`` is None: it is
    started without --enable-metrics. ``aborted_ids`` are the requests that somebody asked to abort."""

    def __init__(self, script: Choice = "normal", *, at_once: int = 0, sees: bool = False) -> None:
        super().__init__(script, server_header="uvicorn")
        self.at_once = at_once
        self.sees = sees
        self.running: int | None = None
        self.queued = 0
        self.memory = 0.0
        self.aborted_ids: list[str] = []

    async def answer(self, exchange: Exchange) -> None:
        if exchange.path == "/metrics" and self.running is not None:
            gauges = {"num_running_reqs": self.running, "num_queue_reqs": self.queued, "token_usage": self.memory}
            text = "".join(f"sglang:{name} {value}\n" for name, value in gauges.items())  # runtimes §5
            await exchange.respond(200, text.encode(), "text/plain")
        elif (found := self._own(exchange)) is not None:
            self.exchanges.append(exchange)
            await exchange.respond(*found)
        else:
            await super().answer(exchange)

    def _own(self, exchange: Exchange) -> tuple[int, Any] | None:
        if exchange.path == "/v1/models":
            return 200, {"data": [{"id": "m", "object": "model", "owned_by": "sglang", "max_model_len": 100}]}
        if exchange.path == "/get_model_info":  # runtimes §0.1; its fields: sglang's srt/entrypoints/http_server.py
            return 200, {"model_path": "m", "is_generation": True, "has_image_understanding": self.sees}
        if exchange.path == "/get_server_info" and self.at_once:
            # A state for each scheduler (sglang's srt/managers/scheduler.py).
            return 200, {"internal_states": [{"effective_max_running_requests_per_dp": self.at_once}] * 2}
        if exchange.path == "/abort_request":  # runtimes §5: POST {rid}
            self.aborted_ids.append(exchange.json["rid"])
            return 200, {}
        return None
