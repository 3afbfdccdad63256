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

from entropy_sgd_jax import _noise as noise_lib
from entropy_sgd_jax._trees import PRECISION, inner_product, wide_dtype
from entropy_sgd_jax._typing import PyTree


def arrays(params: PyTree) -> PyTree:
    """The same tree of arrays, for parameters that may be Python floats or NumPy's."""
    return jax.tree.map(jnp.asarray, params)


@functools.partial(jax.jit, static_argnums=0)
def draw(law: str, key: jax.Array, like: PyTree) -> PyTree:
    """Independent samples of unit variance in the shapes of `like`, in at least float32.

    From the hash of the library's own noise, since `jax.random` takes a second or two to compile;
    but in the dtype asked for, so that every program that draws them has the same to its last digit
    but one.

    Args:
      law: "gaussian" or "rademacher".
      key: out of `split` or `fold_in`, which mix its bits.
      like: a tree of arrays.
    """
    words = noise_lib.words(jax.random.key_data(noise_lib.threefry(key)), like)
    return jax.tree.map(lambda word, leaf: _LAWS[law](word, wide_dtype(leaf)), words, like)


def _rademacher(word: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    return 1 - 2 * (word >> 31).astype(dtype)


def _gaussian(word: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """The quantile of 23 bits, the middle of 2⁻²³: up to 5.2."""
    middle = (word >> 9).astype(dtype) + 0.5
    return 2**0.5 * lax.erf_inv(middle * 2**-22 - 1)


_LAWS = {"gaussian": _gaussian, "rademacher": _rademacher}


def peak(tree: PyTree) -> jax.Array:
    """The largest absolute value; shape ()."""
    wide = wide_dtype(tree)
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
    wide = wide_dtype(vector)
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
        wide = wide_dtype((x, y))
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
            coefficients.astype(rows.dtype), rows, axes=1, precision=PRECISION
        ),
        basis,
    )


def without(vector: PyTree, basis: PyTree) -> tuple[PyTree, jax.Array]:
    """`vector` less its part in the span of the orthonormal `basis`, and its overlaps with that."""
    coefficients = inner_product(basis, vector)
    return add_scaled(vector, -1, combine(coefficients, basis)), coefficients


def orthogonalised(vector: PyTree, basis: PyTree) -> tuple[PyTree, jax.Array]:
    """`without` twice, which is enough to be orthogonal up to rounding."""

    def once_more(_: ArrayLike, carry: tuple[PyTree, jax.Array]) -> tuple[PyTree, jax.Array]:
        rest, new = without(carry[0], basis)
        return rest, carry[1] + new

    rows = jax.tree.leaves(basis)[0].shape[0]
    # A loop, which compiles once.
    return lax.fori_loop(0, 2, once_more, (vector, jnp.zeros(rows, wide_dtype((vector, basis)))))
