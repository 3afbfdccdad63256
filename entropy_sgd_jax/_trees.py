"""Small functions over trees of arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from entropy_sgd_jax._typing import PyTree


def wide(leaf: Any) -> Any:
    """The dtype of `leaf`, at least float32."""
    dtype = jnp.result_type(leaf)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def is_traced(tree: PyTree) -> bool:
    """Whether a leaf of `tree` is known only when the program runs."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` in the dtypes of `like`."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b)), tree, like)


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros in the shapes and dtypes of `tree`."""
    return jax.tree.map(jnp.zeros_like, tree)


def nan_like(tree: PyTree) -> PyTree:
    """NaN in the shapes and dtypes of `tree`."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), tree)


def where(condition: jax.Array, chosen: PyTree, otherwise: PyTree) -> PyTree:
    """The one tree or the other, by a scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, otherwise)


def unzip(like: PyTree, pairs: PyTree) -> tuple[PyTree, PyTree]:
    """Two trees like `like`, from one with a pair in the place of each leaf."""
    first = jax.tree.map(lambda _, pair: pair[0], like, pairs)
    second = jax.tree.map(lambda _, pair: pair[1], like, pairs)
    return first, second


def inner_product(a: PyTree, b: PyTree) -> jax.Array:
    """The sum of all products, in at least float32; shape ().

    Summed in place: a dot product of raveled arrays would gather sharded ones on every device.
    """

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = wide(a)
        return jnp.sum(a.astype(dtype) * b.astype(dtype))

    products: list[Any] = jax.tree.leaves(jax.tree.map(product, a, b))
    dtype = max((p.dtype for p in products), key=lambda d: d.itemsize, default=jnp.float32)
    return sum((p.astype(dtype) for p in products), start=jnp.zeros((), dtype))


def norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm over all leaves; shape ()."""
    return jnp.sqrt(inner_product(tree, tree))
