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


def unless(condition: chex.Array, tree: Any, otherwise: Callable[[Any], Any]) -> Any:
    """`tree` unless the condition holds, in which rare case `otherwise(tree)`.

    A loop of no or one round, and free where it has none: XLA runs loops in place, while a cond
    copies whatever passes through it, and a select reads both trees. What `otherwise` computes from
    other values than its argument, XLA may compute ahead of the loop, in every case.
    """

    def once(carry: tuple[chex.Array, Any]) -> tuple[chex.Array, Any]:
        return ~carry[0], otherwise(carry[1])

    return lax.while_loop(lambda carry: carry[0], once, (condition, tree))[1]


def all_finite(tree: Any) -> chex.Array:
    """Whether no leaf has a NaN or Inf in it; shape (), bool.

    Leaf by leaf, each with the result so far, so that XLA compiles equal leaves once. Use it once,
    or through an `unless`, into which XLA cannot look: each use may be computed from all leaves
    anew, so that a program of n leaves and n uses would compile in a time of n².
    """
    finite = jnp.array(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.size(leaf):
            finite = jnp.all(lax.is_finite(leaf) & finite)
    return finite


def inner_product(a: Any, b: Any) -> chex.Array:
    """The sum of all products, in at least float32; shape ().

    Summed in place: a dot product of raveled arrays would gather sharded ones on every device.
    """

    def product(a: chex.Array, b: chex.Array) -> chex.Array:
        wide = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.sum(a.astype(wide) * b.astype(wide))

    return sum(jax.tree.leaves(jax.tree.map(product, a, b)), start=jnp.zeros((), jnp.float32))


def norm(tree: Any) -> chex.Array:
    """The Euclidean norm over all leaves; shape ()."""
    return jnp.sqrt(inner_product(tree, tree))


def follow(param: chex.Array, iterate: chex.Array, known: chex.Array) -> chex.Array:
    """`known` where `param` is where the last update left it, at `iterate`; else `param`.

    `params` rules: whatever else moves it (a projection, a restored checkpoint) moves x′, or x
    between two cycles. Only untouched parameters are what the state knows more digits of.
    """
    dtype = jnp.result_type(param)
    if known is iterate and jnp.finfo(dtype).bits >= jnp.finfo(iterate.dtype).bits:
        return jnp.asarray(param, iterate.dtype)  # there are no more digits
    # Compared as bits, because XLA may drop a pair of casts and compare all the digits.
    word = jnp.dtype(f"uint{jnp.finfo(dtype).bits}")
    left, found = (lax.bitcast_convert_type(jnp.asarray(x, dtype), word) for x in (iterate, param))
    return jnp.where(left == found, known, jnp.asarray(param, known.dtype))


def landing(param: chex.Array, target: chex.Array) -> chex.Array:
    """Where `param` + (`target` − `param`) ends, which rounding may keep from `target`."""
    info = jnp.finfo(jnp.result_type(param))

    def rounded(x: chex.Array) -> chex.Array:  # XLA would leave it out in fused arithmetic
        return lax.reduce_precision(x, info.nexp, info.nmant)

    return rounded(param + rounded(target - param))
