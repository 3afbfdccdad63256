"""Lanczos iteration with full reorthogonalisation.

Written out, because the libraries that have it iterate over flat vectors in a loop of their own:
SciPy's leaves the device at each step, matfree's is traced as a whole. Neither can take batches
from the host, keep the shards of the parameters and run under `jax.jit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import _vectors
from entropy_sgd_jax.flatness._data import DataSet


class Krylov(NamedTuple):
    """An orthonormal basis V of the vectors reached so far, and what is known of the matrix A.

    A V = V T + residual · vector eᵀ, where e picks the row that was filled last. T and the residual
    are in units of A's own size, which row −1 finds out, so that nothing overflows or underflows.
    """

    unit: jax.Array  # of A, a power of two; 0 while it is not known
    basis: PyTree  # V: rows not filled yet are zero
    projected: jax.Array  # T = Vᵀ A V, shape (rows, rows)
    vector: PyTree  # the next row: of norm 1, orthogonal to the basis
    fresh: jax.Array  # whether a random one takes its place
    residual: jax.Array  # 0 if the basis spans an invariant subspace
    products: jax.Array  # with A, so far; int32
    key: jax.Array


def start(like: PyTree, rows: int, key: jax.Array, vector: PyTree | None = None) -> Krylov:
    """An empty basis with room for `rows` vectors, of which `vector` is to be the first.

    Without one it is random.
    """
    dtype = _trees.wide_dtype(like)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, _trees.wide_dtype(leaf)), like)
    return Krylov(
        unit=jnp.zeros((), dtype),
        basis=_vectors.empty_basis(rows, zeros),
        projected=jnp.zeros((rows, rows), dtype),
        vector=zeros if vector is None else _vectors.normalised(vector),
        fresh=jnp.full((), vector is None),
        residual=jnp.zeros((), dtype),
        products=jnp.zeros((), jnp.int32),
        key=key,
    )


def extend(
    data: DataSet, product: Callable[[Any], Any], krylov: Krylov, first: ArrayLike, last: ArrayLike
) -> Krylov:
    """Fills the rows from `first` to `last` − 1, at one product with the matrix each.

    Row −1 comes first of all.
    """

    def step(row: ArrayLike, krylov: Krylov) -> Krylov:
        vector, lifted = _next(krylov)
        extended: Krylov = _absorb(krylov._replace(vector=vector), row, product(lifted))
        return extended

    return data.loop(first, last, step, krylov)


@jax.jit
def _next(krylov: Krylov) -> tuple[Any, Any]:
    """The next row, and that at a size from which the matrix takes it half of the way to 1."""
    vector, known = _random_if(krylov.fresh, krylov), krylov.unit > 0
    scale = jnp.where(known, _half_way(krylov.unit), 1 / _vectors.peak(vector))
    return vector, jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), vector)


def _half_way(unit: jax.Array) -> jax.Array:
    """About 1 / √unit, a power of two."""
    return 1 / _vectors.binary_scale(jnp.sqrt(jnp.where(unit > 0, unit, 1)))


@jax.jit
def _absorb(krylov: Krylov, row: ArrayLike, image: PyTree) -> Krylov:
    """Adds the vector to the basis; what is new in its image becomes the next vector."""
    known, row = krylov.unit > 0, jnp.maximum(row, 0)
    unit = jnp.where(known, krylov.unit, _vectors.binary_scale(_vectors.peak(image)))
    lifted = 1 / jnp.where(known, unit * _half_way(unit), unit)
    image = jax.tree.map(lambda leaf: leaf * lifted.astype(leaf.dtype), image)

    def once_more(_: ArrayLike, carry: tuple[PyTree, jax.Array]) -> tuple[PyTree, jax.Array]:
        # Against the basis as it came: XLA would transpose a new one for these products.
        image, old = _vectors.without(carry[0], krylov.basis)
        own = _trees.inner_product(krylov.vector, image)
        image = _vectors.add_scaled(image, -own, krylov.vector)
        return image, (carry[1] + old).at[row].add(own)

    overlaps = jnp.zeros_like(krylov.projected[0])
    image, overlaps = lax.fori_loop(0, 2, once_more, (image, overlaps))  # as `orthogonalised`
    basis = jax.tree.map(
        lambda rows, leaf: lax.dynamic_update_index_in_dim(rows, leaf, row, 0),
        krylov.basis,
        krylov.vector,
    )
    projected = krylov.projected.at[row].set(overlaps).at[:, row].set(overlaps)
    residual = _vectors.norm(image)
    # Nothing new but rounding: the basis spans an invariant subspace, out of which only a random
    # vector leads.
    invariant = residual <= 10 * jnp.finfo(residual.dtype).eps * jnp.abs(projected).max()
    # Row −1 comes again as row 0, and is overwritten.
    new = _vectors.normalised(image)
    return krylov._replace(
        unit=unit,
        basis=basis,
        projected=projected,
        vector=_trees.where(known, new, krylov.vector),
        fresh=known & invariant,
        residual=jnp.where(invariant, 0, residual),
        products=krylov.products + 1,
    )


def _random_if(condition: jax.Array, krylov: Krylov) -> Any:
    """The vector, or if the condition holds a random one, orthogonal to the basis.

    A loop of zero rounds or one, since a cond would copy the basis.
    """

    def draw(carry: Any) -> Any:
        key = jax.random.fold_in(krylov.key, krylov.products)
        noise = _vectors.draw("gaussian", key, krylov.vector)
        noise, _ = _vectors.orthogonalised(noise, krylov.basis)
        return jnp.zeros((), bool), _vectors.normalised(noise)

    return lax.while_loop(lambda carry: carry[0], draw, (condition, krylov.vector))[1]


@jax.jit
def restart(
    krylov: Krylov, values: jax.Array, rotation: jax.Array, keep: ArrayLike, fresh: ArrayLike
) -> Krylov:
    """Keeps the first `keep` of the vectors that the columns of `rotation` combine, and no other.

    Args:
      values: eigenvalues of `krylov.projected`, shape (rows,).
      rotation: its eigenvectors in the same order, shape (rows, rows).
      keep: how many; may be traced.
      fresh: whether to go on from a random vector. It finds what the old ones cannot: further
        eigenvectors of a repeated eigenvalue.
    """
    kept = jnp.arange(len(rotation)) < keep
    basis = _vectors.combine(jnp.where(kept, rotation, 0).T, krylov.basis)
    projected = jnp.diag(jnp.where(kept, values, 0))
    return krylov._replace(basis=basis, projected=projected, fresh=krylov.fresh | fresh)
