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
    dtypes = map(jnp.result_type, jax.tree.leaves(tree))
    with jax.numpy_dtype_promotion("standard"):  # "strict" refuses even to compare two
        return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


def arrays(params: PyTree) -> PyTree:
    """The same tree of arrays, for parameters that may be Python floats or NumPy's."""
    return jax.tree.map(jnp.asarray, params)


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
    """The sum of all products, shape (); of each vector of a basis `a` with `b`, shape (rows,)."""
    wide = dtype_of((a, b))

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        # The last axes of x are those of y. Unlike tensordot, this takes scalars outside of jit.
        contracted = (range(x.ndim - y.ndim, x.ndim), range(y.ndim))
        x, y = x.astype(wide), y.astype(wide)
        return lax.dot_general(x, y, (contracted, ((), ())), precision=_PRECISION)

    return sum(jax.tree.leaves(jax.tree.map(product, a, b)), start=jnp.zeros((), wide))


def peak(tree: PyTree) -> jax.Array:
    """The largest absolute value; shape ()."""
    wide = dtype_of(tree)
    peaks = [jnp.max(jnp.abs(leaf), initial=0).astype(wide) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.maximum, peaks, jnp.zeros((), wide))


def binary_scale(size: jax.Array) -> jax.Array:
    """The power of two at or below `size`, by which dividing rounds nothing; 1 for 0, Inf, NaN."""
    usable = (size > 0) & jnp.isfinite(size)
    info = jnp.finfo(size.dtype)
    exponent = jnp.frexp(jnp.where(usable, size, 1))[1] - 1
    # Its reciprocal must be a normal number as well.
    return jnp.ldexp(jnp.ones_like(size), jnp.clip(exponent, info.minexp, -info.minexp))


def norm(vector: PyTree) -> jax.Array:
    """The Euclidean norm, shape (), at a scale where squares neither overflow nor underflow."""
    wide = dtype_of(vector)
    unit = binary_scale(peak(vector))
    scaled = jax.tree.map(lambda leaf: leaf.astype(wide) / unit, vector)
    return unit * jnp.sqrt(inner_product(scaled, scaled))


def normalised(vector: PyTree) -> PyTree:
    """`vector` at norm 1; zero stays zero."""
    length = norm(vector)
    length = jnp.where(length > 0, length, 1)
    return jax.tree.map(lambda leaf: leaf / length.astype(leaf.dtype), vector)


def add_scaled(a: PyTree, scale: ArrayLike, b: PyTree) -> PyTree:
    """a + scale · b, in the dtypes of a; the product in at least float32."""

    def add(x: jax.Array, y: jax.Array) -> jax.Array:
        wide = dtype_of((x, y))
        step = jnp.asarray(scale, wide) * jnp.asarray(y, wide)
        return jnp.asarray(x) + step.astype(jnp.result_type(x))

    return jax.tree.map(add, a, b)


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


def without(vector: PyTree, basis: PyTree) -> tuple[PyTree, jax.Array]:
    """`vector` less its part in the span of the orthonormal `basis`, and its overlaps with that."""
    coefficients = inner_product(basis, vector)
    return add_scaled(vector, -1, combine(coefficients, basis)), coefficients
