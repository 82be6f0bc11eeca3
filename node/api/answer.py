"""One chat, from a caller's body to the last event. The link and the node's own HTTP surface both end here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from node.api.compose import compose
from node.api.length import refuse_too_long
from node.api.voice import Voice, new_reading, voice_for
from node.normalise import Reading
from node.running import Stopped
from node.runtimes.base import RuntimeStream, require_model
from node.services import Services
from node.watch import Watch
from shared.contract.chat import parse_body
from shared.contract.errors import ApiError
from shared.link.call import Call, End, Outlet

# Seconds the runtime's verdict is awaited before a stream's 200 leaves (design §3.4).
COMMIT_WITHIN = 2.0
# Seconds between two looks at an answer that leaves as a whole: its end is noticed at once, its events need no hurry.
_LOOK_EVERY = 0.05
# Seconds for the end of a body whose [DONE] is here: it lets the connection serve the next request.
_TAIL_WITHIN = 0.05


async def answer(call: Call, out: Outlet, node: Services) -> End:
    """Answer ``call`` into ``out``; returns how it ended. Tokens are counted in ``call.tally`` throughout.

    Leaving early in any way, cancellation included, closes the connection to the runtime at once and gives back the
    slot or the place in the queue. Raises ApiError; what was sent before stands.
    """
    body = parse_body(call.surface.body, call.body)
    cap = min(node.max_tokens, call.max_tokens or node.max_tokens)
    status = node.runtime.status()
    generation = compose(body, node.chat_types, node.neutraliser, status.default_model, cap)
    model = require_model(status, generation.model)
    reading = new_reading(call, generation.max_tokens)
    voice = voice_for(call, body, reading, out)
    outcome = "cancelled"
    try:
        async with Watch(node.ticker, node.timeouts.first_token, node.timeouts.stall, call.deadline) as watch:
            with node.running.entry(call.chat_id, call.principal, watch.interrupt), _commit_soon(voice):
                if node.turns.would_queue:
                    await refuse_too_long(node.runtime, generation, model.context)
                async with node.turns.take(call.principal, generation.max_tokens, voice.queued):
                    watch.since = asyncio.get_running_loop().time()  # the runtime may be silent before its head, too
                    async with node.runtime.chat(generation, call.request_id) as upstream:
                        await _relay(upstream, voice, reading, watch)
                        outcome = reading.finish_reason or "length"
                        await voice.finish(outcome)
                        if reading.done and not upstream.at_end:
                            await _read_tail(upstream)
        if watch.first_token_at is not None:
            node.metrics.first_token.observe(watch.first_token_at - watch.entered_at)
    except Stopped:
        outcome = "stopped"
        await voice.finish("stop")
    except ApiError as error:
        outcome = error.code
        raise
    finally:
        node.metrics.ended(call.surface.name, outcome, call.tally.usage())
    return End(outcome, call.tally.usage(), generation.model)


@contextlib.contextmanager
def _commit_soon(voice: Voice) -> Iterator[None]:
    if not voice.live:
        yield
        return
    timer = asyncio.get_running_loop().call_later(COMMIT_WITHIN, voice.commit)
    try:
        yield
    finally:
        timer.cancel()


async def _relay(upstream: RuntimeStream, voice: Voice, reading: Reading, watch: Watch) -> None:
    """Until the runtime is done. Raises ApiError when the answer is cut or broken."""
    clock = asyncio.get_running_loop().time
    while not reading.done:
        watch.since = watch.since or clock()
        chunk = await (upstream.read() if voice.live else upstream.read_slowly(_LOOK_EVERY))
        if not chunk:
            if voice.live or upstream.at_end:
                break
            continue
        watch.since = None
        await voice.feed(chunk)
        if watch.first_token_at is None and reading.tally.completion_tokens:
            watch.first_token_at = clock()
        if reading.too_long():
            return
    reading.check_end()


async def _read_tail(upstream: RuntimeStream) -> None:
    # Without an end this connection just will not be used again; the answer is whole.
    with contextlib.suppress(TimeoutError, ApiError):
        async with asyncio.timeout(_TAIL_WITHIN):
            await upstream.read()
