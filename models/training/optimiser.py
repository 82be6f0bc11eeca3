"""One step of training: Muon for the matrices, Adam for embeddings and norms.

Muon: Keller Jordan et al., kellerjordan.github.io/posts/muon. It orthogonalises the momentum of a matrix, and reaches a
given loss in about half of AdamW's steps at this size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from models.training import network
from models.training.network import Shape, Weights

_MATRIX_RATE = 0.02
_ADAM_RATE = 0.005
_MOMENTUM = 0.95
_ADAM_FIRST, _ADAM_SECOND = 0.9, 0.95
_DECAY = 0.05  # of the rate, per step; not for norms
_CLIP = 1.0  # largest norm of the gradient


class State(NamedTuple):
    """Weights and the running means of their gradients. ``second`` is used by Adam only."""

    weights: Weights
    first: Weights
    second: Weights


Step = Callable[[State, ArrayLike, ArrayLike, ArrayLike, ArrayLike, ArrayLike], tuple[State, jax.Array]]


def start(weights: Weights) -> State:
    return State(weights, jax.tree.map(jnp.zeros_like, weights), jax.tree.map(jnp.zeros_like, weights))


def make_step(shape: Shape) -> Step:
    """``step(state, tokens, segments, importance, number, rate) -> (state, loss)``; ``number`` counts from 1 and
    ``rate`` is the share of the full learning rate."""
    return jax.jit(partial(_step, shape), donate_argnums=0)


def _step(
    shape: Shape,
    state: State,
    tokens: jax.Array,
    segments: jax.Array,
    importance: jax.Array,
    number: jax.Array,
    rate: jax.Array,
) -> tuple[State, jax.Array]:
    loss, gradients = jax.value_and_grad(network.loss)(state.weights, shape, tokens, segments, importance)
    size = jnp.sqrt(sum(jnp.sum(gradient * gradient) for gradient in jax.tree.leaves(gradients)))
    shrink = jnp.minimum(1.0, _CLIP / (size + 1e-6))
    new = State({}, {}, {})
    for name, weight in state.weights.items():
        gradient = gradients[name] * shrink
        update = _muon if weight.ndim == 3 else _adam
        new.weights[name], new.first[name], new.second[name] = update(
            name, weight, gradient, state.first[name], state.second[name], number, rate
        )
    return new, loss


def _muon(
    name: str,
    weight: jax.Array,
    gradient: jax.Array,
    first: jax.Array,
    second: jax.Array,
    number: jax.Array,
    rate: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    first = _MOMENTUM * first + gradient
    direction = _orthogonal(gradient + _MOMENTUM * first) * max(1, weight.shape[-2] / weight.shape[-1]) ** 0.5
    speed = rate * _MATRIX_RATE
    return weight * (1 - speed * _DECAY) - speed * direction, first, second


def _adam(
    name: str,
    weight: jax.Array,
    gradient: jax.Array,
    first: jax.Array,
    second: jax.Array,
    number: jax.Array,
    rate: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    first = _ADAM_FIRST * first + (1 - _ADAM_FIRST) * gradient
    second = _ADAM_SECOND * second + (1 - _ADAM_SECOND) * gradient**2
    direction = (first / (1 - _ADAM_FIRST**number)) / (jnp.sqrt(second / (1 - _ADAM_SECOND**number)) + 1e-8)
    decay = 0.0 if name.endswith("norm") else _DECAY
    return weight - rate * _ADAM_RATE * (direction + decay * weight), first, second


def _orthogonal(matrix: jax.Array) -> jax.Array:
    """The nearest orthogonal matrix, roughly, of each layer: five Newton-Schulz steps with Muon's constants."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    found = jnp.swapaxes(matrix, -1, -2) if tall else matrix
    found = found / (jnp.linalg.norm(found, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(5):
        square = found @ jnp.swapaxes(found, -1, -2)
        found = 3.4445 * found + (-4.7750 * square + 2.0315 * (square @ square)) @ found
    return jnp.swapaxes(found, -1, -2) if tall else found
