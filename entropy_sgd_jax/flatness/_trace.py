"""The trace, from products with random vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import Key, PyTree
from entropy_sgd_jax.flatness import _checks, _estimates, _vectors
from entropy_sgd_jax.flatness._curvature import Loss, is_flat, space
from entropy_sgd_jax.flatness._data import BatchSize, DataSet
from entropy_sgd_jax.flatness._estimates import Estimate

Product = Callable[[PyTree], PyTree]

_FEWEST = 4  # products from which XTrace has two estimates to compare
# Its estimates share all images but two, and vary less than the error of their mean would have it:
# by up to this factor, over flat, slowly and fast decaying spectra.
_SHARED = 2**0.5


def hessian_trace(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    *,
    num_probes: int = 32,
    method: Literal["xtrace", "hutchinson"] = "xtrace",
    batch_size: BatchSize | None = None,
    key: Key = 0,
) -> Estimate:
    """The trace of the Hessian of the mean loss over the data set.

    XTrace spends half of its products on a sketch of the matrix A, takes the trace of A within the
    span of the sketch exactly, and that of the rest from the same random vectors, each in turn left
    out of the sketch. The large eigenvalues, of which a network has few, then add no variance.
    Hutchinson's estimator is the mean of z · A z over random vectors z of ±1. It is exact for a
    diagonal A, since only the sum over all off-diagonal pairs of parameters varies. Both are
    unbiased.

    Cost: `num_probes` Hessian-vector products, one after another. XTrace keeps ``num_probes // 2``
    vectors like ``params`` in memory; if that is too much, as for models of billions of
    parameters, choose "hutchinson", which keeps one. With at most `num_probes` parameters,
    "xtrace" is the exact sum of the diagonal, at one product each.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar; or a ``GaussNewton``.
      params: real floating arrays in any pytree.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``.
      num_probes: how many products, a static int of at least 1. XTrace makes an even number
        of them, and leaves fewer than 4 to Hutchinson's estimator.
      method: "xtrace" or "hutchinson".
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      key: of the random vectors: an int, a typed key or a legacy uint32 key.

    Returns:
      The trace, shape (), and its standard error over the probes, NaN for a single one. XTrace's
      is √2 times that of independent estimates, which its own are not: right if the spectrum
      decays fast, too large by up to √2 the flatter it is; but too small where the rank is half
      the number of products or just above.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import hessian_trace
    >>> trace = hessian_trace(lambda params, batch: jnp.sum(params**2), jnp.ones(5), [None])
    >>> print(f"{trace.value} ± {trace.standard_error}")
    10.0 ± 0.0

    References:
      Epperly, Tropp and Webber, "XTrace: making the most of every sample in stochastic trace
      estimation", SIAM J. Matrix Anal. Appl. 45, 2024.
      Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian
      smoothing splines", Communications in Statistics 18, 1989.
    """
    count, params = _checks.params(params), _vectors.arrays(params)
    advice = "Error bars need at least 2, or 4 with 'xtrace'; 32 is the default."
    num_probes = _checks.integer("num_probes", num_probes, 1, float("inf"), advice)
    advice = "'hutchinson' needs the least memory."
    _checks.choice("method", method, ("xtrace", "hutchinson"), advice)

    flat = method == "xtrace" and is_flat(params)  # an array beside the tree is memory

    def estimate(data: DataSet, params: PyTree, key: jax.Array) -> Estimate:
        like, product, _ = space(loss, params, data, flat=flat)
        if method == "xtrace" and count <= num_probes:
            return _sum_of_diagonal(data, product, like, count)
        if method == "hutchinson" or num_probes < _FEWEST:
            return _hutchinson(data, product, like, jax.random.split(key, num_probes))
        return _xtrace(data, product, like, jax.random.split(key, num_probes // 2), count)

    return DataSet(batches, batch_size).program(estimate, params, _checks.key(key))


def _hutchinson(data: DataSet, product: Product, like: PyTree, keys: jax.Array) -> Estimate:
    def probe(number: jax.Array | int) -> jax.Array:
        signs = _vectors.draw("rademacher", keys[number], like)
        return _trees.inner_product(signs, product(signs))

    zero = jnp.zeros((), _trees.wide_dtype(like))
    return _estimates.of_samples(data.samples(len(keys), probe, zero))


def _sum_of_diagonal(data: DataSet, product: Product, like: PyTree, count: int) -> Estimate:
    dtype = _trees.wide_dtype(like)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), like))

    def entry(number: jax.Array | int) -> jax.Array:
        unit_vector = unravel(jax.nn.one_hot(number, count, dtype=dtype))
        return _trees.inner_product(unit_vector, product(unit_vector))

    diagonal = data.samples(count, entry, jnp.zeros((), dtype))
    return Estimate(diagonal.sum(), jnp.zeros((), dtype))


class _Sketch(NamedTuple):
    """The images of k random vectors ω under the matrix A, orthonormalised, in units of A's size.

    A ωᵢ = unit · Σⱼ coordinatesᵢⱼ qⱼ, which leaves out rounding alone.
    """

    unit: jax.Array  # a power of two; 0 as long as it is not known
    basis: PyTree  # of the q; zero where an image brings nothing new
    coordinates: jax.Array  # lower triangular, shape (k, k)
    forms: jax.Array  # ω · A ω, shape (k,)


def _xtrace(data: DataSet, product: Product, like: PyTree, keys: jax.Array, count: int) -> Estimate:
    """From a product with each random vector, and one with each vector of their images' basis."""
    size, dtype = len(keys), _trees.wide_dtype(like)

    def draw(key: jax.Array) -> PyTree:
        return _vectors.draw("gaussian", key, like)

    def step(number: jax.Array | int, sketch: _Sketch) -> _Sketch:
        probe = draw(keys[number])
        added: _Sketch = _add(sketch, number, probe, product(probe))
        return added

    def row(number: jax.Array | int) -> jax.Array:
        vector, peak = _row(sketch.basis, number)
        return _trees.inner_product(sketch.basis, product(vector)) / sketch.unit * peak

    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), like)
    empty = _Sketch(
        unit=jnp.zeros((), dtype),
        basis=_vectors.empty_basis(size, wide),
        coordinates=jnp.zeros((size, size), dtype),
        forms=jnp.zeros(size, dtype),
    )
    sketch = data.loop(0, size, step, empty)
    compressed = data.samples(size, row, jnp.zeros(size, dtype))

    @jax.jit
    def estimate(sketch: _Sketch, compressed: jax.Array) -> Estimate:
        def against(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            probe = draw(key)  # once more, which takes no memory
            return _trees.inner_product(sketch.basis, probe), _trees.inner_product(probe, probe)

        overlaps, squares = lax.map(against, keys)
        return _estimate(sketch, compressed, overlaps, squares, count)

    found: Estimate = estimate(sketch, compressed)
    return found


@jax.jit
def _add(sketch: _Sketch, number: ArrayLike, probe: PyTree, image: PyTree) -> _Sketch:
    """Adds to the basis what is new in the image of a random vector."""
    unit = jnp.where(sketch.unit > 0, sketch.unit, _vectors.binary_scale(_vectors.peak(image)))
    image = jax.tree.map(lambda leaf: leaf / unit.astype(leaf.dtype), image)
    new, coordinates = _vectors.orthogonalised(image, sketch.basis)
    length = _vectors.norm(new)
    rounding = length <= 10 * jnp.finfo(length.dtype).eps * _vectors.norm(image)
    length = jnp.where(rounding, 0, length)
    basis = jax.tree.map(
        lambda rows, leaf: rows.at[number].set(jnp.where(rounding, 0, leaf).astype(rows.dtype)),
        sketch.basis,
        _vectors.normalised(new),
    )
    return _Sketch(
        unit=unit,
        basis=basis,
        coordinates=sketch.coordinates.at[number].set(coordinates.at[number].set(length)),
        forms=sketch.forms.at[number].set(_trees.inner_product(probe, image)),
    )


@jax.jit
def _row(basis: PyTree, number: ArrayLike) -> tuple[PyTree, jax.Array]:
    """A vector of the basis, its largest value about 1 for the product's sake, and its scale."""
    vector = jax.tree.map(lambda rows: rows[number], basis)
    peak = _vectors.binary_scale(_vectors.peak(vector))
    return jax.tree.map(lambda leaf: leaf / peak.astype(leaf.dtype), vector), peak


def _estimate(
    sketch: _Sketch, compressed: jax.Array, overlaps: jax.Array, squares: jax.Array, count: int
) -> Estimate:
    """The mean of k estimates, each of which leaves the image of one ωᵢ out of the basis.

    With Q the basis, the other images span what in the span of Q is orthogonal to Q sᵢ, for sᵢ of
    norm 1, orthogonal to all coordinates but those of ωᵢ. The estimate is the trace of A in there,
    plus vᵢ · A vᵢ for vᵢ the part of ωᵢ out of there, times the dimension out of there over ‖vᵢ‖².

    Args:
      compressed: Qᵀ A Q, shape (k, k).
      overlaps: Qᵀ ωᵢ in its rows, shape (k, k).
      squares: ‖ωᵢ‖², shape (k,).
      count: of the parameters.
    """
    left_out = _left_out(sketch.coordinates)
    kept = overlaps - _rowwise(left_out, overlaps)[:, None] * left_out
    forms = sketch.forms - 2 * _rowwise(kept, sketch.coordinates)
    forms += _rowwise(kept, _matmul(kept, compressed))
    rest = (count - len(squares) + 1) * forms / (squares - _rowwise(kept, kept))
    inside = jnp.trace(compressed) - _rowwise(left_out, _matmul(left_out, compressed))
    value, spread = _estimates.of_samples(inside + rest)
    rounding = jnp.finfo(value.dtype).eps * jnp.abs(jnp.diagonal(compressed)).sum()
    error = jnp.hypot(_SHARED * spread, rounding)
    return Estimate(sketch.unit * value, sketch.unit * error)


def _left_out(coordinates: jax.Array) -> jax.Array:
    """The s of `_estimate` in its rows: those of the inverse, transposed, at norm 1.

    Where the matrix has a rank below k, singular values are raised to rounding.
    """
    left, sizes, right = jnp.linalg.svd(coordinates)
    sizes = sizes / jnp.where(sizes[0] == 0, 1, sizes[0])
    sizes = jnp.maximum(sizes, jnp.finfo(sizes.dtype).eps)
    rows = _matmul(left / sizes[None], right)
    return rows / jnp.sqrt(_rowwise(rows, rows))[:, None]


def _rowwise(a: jax.Array, b: jax.Array) -> jax.Array:
    """The inner product of each row of `a` with that of `b`."""
    return jnp.einsum("ij,ij->i", a, b, precision="highest")


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
