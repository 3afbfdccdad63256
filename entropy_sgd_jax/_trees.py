"""Small functions over trees of arrays."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from entropy_sgd_jax._typing import PyTree

# Accelerators round the factors of a product to fewer bits unless told otherwise.
PRECISION = lax.Precision.HIGHEST


def wide_dtype(tree: PyTree) -> np.dtype[Any]:
    """The widest dtype of the leaves, at least float32."""
    # Leaf by leaf, since scalars of a weak type would give way to float32.
    dtypes = map(jnp.result_type, jax.tree.leaves(tree))
    with jax.numpy_dtype_promotion("standard"):  # "strict" refuses even to compare two
        return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


def is_traced(tree: PyTree) -> bool:
    """Whether a leaf of `tree` is known only when the program runs."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def kind_of(array: Any) -> Any:
    """What JAX knows of `array` by type: its sharding, and the axes over which it varies."""
    return jax.typeof(array) if hasattr(jax, "typeof") else None  # from JAX 0.6


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` in the dtypes of `like`."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b)), tree, like)


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros in the shapes and dtypes of `tree`."""
    return jax.tree.map(jnp.zeros_like, tree)


def where(condition: jax.Array, chosen: PyTree, otherwise: PyTree) -> PyTree:
    """The one tree or the other, by a scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, otherwise)


def unzip(like: PyTree, pairs: PyTree) -> tuple[PyTree, PyTree]:
    """Two trees like `like`, from one with a pair in place of each leaf."""
    first = jax.tree.map(lambda _, pair: pair[0], like, pairs)
    second = jax.tree.map(lambda _, pair: pair[1], like, pairs)
    return first, second


def inner_product(a: PyTree, b: PyTree) -> jax.Array:
    """The sum of all products, shape (); of each vector of a basis `a` with `b`, shape (rows,).

    Sharded trees stay sharded. In at least float32.
    """
    dtype = wide_dtype((a, b))

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        # The last axes of x are those of y. Unlike tensordot, this takes scalars outside of jit.
        contracted = (range(x.ndim - y.ndim, x.ndim), range(y.ndim))
        x, y = x.astype(dtype), y.astype(dtype)
        return lax.dot_general(x, y, (contracted, ((), ())), precision=PRECISION)

    return sum(jax.tree.leaves(jax.tree.map(product, a, b)), start=jnp.zeros((), dtype))
