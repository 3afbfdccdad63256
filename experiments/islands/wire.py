"""Pseudo-gradients as they travel between islands: integers with a scale for each block."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_sgd_jax._quantisation import BLOCK, Integers, dequantise, quantise


class Message(NamedTuple):
    """A tree of numbers in integers."""

    values: np.ndarray  # shape (blocks, BLOCK), int8, or (blocks, BLOCK / 2), two of 4 bits in each
    scales: np.ndarray  # shape (blocks, 1), float32
    bits: int

    @property
    def nbytes(self) -> int:
        """What goes over the wire."""
        return self.values.nbytes + self.scales.nbytes


class Sender:
    """Rounds trees, and adds to each what rounding left out of those before."""

    def __init__(self, bits: int) -> None:
        """With 8 or 4 bits for a number."""
        self._bits = bits
        self._residual: jax.Array | float = 0.0

    def send(self, tree: Any) -> Message:
        """`tree`, of one structure in all calls, as a message."""
        numbers = ravel_pytree(tree)[0].astype(jnp.float32)
        padded = jnp.pad(numbers, (0, -numbers.size % BLOCK)).reshape(-1, BLOCK)
        integers, self._residual = _round(padded + self._residual, self._bits)
        return Message(*map(np.asarray, integers), self._bits)


def receive(message: Message, like: Any) -> Any:
    """The tree that `message` stands for, with the structure and shapes of `like`."""
    numbers, unravel = ravel_pytree(like)
    integers = Integers(jnp.asarray(message.values), jnp.asarray(message.scales))
    return unravel(dequantise(integers, message.bits).reshape(-1)[: numbers.size])


def weighted_mean(trees: list[Any], weights: list[float]) -> Any:
    """The mean of trees of one structure; weights at least 0, of which one is above."""
    shares = np.asarray(weights, np.float32) / np.sum(weights, dtype=np.float32)
    return jax.tree.map(lambda *leaves: sum(map(jnp.multiply, leaves, shares)), *trees)


@functools.partial(jax.jit, static_argnums=1)
def _round(blocks: jax.Array, bits: int) -> tuple[Integers, jax.Array]:
    integers = quantise(blocks, bits)
    return integers, blocks - dequantise(integers, bits)
