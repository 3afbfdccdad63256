"""A mean over replicas that is exchanged in integers of 8 or 4 bits.

Each replica owns a share of the numbers: it is sent that share by all, takes the mean, and sends it
to all. Both times the numbers go as integers with a scale for each block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from entropy_sgd_jax import _collectives, _trees
from entropy_sgd_jax._typing import AxisName

BLOCK = 64  # numbers with one scale; even


class Integers(NamedTuple):
    """Blocks of numbers, as they are sent."""

    values: jax.Array  # int8, shape (..., n), or uint8 with two of 4 bits in each, (..., n/2)
    scales: jax.Array  # float32, shape (..., 1)


def quantise(blocks: jax.Array, bits: int) -> Integers:
    """Rounds blocks of shape (..., n), n even, to the nearest of 2^bits − 1 levels around zero."""
    levels = 2 ** (bits - 1) - 1
    scales = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) / levels
    safe = jnp.where(scales > 0, scales, jnp.ones_like(scales))
    values = jnp.round(blocks / safe).astype(jnp.int8)
    if bits == 4:
        low, high = values[..., 0::2], values[..., 1::2]
        values = (low & 0xF).astype(jnp.uint8) | ((high & 0xF).astype(jnp.uint8) << 4)
    return Integers(values, scales)


def dequantise(integers: Integers, bits: int) -> jax.Array:
    """The numbers that the integers stand for, shape (..., n), float32."""
    values = integers.values
    if bits == 4:
        pairs = jnp.stack([values & 0xF, values >> 4], axis=-1).astype(jnp.int8)
        signed = jnp.where(pairs > 7, pairs - 16, pairs)
        values = signed.reshape((*values.shape[:-1], -1))
    return values.astype(jnp.float32) * integers.scales


def mean(
    numbers: jax.Array, residual: jax.Array, weight: jax.Array, axis_name: AxisName, bits: int
) -> tuple[jax.Array, jax.Array]:
    """The weighted mean of `numbers` over the replicas, and what rounding leaves out.

    Args:
      numbers: float32, shape (n,); finite.
      residual: what was left out the last time, like `numbers`: of the share that this replica
        owns, what the mean lacked; of all others, what its own numbers lacked.
      weight: of this replica, float32, at least 0, shape ().
      axis_name: of the replicas.
      bits: 8 or 4.

    Returns:
      The mean, equal on all replicas bit for bit, NaN if all weights are 0; and the next residual.
      With constant weights the means add up to what exact ones would, less what is left out at the
      end; with any weights what is left out stays as small.
    """
    replicas, me = lax.psum(1, axis_name), lax.axis_index(axis_name)
    blocks, waiting = _blocks(numbers, replicas), _blocks(residual, replicas)
    # What goes nowhere, and is not rounded.
    mine = (jnp.arange(replicas, dtype=me.dtype) == me)[:, None, None]
    due = jnp.where(mine, blocks, blocks + waiting)
    sent = quantise(due, bits)
    left_out = jnp.where(weight == 0, waiting, due - dequantise(sent, bits))

    shares = jax.tree.map(lambda array: _collectives.deal(array, axis_name), sent)
    weights = _collectives.gather(weight, axis_name)
    total = jnp.sum(weights)
    received = jnp.where(mine, due, dequantise(Integers(*shares), bits))
    share = jnp.tensordot(weights, received, 1, precision=_trees.PRECISION) / total + waiting[me]
    rounded = quantise(share, bits)
    missed = jnp.where(total > 0, share - dequantise(rounded, bits), waiting[me])
    left_out = left_out.at[me].set(missed)

    everything = jax.tree.map(lambda array: _collectives.gather(array, axis_name), rounded)
    averaged = dequantise(Integers(*everything), bits).reshape(-1)[: numbers.size]
    return averaged, left_out.reshape(-1)[: numbers.size]


def _blocks(numbers: jax.Array, replicas: int) -> jax.Array:
    """A share of whole blocks for each replica, padded with zeros."""
    share = -(-numbers.size // (replicas * BLOCK)) * BLOCK
    padded = jnp.pad(numbers, (0, replicas * share - numbers.size))
    return padded.reshape(replicas, -1, BLOCK)
