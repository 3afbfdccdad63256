"""The largest eigenvalues, by a restarted Lanczos iteration."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import Key, PyTree
from entropy_sgd_jax.flatness import _checks, _lanczos, _vectors
from entropy_sgd_jax.flatness._curvature import Loss, is_flat, space
from entropy_sgd_jax.flatness._data import BatchSize, DataSet
from entropy_sgd_jax.flatness._lanczos import Krylov


class _Search(NamedTuple):
    """How far the search for the largest eigenvalues has come."""

    krylov: Krylov
    filled: jax.Array  # rows of the basis in use, int32
    values: jax.Array  # the best estimates so far, in units of `krylov`, descending, shape (k,)
    converged: jax.Array  # which of them are good enough, shape (k,)
    probed: jax.Array  # whether all were, and a random vector has gone in since
    done: jax.Array


def top_eigenvalues(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    k: int,
    *,
    tolerance: float = 1e-6,
    max_products: int = 2000,
    return_eigenvectors: bool = False,
    batch_size: BatchSize | None = None,
    key: Key = 0,
) -> Any:
    """The k algebraically largest eigenvalues of the Hessian of the mean loss over the data set.

    Thick-restart Lanczos. Once k have converged, it goes on from a random vector, until nothing
    larger comes up orthogonally to the k, so an eigenvalue of multiplicity m appears m times. For
    the smallest, pass the negative loss.

    Cost: about 3k + 60 Hessian-vector products if the largest eigenvalues stand apart, as those
    of networks do, up to `max_products`; memory for 2k + 30 vectors like ``params``, and as many
    again at a restart.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar; or a ``GaussNewton``.
      params: real floating arrays in any pytree.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``.
      k: how many; a static int from 1 to the number of parameters.
      tolerance: stops when ‖A v − λ v‖ is at most `tolerance` times the size of λ, or at rounding.
        The error of λ is at most that norm, and falls with its square if λ stands apart.
      max_products: no sweep, of up to 2k + 30 products, starts once this many are used.
      return_eigenvectors: whether to return the eigenvectors too.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      key: of the random vectors: an int, a typed key or a legacy uint32 key.

    Returns:
      The eigenvalues, descending, shape (k,). One that has not converged is NaN. With
      `return_eigenvectors`, a pair of them and a tree like ``params``, whose leaves have a leading
      axis of k in front: orthonormal, each as precise as ‖A v − λ v‖ over the gap to the next
      eigenvalue.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import top_eigenvalues
    >>> loss = lambda params, batch: jnp.sum(jnp.array([1.0, 3.0, -5.0, 3.0]) * params**2)
    >>> print(top_eigenvalues(loss, jnp.ones(4), [None], k=3).round(4))
    [6. 6. 2.]

    References:
      Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J.
      Matrix Anal. Appl. 22, 2000. Changed: all vectors are reorthogonalised against all.
    """
    count, params = _checks.params(params), _vectors.arrays(params)
    k = _checks.integer("k", k, 1, count, "It is the number of eigenvalues.")
    _checks.integer("max_products", max_products, 1, float("inf"), "2000 is the default.")
    advice = "1e-6 is the default."
    smallest = _checks.positive("tolerance", tolerance, advice, _trees.wide_dtype(params))
    rows, flat = min(2 * k + 30, count), is_flat(params)

    def find(data: DataSet, params: PyTree, smallest: jax.Array, key: jax.Array) -> Any:
        like, product, to_tree = space(loss, params, data, flat=flat)

        def sweep(search: _Search) -> _Search:
            krylov = _lanczos.extend(data, product, search.krylov, search.filled, rows)
            search = search._replace(krylov=krylov)
            assessed: _Search = _assess(search, smallest, exhausted=rows == count)
            return assessed

        search = data.while_loop(
            lambda search: ~search.done & (search.krylov.products < max_products),
            sweep,
            _nothing_found(like, key, rows, k),
        )
        values = jnp.where(search.converged, search.values * search.krylov.unit, jnp.nan)
        if not return_eigenvectors:
            return values
        eigenvectors = jax.tree.map(lambda leaf: leaf[:k], search.krylov.basis)
        return values, _trees.cast_like(jax.vmap(to_tree)(eigenvectors), params)

    data = DataSet(batches, batch_size)
    return data.program(find, params, smallest, _checks.key(key))


@functools.partial(jax.jit, static_argnames=("rows", "k"))  # its pieces would compile one by one
def _nothing_found(like: PyTree, key: jax.Array, rows: int, k: int) -> _Search:
    """The search at its start, which is random."""
    krylov, no = _lanczos.start(like, rows, key), jnp.zeros((), bool)
    return _Search(
        krylov=krylov,
        filled=jnp.full((), -1, jnp.int32),
        values=jnp.zeros(k, krylov.projected.dtype),
        converged=jnp.zeros(k, bool),
        probed=no,
        done=no,
    )


@functools.partial(jax.jit, static_argnames="exhausted")
def _assess(search: _Search, tolerance: ArrayLike, *, exhausted: bool) -> _Search:
    """Takes stock of a full basis, and restarts from the best of it.

    Args:
      exhausted: whether the basis spans the whole space, so that its eigenvalues are exact.
    """
    krylov, k = search.krylov, len(search.values)
    values, rotation = jnp.linalg.eigh(krylov.projected)
    values, rotation = values[::-1], rotation[:, ::-1]
    if exhausted:
        krylov = _lanczos.restart(krylov, values, rotation, k, fresh=False)
        return search._replace(
            krylov=krylov,
            values=values[:k],
            converged=jnp.ones_like(search.converged),
            done=jnp.ones_like(search.done),
        )

    # ‖A v − λ v‖ of each, by the identity that `Krylov` states.
    errors = krylov.residual * jnp.abs(rotation[-1])
    rounding = 10 * jnp.finfo(values.dtype).eps * jnp.abs(values).max()
    converged = errors <= tolerance * jnp.abs(values) + rounding
    # The next one must be known well enough to be below the k-th.
    settled = converged[:k].all() & (converged[k] | (values[k] + errors[k] <= values[k - 1]))
    # What has not converged may only stay as long as the residual goes on with it.
    keep = jnp.where(settled, k, (k + len(values)) // 2).astype(jnp.int32)
    return _Search(
        krylov=_lanczos.restart(krylov, values, rotation, keep, fresh=settled),
        filled=keep,
        values=values[:k],
        converged=converged[:k],
        probed=settled,
        done=settled & search.probed,
    )
