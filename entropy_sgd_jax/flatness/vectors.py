"""Linear algebra on parameter trees, leaf by leaf, so that sharded parameters stay sharded.

A *basis* is a tree whose leaves have one more axis in front, which counts its vectors.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from entropy_sgd_jax._typing import PyTree

# Accelerators round the factors of a product to fewer bits unless told otherwise.
_PRECISION = lax.Precision.HIGHEST


# From −1 to 1: for directions of which nothing is asked but to miss no vector, the cheapest.
uniform = functools.partial(jax.random.uniform, minval=-1)


def dtype_of(tree: PyTree) -> np.dtype[Any]:
    """The widest dtype of the leaves, at least float32."""
    # Leaf by leaf, since scalars of a weak type would give way to float32.
    return jnp.result_type(jnp.float32, *map(jnp.result_type, jax.tree.leaves(tree)))


def draw(sampler: Any, key: jax.Array, like: PyTree) -> PyTree:
    """Independent samples in the shapes of `like`, in at least float32; a key for each leaf.

    Args:
      sampler: `jax.random.normal`, `jax.random.rademacher` or `uniform`.
    """
    leaves, treedef = jax.tree.flatten(like)
    samples = [
        sampler(leaf_key, jnp.shape(leaf), dtype=dtype_of(leaf))
        for leaf_key, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, samples)


def inner_product(a: PyTree, b: PyTree) -> jax.Array:
    """The sum of all products; shape ()."""
    return sum(
        jax.tree.leaves(
            jax.tree.map(
                lambda x, y: jnp.tensordot(x, y, axes=jnp.ndim(y), precision=_PRECISION), a, b
            )
        ),
        start=jnp.zeros((), dtype_of((a, b))),
    )


def norm(vector: PyTree) -> jax.Array:
    """The Euclidean norm; shape ()."""
    return jnp.sqrt(inner_product(vector, vector))


def normalised(vector: PyTree) -> PyTree:
    """`vector` at norm 1; zero stays zero."""
    length = norm(vector)
    length = jnp.where(length > 0, length, 1)
    return jax.tree.map(lambda leaf: leaf / length.astype(leaf.dtype), vector)


def add_scaled(a: PyTree, scale: ArrayLike, b: PyTree) -> PyTree:
    """a + scale · b, in the dtypes of a."""
    return jax.tree.map(lambda x, y: x + jnp.asarray(scale * y, jnp.result_type(x)), a, b)


def empty_basis(size: int, like: PyTree) -> PyTree:
    """`size` zero vectors in the shapes of `like`."""
    return jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), like)


def combine(coefficients: jax.Array, basis: PyTree) -> PyTree:
    """Sums of the basis vectors: one for `coefficients` (rows,), a basis for (sums, rows)."""
    return jax.tree.map(
        lambda rows: jnp.tensordot(
            coefficients.astype(rows.dtype), rows, axes=1, precision=_PRECISION
        ),
        basis,
    )


def overlaps(basis: PyTree, vector: PyTree) -> jax.Array:
    """The inner product of each basis vector with `vector`; shape (rows,)."""
    return inner_product(basis, vector)


def without(vector: PyTree, basis: PyTree) -> tuple[PyTree, jax.Array]:
    """`vector` less its part in the span of the orthonormal `basis`, and its overlaps with that."""
    coefficients = overlaps(basis, vector)
    return add_scaled(vector, -1, combine(coefficients, basis)), coefficients
