"""The network: llama's architecture, as a function of its weights.

Query and key rows are paired as llama.cpp pairs them for this architecture (2i with 2i+1), so that export copies them.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

Weights = dict[str, jax.Array]
EPSILON = 1e-5  # of the RMS norms, as written into the file
ROPE_BASE = 10000.0
_BLOCK = 128  # queries at a time; keys after the last of them are never looked at, which saves near half the work


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes; ``width`` is that of the residual stream, ``hidden`` that of the feed-forward layers."""

    vocabulary: int
    width: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    hidden: int = 512

    @property
    def head(self) -> int:
        return self.width // self.heads


def initial(shape: Shape, seed: int) -> Weights:
    """Random weights; the matrices of all layers are stacked. What writes to the residual stream begins smaller."""
    random = np.random.default_rng(seed)

    def normal(*sizes: int, scale: float = 0.02) -> jax.Array:
        return jnp.asarray(random.standard_normal(sizes) * scale, jnp.float32)

    layers, width, kv_width = shape.layers, shape.width, shape.kv_heads * shape.head
    small = 0.02 / (2 * layers) ** 0.5
    return {
        "token_embd": normal(shape.vocabulary, width),
        "output_norm": jnp.ones(width),
        "attn_norm": jnp.ones((layers, width)),
        "ffn_norm": jnp.ones((layers, width)),
        "attn_q": normal(layers, width, width),
        "attn_k": normal(layers, kv_width, width),
        "attn_v": normal(layers, kv_width, width),
        "attn_output": normal(layers, width, width, scale=small),
        "ffn_gate": normal(layers, shape.hidden, width),
        "ffn_up": normal(layers, shape.hidden, width),
        "ffn_down": normal(layers, width, shape.hidden, scale=small),
    }


def logits(weights: Weights, shape: Shape, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Scores of the next token, (rows, length, vocabulary). ``segments`` numbers the conversations of a row: a token
    sees only those before it with its own number."""
    length = tokens.shape[1]
    turn = _turns(length, shape.head)
    seen = jnp.tril(jnp.ones((length, length), bool)) & (segments[:, :, None] == segments[:, None, :])
    bias = jnp.where(seen, 0.0, -1e9)[:, None, None]  # (rows, 1, 1, query, key)
    stream = weights["token_embd"][tokens]
    for layer in range(shape.layers):
        own = {name: weight[layer] for name, weight in weights.items() if weight.ndim > 1 and name != "token_embd"}
        stream = stream + _attention(own, shape, _norm(stream, own["attn_norm"]), turn, bias)
        inner = _norm(stream, own["ffn_norm"])
        gated = jax.nn.silu(inner @ own["ffn_gate"].T) * (inner @ own["ffn_up"].T)
        stream = stream + gated @ own["ffn_down"].T
    return _norm(stream, weights["output_norm"]) @ weights["token_embd"].T


def loss(weights: Weights, shape: Shape, tokens: jax.Array, segments: jax.Array, importance: jax.Array) -> jax.Array:
    """Mean of -log p (nats) of each next token, weighted; ``importance[r, t]`` is that of predicting ``t + 1``."""
    scores = logits(weights, shape, tokens[:, :-1], segments[:, :-1])
    right = jnp.take_along_axis(scores, tokens[:, 1:, None], -1)[..., 0]
    surprise = jax.nn.logsumexp(scores, -1) - right
    return (surprise * importance).sum() / jnp.maximum(importance.sum(), 1.0)


def _norm(stream: jax.Array, weight: jax.Array) -> jax.Array:
    return stream * jax.lax.rsqrt(jnp.mean(stream * stream, -1, keepdims=True) + EPSILON) * weight


def _attention(
    own: Weights, shape: Shape, inner: jax.Array, turn: tuple[jax.Array, jax.Array], bias: jax.Array
) -> jax.Array:
    rows, length, _ = inner.shape
    group = shape.heads // shape.kv_heads
    query = _rotate((inner @ own["attn_q"].T).reshape(rows, length, shape.heads, shape.head), turn)
    query = query.reshape(rows, length, shape.kv_heads, group, shape.head) * shape.head**-0.5
    key = _rotate((inner @ own["attn_k"].T).reshape(rows, length, shape.kv_heads, shape.head), turn)
    value = (inner @ own["attn_v"].T).reshape(rows, length, shape.kv_heads, shape.head)
    mixed: list[jax.Array] = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        scores = jnp.einsum("btkgd,bskd->bkgts", query[:, start:end], key[:, :end])
        share = jax.nn.softmax(scores + bias[..., start:end, :end], -1)
        mixed.append(jnp.einsum("bkgts,bskd->btkgd", share, value[:, :end]))
    return jnp.concatenate(mixed, 1).reshape(rows, length, shape.width) @ own["attn_output"].T


def _turns(length: int, head: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each position's angle, for each pair of a head."""
    angles = np.arange(length)[:, None] * ROPE_BASE ** (-np.arange(0, head, 2) / head)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def _rotate(vectors: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    cosine, sine = turn[0][:, None], turn[1][:, None]
    even, odd = vectors[..., 0::2], vectors[..., 1::2]
    return jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).reshape(vectors.shape)
