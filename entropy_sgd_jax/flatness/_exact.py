"""The whole spectrum, from the dense matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import _checks, _vectors
from entropy_sgd_jax.flatness._curvature import Loss, operator
from entropy_sgd_jax.flatness._data import BatchSize, DataSet
from entropy_sgd_jax.flatness._progress import Progress, tracked

_COPIES = 5  # of the matrix: itself, what the eigensolver overwrites, and its workspace
_ROWS_ON_CPU = 32_766  # beyond, the size of that workspace overflows LAPACK's integers


def exact_spectrum(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    *,
    block_size: int = 32,
    memory_limit: float = 32,
    progress: bool | Progress = False,
    batch_size: BatchSize | None = None,
) -> jax.Array:
    """All eigenvalues of the Hessian of the mean loss over the data set.

    Cost, for n parameters: n Hessian-vector products, `block_size` of them in one pass over the
    data, and n³ operations of the eigensolver; five times the memory of an n × n matrix. For
    10,000 parameters in float32 that is 1.9 GiB and minutes on a few cores. JAX's eigensolver on
    CPU takes at most 32,766. ``spectral_density`` needs no matrix.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar; or a ``GaussNewton``.
      params: real floating arrays in any pytree; their widest dtype, at least float32, is that of
        the matrix and the eigenvalues.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``.
      block_size: how many columns of the matrix are computed together; the memory of the
        intermediate values of `loss` is that for this many batches at once.
      memory_limit: in GiB; a larger need is refused before anything starts.
      progress: True for a bar with the memory needed and the time left (by `rich`), or a function
        that is called with what is done, as ``progress(description, done, total)``. Ignored under
        ``jax.jit``.
      batch_size: the weight of a batch, a function of it; None for its number of examples.

    Returns:
      The eigenvalues in ascending order, shape (n,).

    Raises:
      ValueError: if more memory is needed than `memory_limit`, or more rows than the eigensolver
        takes, and for arguments out of range.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import exact_spectrum
    >>> loss = lambda params, batch: jnp.mean(params[0] ** 2 * batch - params[1] ** 2)
    >>> print(exact_spectrum(loss, jnp.ones(2), jnp.array([[1.0, 2.0], [3.0, 4.0]])))
    [-2.  5.]
    """
    count, params = _checks.params(params), _vectors.arrays(params)
    data = DataSet(batches, batch_size)
    dtype = _trees.wide_dtype(params)
    gibibytes = _COPIES * count**2 * dtype.itemsize / 2**30
    _checks.positive("memory_limit", memory_limit, "It is in GiB; 32 is the default.", dtype)
    if gibibytes > memory_limit:
        raise ValueError(
            f"`memory_limit` must be at least {gibibytes:.3g} GiB for the {count:,} x {count:,} "
            f"matrix; got {memory_limit!r}. Raise it if the machine has the memory, or use "
            "spectral_density and top_eigenvalues, which form no matrix."
        )
    if count > _ROWS_ON_CPU and jax.default_backend() == "cpu":
        raise ValueError(
            f"`params` must have at most {_ROWS_ON_CPU:,} elements on CPU, for JAX's eigensolver; "
            f"got {count:,}. Use an accelerator, or spectral_density and top_eigenvalues."
        )
    advice = "32 is usual; less takes less memory."
    block = min(_checks.integer("block_size", block_size, 1, float("inf"), advice), count)
    fill = _filler(operator(loss, params, data, block=True), params, block, count)
    matrix, blocks = jnp.zeros((count, count), dtype), -(-count // block)
    if progress and not _trees.is_traced((params, batches)):
        for i in tracked(progress, f"Hessian ({gibibytes:.2g} GiB)", blocks):
            matrix = jax.block_until_ready(fill(i, matrix))  # else the bar would run ahead
    else:
        matrix = data.loop(0, blocks, fill, matrix)
    eigenvalues: jax.Array = _eigenvalues(matrix)
    return eigenvalues


def _filler(
    block_product: Callable[[PyTree], PyTree], params: PyTree, block: int, count: int
) -> Callable[[jax.Array | int, jax.Array], jax.Array]:
    """A function of (number of the block, matrix), which fills in the block's rows."""
    dtype = _trees.wide_dtype(params)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params))

    @jax.jit
    def unit_vectors(first: ArrayLike) -> Any:
        return jax.vmap(unravel)(jax.nn.one_hot(first + jnp.arange(block), count, dtype=dtype))

    @functools.partial(jax.jit, donate_argnums=0)
    def insert(matrix: jax.Array, images: PyTree, first: ArrayLike) -> jax.Array:
        rows = jax.vmap(lambda image: ravel_pytree(image)[0])(images)
        filled: jax.Array = lax.dynamic_update_slice(matrix, rows.astype(dtype), (first, 0))
        return filled

    def fill(number: jax.Array | int, matrix: jax.Array) -> jax.Array:
        # The last block reaches back if fewer rows than a block are left.
        first = jnp.minimum(number * block, count - block)
        filled: jax.Array = insert(matrix, block_product(unit_vectors(first)), first)
        return filled

    return fill


@jax.jit
def _eigenvalues(matrix: jax.Array) -> jax.Array:
    """Of the symmetric part, which JAX takes by default: the two halves differ by rounding."""
    unit = _vectors.binary_scale(jnp.max(jnp.abs(matrix)))
    eigenvalues: jax.Array = jnp.linalg.eigvalsh(matrix / unit) * unit
    return eigenvalues
