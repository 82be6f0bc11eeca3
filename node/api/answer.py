"""One answer, from a caller's body to the last event. The link and the node's own HTTP surface both end here.

    parse ─> compose (model, chat type, parameters) ─> a turn ─> the model in memory ─> the runtime ─> its format ─> END

What differs between surfaces stands in ``node.api.ways``, one row each; ``node.api.way`` says how to add one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from node.api.compose import Composed, compose
from node.api.length import refuse_too_long
from node.api.story import Story
from node.api.voice import Herald, Silent, Streamed, Voice, Whole
from node.api.way import Way
from node.api.ways import WAYS
from node.formats.format import Reading
from node.running import Stopped
from node.runtime import Inference, RuntimeStream
from node.runtimes import upstream_errors
from node.services import Services
from node.watch import Watch
from shared.contract.body import BYTES_PER_TOKEN, AnyBody, parse_body
from shared.contract.errors import ApiError
from shared.contract.surface import Surface
from shared.link.call import Call, End, Outlet

# Seconds the runtime's verdict is awaited before a stream's 200 leaves (design §3.4).
COMMIT_WITHIN = 2.0
# Seconds between two looks at an answer that leaves as a whole: its end is noticed at once, its events need no hurry.
_LOOK_EVERY = 0.05
# Seconds for the end of a body whose [DONE] is here: it lets the connection serve the next request.
_TAIL_WITHIN = 0.05


async def answer(call: Call, out: Outlet, node: Services) -> End:
    """Answer ``call``, whose surface is a Surface, into ``out``; returns how it ended. Tokens are counted in
    ``call.tally`` throughout.

    Leaving early in any way, cancellation included, closes the connection to the runtime at once and gives back the
    slot or the place in the queue. Raises ApiError; what was sent before stands.
    """
    surface = call.surface
    assert isinstance(surface, Surface), "an operation is no answer"
    story = Story(call, node)
    try:
        body = parse_body(surface.body, call.body)
        way = WAYS[surface.name]
        async with way.before(body, call, node) if way.before is not None else contextlib.nullcontext() as held:
            composed = compose(body, call, way, node, held)
            story.asked(composed)
            if way.format is not None:
                await _speak(call, body, way, composed, out, node, story)
            else:
                await _hand_over(call, body, way, composed, out, node, story)
    except ApiError as error:
        story.failed(error)
        raise
    finally:
        story.ended()
    return End(story.outcome, call.tally.usage(), composed.inference.model)


async def _speak(
    call: Call, body: AnyBody, way: Way, composed: Composed, out: Outlet, node: Services, story: Story
) -> None:
    """An answer that the runtime streams, whether or not it leaves as a stream."""
    assert way.format is not None
    reading = way.format.reading(call, composed.inference, upstream_errors.from_event)
    if call.stream:
        voice: Voice = Streamed(call, body, composed, way.format, reading, out, story.wants_text)
    else:
        voice = Whole(call, body, composed, way.format, reading, out)
    try:
        async with _turn(call, composed, voice, node, story) as (inference, watch):
            while True:
                try:
                    async with node.runtime.stream(inference, call.request_id) as upstream:
                        await _relay(upstream, voice, reading, composed, watch, story)
                        story.outcome = reading.finish_reason or "length"
                        await story.heard(voice)
                        await voice.finish(story.outcome)
                        if reading.done and not upstream.at_end:
                            await _read_tail(upstream)
                    break
                except ApiError as error:
                    inference = _shorter(error, inference, composed, reading)
                    watch.since = asyncio.get_running_loop().time()
    except Stopped:
        story.outcome = "stopped"
        await story.heard(voice)
        await voice.finish("stop")


def _shorter(error: ApiError, inference: Inference, composed: Composed, reading: Reading) -> Inference:
    """What to ask instead, when the runtime finds a prompt too long that can be shorter. Else raises ``error``."""
    shorten = composed.prompt.shorten
    if error.code == "context_length_exceeded" and shorten is not None and not reading.tally.completion_tokens:
        shorter = shorten(inference)
        if shorter is not None:
            return shorter
    raise error


async def _hand_over(
    call: Call, body: AnyBody, way: Way, composed: Composed, out: Outlet, node: Services, story: Story
) -> None:
    """An answer that the runtime gives as one object."""
    assert way.shape is not None
    voice = Silent(composed, out)
    try:
        async with _turn(call, composed, voice, node, story) as (inference, _):
            given = await node.runtime.ask(inference, call.request_id)
            # Thousands of vectors take a second to write, for which the streams of others would stand still.
            reply = await asyncio.to_thread(way.shape, given, body, inference)
            usage = reply.usage
            call.tally.prompt_tokens, call.tally.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    except Stopped:
        raise ApiError("runtime_error", "The request was stopped before there was an answer.") from None
    story.outcome = "stop"
    await voice.give(reply)


@contextlib.asynccontextmanager
async def _turn(
    call: Call, composed: Composed, herald: Herald, node: Services, story: Story
) -> AsyncIterator[tuple[Inference, Watch]]:
    """It is this request's turn, and its model is in memory, while the block runs; under the deadlines of an answer."""
    inference, model = composed.inference, composed.model
    if composed.prompt.fit is not None:
        inference = await composed.prompt.fit(inference)
    cost = (composed.prompt.tokens or len(call.body) // BYTES_PER_TOKEN) + inference.max_tokens
    lane = model.home if model.slots else ""
    prefix = f"{composed.chat_type or ''}\0{call.principal}"

    def queued(place: int, eta: float | None) -> None:
        story.queued(place)
        herald.queued(place, eta)

    async with Watch(node.ticker, node.timeouts.first_token, node.timeouts.stall, call.deadline) as watch:
        entry = node.running.entry(call.chat_id, call.principal, watch.interrupt, lambda: herald.begun)
        with entry, _commit_soon(herald):
            if node.turns.would_queue(lane):
                await refuse_too_long(node.runtime, inference, model.context)
            async with (
                node.turns.take(call.principal, cost, queued, lane=lane, prefix=prefix) as turn,
                node.models.hold(model.home, herald.loading),
            ):
                if model.alias_of and node.runtime.status().model(model.id) is None:
                    inference = replace(inference, model=model.home)  # while this one waited the other name has left
                if composed.prompt.fit is not None and not model.in_memory:  # only now is its context known
                    inference = await composed.prompt.fit(inference)
                story.started(turn.waited)
                watch.since = asyncio.get_running_loop().time()  # the runtime may be silent before its head, too
                try:
                    yield inference.at(turn.slot), watch
                finally:
                    turn.spent = call.tally.usage().total_tokens


@contextlib.contextmanager
def _commit_soon(herald: Herald) -> Iterator[None]:
    if not herald.live:
        yield
        return
    timer = asyncio.get_running_loop().call_later(COMMIT_WITHIN, herald.commit)
    try:
        yield
    finally:
        timer.cancel()


async def _relay(
    upstream: RuntimeStream, voice: Voice, reading: Reading, composed: Composed, watch: Watch, story: Story
) -> None:
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
            reading.tally.prompt_tokens = reading.tally.prompt_tokens or composed.prompt.tokens
            story.first_token(watch.first_token_at - watch.entered_at)
        if reading.too_long():
            return
    reading.check_end()


async def _read_tail(upstream: RuntimeStream) -> None:
    # Without an end this connection just will not be used again; the answer is whole.
    with contextlib.suppress(TimeoutError, ApiError):
        async with asyncio.timeout(_TAIL_WITHIN):
            await upstream.read()
