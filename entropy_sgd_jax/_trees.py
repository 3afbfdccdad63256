"""Small functions over parameter trees."""

from __future__ import annotations

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


def all_finite(tree: Any) -> chex.Array:
    """Whether no leaf has a NaN or Inf in it; shape (), bool."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.array(finite)) if finite else jnp.array(True)


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
    narrow, wide = jnp.finfo(jnp.result_type(param)), jnp.finfo(iterate.dtype)
    if narrow.bits >= wide.bits:
        return jnp.asarray(param, iterate.dtype)
    # Spelled as reduce_precision, because XLA may drop a pair of casts.
    rounded = lax.reduce_precision(iterate, exponent_bits=narrow.nexp, mantissa_bits=narrow.nmant)
    widened = jnp.asarray(param, iterate.dtype)
    return jnp.where(rounded == widened, iterate, widened)
