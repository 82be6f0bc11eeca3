"""Any server by URL: LM Studio, llama.cpp, vLLM, Ollama, SGLang, mlx_lm, or a public API.

A background task looks at the server every few seconds; requests use what it found. What servers do differently is
their ``Dialect``.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit

from loguru import logger

from node.runtime import Inference, LoadConfig, Loaded, RuntimeStatus, RuntimeStream, require_model
from node.runtimes.client import Client
from node.runtimes.dialect import Dialect, Survey
from node.runtimes.dialects import recognise
from node.runtimes.fields import text
from node.runtimes.readiness import choose_status, is_foreign, is_unwell, problem_of
from node.runtimes.transport import Reply, Transport
from node.runtimes.watched import Watched
from shared.addresses import is_loopback
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo

READY_POLL_SECONDS = 5.0  # a model loaded or unloaded by hand is seen within this
FAR_POLL_SECONDS = 60.0  # a public API has nothing in memory to watch, and counts what it is asked
RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0)  # between looks while no request is possible; the last one stays
MIN_PAUSE_SECONDS = 0.1  # between looks, however many requests fail meanwhile
LOOK_SECONDS = 3.0  # for each question; a server that computes on its only thread answers late
# Late answers, or failures of its own, in a row before a server that was ready counts as gone; a refused connection
# counts at once.
PATIENCE = 3
_WORTH_A_LOOK = frozenset({"node_unavailable", "runtime_error", "model_loading", "model_not_found"})
_VERSION = re.compile(r"v\d+\w*")


def api_base(url: str) -> str:
    """The URL under which ``/chat/completions`` stands. ``url`` may name the server alone, or its API with the version
    ("/v1", "/engines/v1", "/v1beta/openai")."""
    url = url.strip().rstrip("/")
    segments = url.partition("://")[2].split("/")[1:]
    return url if any(_VERSION.fullmatch(segment) for segment in segments) else f"{url}/v1"


class _FailedError(Exception):
    """The answer to a look is a failure of the server's own."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class ServerRuntime(Watched):
    """A ``Runtime`` behind ``url``, whose reach the settings have checked (loopback, or allowed).

    ``url`` may be several, of which the first that answers is taken. ``key`` is sent as a bearer token;
    ``default_model`` and ``slots`` replace what the server says. ``earlier`` was the default before a restart.
    ``dialect`` is asked for when it is not given.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        key: str | None = None,
        default_model: str | None = None,
        earlier: str = "",
        slots: int | None = None,
        dialect: type[Dialect] | None = None,
    ) -> None:
        super().__init__()
        self._bases = [api_base(place) for place in ([url] if isinstance(url, str) else url)]
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._wanted_model = default_model
        self._earlier = earlier
        self._wanted_slots = slots
        self._wanted_dialect = dialect
        self._status = RuntimeStatus("starting", f"Looking for the runtime at {self._base}.", slots=slots or 1)
        self._dialect: Dialect | None = None
        self._stale = False  # the server went away: what comes back may have been started in another way
        self._survey = Survey()
        self._late = 0  # answers in a row, or failures
        self._astonished = False  # by what it said, and the log was told
        self._warning = ""  # the last one that was logged
        self._wake = asyncio.Event()
        self._looking = asyncio.Lock()
        self._on_change: Callable[[], None] = lambda: None

    @property
    def _base(self) -> str:
        return self._bases[0]

    @property
    def kind(self) -> str:
        known = self._dialect or self._wanted_dialect
        return known.name if known is not None else "openai"

    @property
    def special_tokens(self) -> frozenset[str]:
        return self._survey.special_tokens

    @property
    def can_load(self) -> bool:
        return self._dialect is not None and self._dialect.can_load

    @property
    def evicts(self) -> bool:
        return self._dialect is None or self._dialect.evicts

    def status(self) -> RuntimeStatus:
        return self._status

    async def start(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._begin(self._watch, "runtime-watch")

    @asynccontextmanager
    async def stream(self, inference: Inference, request_id: str) -> AsyncIterator[RuntimeStream]:
        dialect, model = self._require(inference.model)
        with self._noticing():
            async with dialect.stream(inference, model, self._identified(request_id)) as stream:
                yield stream

    async def ask(self, inference: Inference, request_id: str) -> dict[str, Any]:
        dialect, model = self._require(inference.model)
        with self._noticing():
            return await dialect.ask(inference, model, self._identified(request_id))

    async def count_prompt(self, inference: Inference) -> int | None:
        if self._transport is None or self._dialect is None:
            return None
        return await self._dialect.count_prompt(inference)

    async def check(self, model: str) -> None:
        """Nothing shows before the load: a server says then what is wrong, and its list is looked at all the time."""

    async def load(self, model: str, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        dialect, known = self._loadable(model)
        try:
            with self._noticing():
                return await dialect.load(known, config, tell)
        finally:
            await self.look()

    async def unload(self, model: str) -> None:
        dialect, known = self._loadable(model)
        try:
            with self._noticing():
                await dialect.unload(known)
        finally:
            await self.look()

    def stand_down(self) -> None:
        """A server loads what it is asked for."""

    def _loadable(self, name: str) -> tuple[Dialect, ModelInfo]:
        """As ``_require``, also while nothing is in memory: that no request is possible then is what a load mends."""
        if self._transport is not None and self._dialect is not None:
            known = next((model for model in self._survey.models if model.id == name), None)
            if known is not None:
                return self._dialect, known
        return self._require(name)

    def _require(self, name: str) -> tuple[Dialect, ModelInfo]:
        if self._transport is None or self._status.state != "ready":
            self._wake.set()
        model = require_model(self._status, name)
        return cast(Dialect, self._dialect), model

    def _identified(self, request_id: str) -> Mapping[str, str]:
        # vLLM takes the header as its own id of the request, so it must be unique; the prefix is for people and logs.
        return {**self._headers, "X-Request-Id": f"{request_id}-{secrets.token_hex(4)}"}

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Some failures say that the server is not what it was."""
        try:
            yield
        except ApiError as error:
            if error.code in _WORTH_A_LOOK:
                self._wake.set()
            raise

    async def _watch(self, transport: Transport) -> None:
        failures = 0
        while True:
            self._wake.clear()  # what is noticed from here on wants another look
            await self.look()
            failures = 0 if self._status.state == "ready" else failures + 1
            pause = self._ready_pause() if not failures else RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1]
            await asyncio.sleep(MIN_PAUSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _ready_pause(self) -> float:
        near = is_loopback(urlsplit(self._base).hostname or "")
        known = self._dialect is not None and self._dialect.kind != "openai"
        return READY_POLL_SECONDS if near or known else FAR_POLL_SECONDS

    async def look(self) -> None:
        """Look at the server now, and tell when its status is another."""
        if self._transport is None:
            return
        async with self._looking:
            status = await self._seen(self._transport)
            changed, self._status = status != self._status, status
        if changed:
            self._on_change()
        if self._survey.warning != self._warning:
            self._warning = self._survey.warning
            if self._warning:
                logger.warning("the runtime ({}): {}", self.kind, self._warning)

    async def _seen(self, transport: Transport) -> RuntimeStatus:
        try:
            survey = await self._surveyed(transport)
        except TimeoutError:
            return self._unwell("takes connections but does not answer. Restart it, or see its log.")
        except _FailedError as failed:
            return self._unwell(f"answers HTTP {failed.status} when it is asked for its models. Its own log says why.")
        except OSError:
            self._late, self._stale = 0, True
            places = " or ".join(sorted(self._bases))
            return self._gone(f"Nothing answers at {places}. Start the runtime there, or correct node.runtime.url.")
        except Exception as error:  # whatever it says of itself, the next look is taken
            self._late = 0
            if not self._astonished:
                self._astonished = True
                logger.warning(
                    "the runtime ({}) describes itself in an unknown way: {}", self.kind, type(error).__name__
                )
            return self._gone(f"The runtime at {self._base} describes its models in a way unknown here.")
        self._late = 0
        self._survey = survey
        return choose_status(
            survey,
            cast(Dialect, self._dialect),
            self._base,
            wanted=self._wanted_model,
            previous=self._status.default_model,
            earlier=self._earlier,
            slots=self._wanted_slots,
        )

    async def _surveyed(self, transport: Transport) -> Survey:
        client, reply = await self._first_that_answers(transport)
        if is_unwell(reply):
            raise _FailedError(reply.status)
        dialect = self._dialect = await self._spoken(client, reply)
        if not (problem := problem_of(reply, client.base)):
            items = reply.payload.get("data") or ()
            survey = await dialect.survey([item for item in items if isinstance(item, dict) and text(item, "id")])
            if not (problem := survey.problem):
                return survey
        return replace(self._survey, models=(), on_disk=(), problem=problem, warning="")

    async def _first_that_answers(self, transport: Transport) -> tuple[Client, Reply]:
        """What /models says at the first place where it is a runtime that answers; else at the last. That place is the
        first one from now on, and the order is what it was when there is none. Raises as ``Client.ask``."""
        for left in reversed(range(len(self._bases))):
            client = Client(transport, self._base, self._headers, LOOK_SECONDS)
            try:
                reply = await client.ask(f"{self._base}/models")
            except TimeoutError:
                raise
            except OSError:
                self._next_place()
                if not left:
                    raise
                continue
            if not is_foreign(reply):
                return client, reply
            self._next_place()
            if not left:
                return client, reply
        raise AssertionError("there is at least one place")

    def _next_place(self) -> None:
        self._bases.append(self._bases.pop(0))
        self._stale = True

    async def _spoken(self, client: Client, models: Reply) -> Dialect:
        """Found out anew while no request is possible: another server may have come."""
        known = self._dialect
        if known is not None and self._status.state == "ready" and not self._stale:
            return known
        kind = self._wanted_dialect or await recognise(client, models)
        if known is not None and type(known) is kind and not self._stale:
            return known
        self._stale = False
        return kind(client)

    def _unwell(self, what: str) -> RuntimeStatus:
        """It may be busy, or restarting behind a proxy: that is forgiven PATIENCE times."""
        self._late += 1
        if self._status.state == "ready" and self._late < PATIENCE:
            return self._status
        return self._gone(f"The runtime at {self._base} {what}")

    def _gone(self, reason: str) -> RuntimeStatus:
        """Nothing can be asked. The default model is kept in mind: it is likely to come back."""
        return replace(self._status, state="unavailable", reason=reason, models=())
