"""Any OpenAI-compatible server by URL: LM Studio, llama.cpp, vLLM, Ollama, SGLang, mlx_lm, or a public API.

A background task looks at the server every few seconds; a chat uses what it found.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import cast

from node.runtimes.base import Generation, RuntimeStatus, RuntimeStream, require_model
from node.runtimes.prompt_size import count_prompt
from node.runtimes.readiness import choose_status
from node.runtimes.request_body import request_body
from node.runtimes.servers import Survey, Surveyor
from node.runtimes.transport import HttpStream, Transport
from node.runtimes.watched import Watched
from shared.contract.errors import ApiError
from shared.contract.sse import Framer, SSEError

READY_POLL_SECONDS = 5.0  # a model loaded or unloaded by hand is seen within this
RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0)  # between looks while no chat is possible; the last one stays
MIN_PAUSE_SECONDS = 0.1  # between looks, however many chats fail meanwhile
LOOK_SECONDS = 3.0  # for each question; a server that computes on its only thread answers late
PATIENCE = 3  # late answers in a row before a server that was ready counts as gone; a refused connection counts at once
_WORTH_A_LOOK = frozenset({"node_unavailable", "runtime_error", "model_loading", "model_not_found"})
_VERSION = re.compile(r"v\d+\w*")


def api_base(url: str) -> str:
    """The URL under which ``/chat/completions`` stands. ``url`` may name the server alone, or its API with the version
    ("/v1", "/engines/v1", "/v1beta/openai")."""
    url = url.strip().rstrip("/")
    segments = url.partition("://")[2].split("/")[1:]
    return url if any(_VERSION.fullmatch(segment) for segment in segments) else f"{url}/v1"


class OpenAIRuntime(Watched):
    """A ``Runtime`` behind ``url``, whose reach the settings have checked (loopback, or allowed).

    ``key`` is sent as a bearer token; ``default_model`` and ``slots`` replace what the server says.
    """

    def __init__(
        self, url: str, *, key: str | None = None, default_model: str | None = None, slots: int | None = None
    ) -> None:
        super().__init__()
        self._base = base = api_base(url)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._wanted_model = default_model
        self._wanted_slots = slots
        self._status = RuntimeStatus("starting", f"Looking for the runtime at {base}.", slots=slots or 1)
        self._survey = Survey("")
        self._wake = asyncio.Event()
        self._first_use = asyncio.Lock()

    @property
    def kind(self) -> str:
        return self._survey.server or "openai"

    @property
    def special_tokens(self) -> frozenset[str]:
        return self._survey.special_tokens

    def status(self) -> RuntimeStatus:
        return self._status

    async def start(self, on_change: Callable[[], None]) -> None:
        self._begin(lambda transport: self._watch(transport, on_change), "runtime-watch")

    @asynccontextmanager
    async def chat(self, generation: Generation, request_id: str) -> AsyncIterator[RuntimeStream]:
        if self._transport is None or self._status.state != "ready":
            self._wake.set()
        model = require_model(self._status, generation.model)
        transport = cast(Transport, self._transport)
        # vLLM takes the header as its own id of the request, so it must be unique; the prefix is for people and logs.
        headers = {**self._headers, "X-Request-Id": f"{request_id}-{secrets.token_hex(4)}"}
        body = request_body(generation, self._survey.server, model.context)
        url = f"{self._base}/chat/completions"
        try:
            stream = await self._open(model.id, lambda: transport.stream(url, headers, body))
            try:
                yield _UniqueIds(stream) if self._survey.server == "Ollama" else stream
            finally:
                stream.close()
        except ApiError as error:
            if error.code in _WORTH_A_LOOK:
                self._wake.set()
            raise

    async def count_prompt(self, generation: Generation) -> int | None:
        """Only llama.cpp tells."""
        if self._transport is None or self._survey.server != "llama.cpp":
            return None
        return await count_prompt(self._transport, self._base, self._headers, generation)

    async def _open(self, model: str, ask: Callable[[], Awaitable[HttpStream]]) -> HttpStream:
        """LM Studio gets the requests that find their model missing one at a time, up to the head of the answer: two of
        them would load it twice (lmstudio-bug-tracker #1751)."""
        if self._survey.server != "LM Studio" or model in self._survey.loaded:
            return await ask()
        async with self._first_use:
            stream = await ask()
            self._survey = replace(self._survey, loaded=self._survey.loaded | {model})
            return stream

    async def _watch(self, transport: Transport, on_change: Callable[[], None]) -> None:
        surveyor = Surveyor(transport, self._base, self._headers, LOOK_SECONDS)
        failures = late = 0
        while True:
            status, late = await self._look(surveyor, late)
            if status != self._status:
                self._status = status
                on_change()
            failures = 0 if status.state == "ready" else failures + 1
            pause = READY_POLL_SECONDS if not failures else RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1]
            await asyncio.sleep(MIN_PAUSE_SECONDS)
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _look(self, surveyor: Surveyor, late: int) -> tuple[RuntimeStatus, int]:
        """One look: the status that follows, and how many answers in a row were late."""
        try:
            survey = await surveyor.look(self._survey.server if self._status.state == "ready" else None)
        except TimeoutError:
            if self._status.state == "ready" and late + 1 < PATIENCE:
                return self._status, late + 1
            problem = f"The runtime at {self._base} takes connections but does not answer. Restart it, or see its log."
            return self._gone(problem), late + 1
        except OSError:
            return self._gone(
                f"Nothing answers at {self._base}. Start the runtime there, or correct node.runtime.url."
            ), 0
        except (KeyError, TypeError, ValueError, AttributeError):
            return self._gone(f"The runtime at {self._base} describes its models in a way unknown here."), 0
        self._survey = survey
        status = choose_status(
            survey, self._base, wanted=self._wanted_model, previous=self._status.default_model, slots=self._wanted_slots
        )
        return status, 0

    def _gone(self, reason: str) -> RuntimeStatus:
        """Nothing can be asked. The default model is kept in mind: it is likely to come back."""
        return replace(self._status, state="unavailable", reason=reason, models=())


# Ollama numbers its answers 0 to 998 at random.
_OLLAMA_ID = re.compile(rb'"id":\s?"chatcmpl-\d{1,3}"')


class _UniqueIds:
    """A stream whose events carry an id that no other stream has, whatever the runtime wrote. Gives whole events."""

    def __init__(self, stream: RuntimeStream) -> None:
        self._stream = stream
        self._framer = Framer()
        self._id = b'"id":"chatcmpl-%s"' % secrets.token_hex(12).encode()

    @property
    def content_type(self) -> str:
        return self._stream.content_type

    @property
    def at_end(self) -> bool:
        return self._stream.at_end

    async def read_slowly(self, seconds: float) -> bytes:
        return self._own(await self._stream.read_slowly(seconds))

    async def read(self) -> bytes:
        while piece := await self._stream.read():
            if whole := self._own(piece):
                return whole
        return b""

    def _own(self, piece: bytes) -> bytes:
        try:
            return _OLLAMA_ID.sub(self._id, self._framer.feed(piece))
        except SSEError:
            raise ApiError("upstream_invalid", "The model runtime sent an event over 1 MiB.") from None
