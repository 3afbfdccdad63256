"""Small functions over parameter trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax


def cast_like(tree: Any, like: Any) -> Any:
    """`tree` in the dtypes of `like`."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b)), tree, like)


def zeros_like(tree: Any) -> Any:
    """Zeros in the shapes and dtypes of `tree`."""
    return jax.tree.map(jnp.zeros_like, tree)


def where(condition: chex.Array, chosen: Any, otherwise: Any) -> Any:
    """The one tree or the other, by a scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, otherwise)


def unless(condition: chex.Array, tree: Any, otherwise: Callable[[], Any]) -> Any:
    """`tree` unless the condition holds, in which rare case `otherwise()`.

    A loop of no or one round, and free where it has none: XLA runs loops in place, while a cond
    copies whatever passes through it, and a select reads both trees.
    """
    return lax.while_loop(
        lambda carry: carry[0], lambda carry: (~carry[0], otherwise()), (condition, tree)
    )[1]


def all_finite(tree: Any) -> chex.Array:
    """Whether no leaf has a NaN or Inf in it; shape (), bool.

    The loop of two rounds is opaque to XLA. Without it, each use of the result would compute it
    from all leaves anew: a program of n leaves and n uses compiled in a time that grows as n².
    """
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.array(True)
    halves = jnp.stack([*leaves, *leaves[: len(leaves) % 2]]).reshape(2, -1)
    start = halves[0, 0] | True  # as device-dependent as the leaves
    return lax.fori_loop(0, 2, lambda i, finite: finite & jnp.all(halves[i]), start)


def inner_product(a: Any, b: Any) -> chex.Array:
    """The sum of all products; shape ()."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), start=jnp.zeros(()))


def norm(tree: Any) -> chex.Array:
    """The Euclidean norm over all leaves; shape ()."""
    return jnp.sqrt(inner_product(tree, tree))


def follow(param: chex.Array, iterate: chex.Array) -> chex.Array:
    """x′ where `params` is x′, but the state may know more digits of it.

    `params` rules: whatever else moves it (a projection, a restored checkpoint) moves x′. Only
    where a narrower `param` is just `iterate` rounded does the state's x′ stand.
    """
    dtype = jnp.result_type(param)
    if jnp.finfo(dtype).bits >= jnp.finfo(iterate.dtype).bits:
        return jnp.asarray(param, iterate.dtype)
    # Compared as bits, because XLA may drop a pair of casts and compare all the digits.
    word = jnp.dtype(f"uint{jnp.finfo(dtype).bits}")
    rounded, given = (
        lax.bitcast_convert_type(jnp.asarray(x, dtype), word) for x in (iterate, param)
    )
    return jnp.where(rounded == given, iterate, jnp.asarray(param, iterate.dtype))


def settle(param: chex.Array, anchor: chex.Array, iterate: chex.Array) -> chex.Array:
    """x where `params` is x, but for the rounding of params + (x − params).

    `params` rules here too; but without this, replicas that all hold the same x would drift apart
    by roundings that differ.
    """
    dtype = jnp.result_type(anchor)
    sizes = (jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in (anchor, iterate))
    rounding = 4 * jnp.finfo(dtype).eps * sum(sizes)
    return jnp.where(jnp.abs(param - anchor) <= rounding, anchor, param)
