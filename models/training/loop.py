"""The loop of training: batches of short rows, then of long ones, until the time is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import jax
import numpy as np

from models.training import network, optimiser
from models.training.network import Shape, Weights
from models.training.rows import Rows
from models.training.schedule import Schedule

_BATCH_TOKENS = 4224  # per step, whatever the length of the rows
_SEED = 1
_REPORT_EVERY = 100  # steps; the weights are written as often
_CHECKED_ROWS = 44  # of those held out


def train(
    weights: Weights,
    shape: Shape,
    rows: tuple[Rows, Rows],
    held_out: Rows,
    schedule: Schedule,
    write: Callable[[Weights], None],
) -> None:
    """Train on the short and then the long of ``rows`` until ``schedule`` is over. ``write`` gets the weights now and
    then, and at the end."""
    batches = [_batches(some) for some in rows]
    state, step = optimiser.start(weights), optimiser.make_step(shape)
    measure = jax.jit(network.loss, static_argnums=1)
    losses: list[jax.Array] = []
    for number in count(1):
        if schedule.over:
            break
        batch = next(batches[schedule.long_rows])
        state, loss = step(state, *batch, np.float32(number), np.float32(schedule.rate(number)))
        losses.append(loss)
        if number % _REPORT_EVERY == 0:
            write(state.weights)
            recent = float(np.mean([float(one) for one in losses[-_REPORT_EVERY:]]))
            checked = _held_out_loss(measure, state.weights, shape, held_out)
            print(f"step {number}: loss {recent:.4f}, held out {checked:.4f}, {schedule.elapsed:.0f} s", flush=True)
    write(state.weights)
    print(f"{len(losses)} steps, held out {_held_out_loss(measure, state.weights, shape, held_out):.4f}", flush=True)


def _batches(rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows in a random order, again and again."""
    random = np.random.default_rng(_SEED)
    size = max(1, _BATCH_TOKENS // rows.tokens.shape[1])
    while True:
        order = random.permutation(len(rows))
        for at in range(0, len(order) - size + 1, size):
            yield rows.batch(order[at : at + size])


def _held_out_loss(
    measure: Callable[[Weights, Shape, np.ndarray, np.ndarray, np.ndarray], jax.Array],
    weights: Weights,
    shape: Shape,
    held_out: Rows,
) -> float:
    """Nats per token of the assistant."""
    losses: list[float] = []
    for at in range(0, _CHECKED_ROWS, 11):
        tokens, segments, importance = held_out.batch(np.arange(at, at + 11))
        losses.append(float(measure(weights, shape, tokens, segments, (importance == 1).astype(np.float32))))
    return sum(losses) / len(losses)
