"""A mean over replicas to which each sends only the largest of its numbers, and where they are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from entropy_sgd_jax import _collectives
from entropy_sgd_jax._quantisation import dequantise, quantise
from entropy_sgd_jax._typing import AxisName

CHUNK = 4096  # numbers of which the largest are sent
DECAY = 0.95  # of what was not sent, by the next exchange; it does the work of a momentum


def mean(
    numbers: jax.Array,
    residual: jax.Array,
    weight: jax.Array,
    axis_name: AxisName,
    top_k: int,
    bits: int | None,
) -> tuple[jax.Array, jax.Array]:
    """The weighted mean of the largest `top_k` of each chunk, and what is not sent.

    Args:
      numbers: float32, shape (n,); finite.
      residual: what was not sent the last time, like `numbers`; a part of it is added to them.
      weight: of this replica, float32, at least 0, shape ().
      axis_name: of the replicas.
      top_k: of each chunk.
      bits: 8 or 4, of those that are sent; None for float32.

    Returns:
      The mean, equal on all replicas bit for bit, NaN if all weights are 0; and the next residual,
      which is the same if the weight is 0.
    """
    chunks = _chunks(numbers) + DECAY * _chunks(residual)
    _, places = lax.top_k(jnp.abs(chunks), top_k)
    chosen = jnp.take_along_axis(chunks, places, axis=1)
    sent = chosen if bits is None else quantise(chosen, bits)

    def spread(sent: Any, places: jax.Array) -> jax.Array:
        values = sent if bits is None else dequantise(sent, bits)
        rows = jnp.arange(len(chunks))[:, None]
        return jnp.zeros_like(chunks).at[rows, places].set(values, unique_indices=True)

    def add(total: jax.Array, one: Any) -> tuple[jax.Array, None]:
        sent, places, weight = one
        return total + weight * spread(sent, places), None

    # One replica after the other, so that all add the same numbers in the same order.
    everything = jax.tree.map(
        lambda array: _collectives.gather(array, axis_name),
        (sent, places.astype(jnp.uint16), weight),
    )
    *_, weights = everything
    zeros = _collectives.varying(jnp.zeros_like(chunks), weights)
    averaged = (lax.scan(add, zeros, everything)[0] / jnp.sum(weights)).reshape(-1)
    left_out = (chunks - spread(sent, places)).reshape(-1)[: numbers.size]
    return averaged[: numbers.size], jnp.where(weight == 0, residual, left_out)


def _chunks(numbers: jax.Array) -> jax.Array:
    """Whole chunks, padded with zeros.

    Pad before any arithmetic: on several CPU devices XLA crashes if it pads a sum of selects
    (JAX 0.10).
    """
    return jnp.pad(numbers, (0, -numbers.size % CHUNK)).reshape(-1, CHUNK)
