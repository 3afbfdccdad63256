"""The density of the spectrum, from products with random vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import Key, PyTree
from entropy_sgd_jax.flatness import _checks, _estimates, _lanczos, _vectors
from entropy_sgd_jax.flatness._curvature import Loss, is_flat, space
from entropy_sgd_jax.flatness._data import BatchSize, DataSet
from entropy_sgd_jax.flatness._estimates import Estimate

_PROBES = "Error bars fall with its square root, and need at least 2."


class SpectralDensity(NamedTuple):
    """The distribution of the eigenvalues, as one quadrature rule for each probe.

    The mean of any function over the eigenvalues is estimated by the sum of its values at the
    nodes, by weight. Rules of m nodes are exact, but for the randomness of the probe, on all
    polynomials up to degree 2m − 1. Weights are at least 0 and sum to 1 in each rule.
    """

    nodes: jax.Array  # shape (num_probes, num_steps)
    weights: jax.Array  # shape (num_probes, num_steps); 0 for nodes that are not needed

    def expectation(self, function: Callable[[jax.Array], jax.Array]) -> Estimate:
        """The mean of `function` over the eigenvalues, with its standard error over the probes.

        Args:
          function: of an array of eigenvalues, elementwise; further axes may follow its shape.

        >>> import jax.numpy as jnp
        >>> from entropy_sgd_jax.flatness import spectral_density
        >>> loss = lambda params, batch: 0.5 * jnp.sum(jnp.array([0.0, 0.0, 0.0, 2.0]) * params**2)
        >>> density = spectral_density(loss, jnp.ones(4), [None])
        >>> near_zero = density.expectation(lambda eigenvalue: jnp.abs(eigenvalue) < 1e-4)
        >>> print(f"{near_zero.value:.2f}")
        0.75
        """
        values = jnp.asarray(function(self.nodes), self.weights.dtype)
        sums = jnp.einsum("pm,pm...->p...", self.weights, values, precision="highest")
        return _estimates.of_samples(sums)

    def density(self, grid: ArrayLike, width: ArrayLike) -> jax.Array:
        """Mean over the probes of the density, smoothed by a Gaussian kernel.

        Args:
          grid: where, shape (points,).
          width: standard deviation of the kernel, in the units of the eigenvalues.

        Returns:
          Densities per unit of eigenvalue, which integrate to 1, shape (points,).
        """
        return self.density_estimate(grid, width).value

    def density_estimate(self, grid: ArrayLike, width: ArrayLike) -> Estimate:
        """``density``, with its standard error over the probes."""
        advice = "A hundredth of the range of `grid` is a start."
        width = _checks.positive("width", width, advice, self.nodes.dtype)
        grid = jnp.asarray(grid, self.nodes.dtype)

        def kernel(nodes: jax.Array) -> jax.Array:
            distance = jnp.subtract.outer(nodes, grid) / width  # SciPy's density squares the width
            values: jax.Array = jnp.exp(-0.5 * distance**2) / (2 * jnp.pi) ** 0.5
            return values

        # Divided last, lest small weights underflow.
        return Estimate(*(part / width for part in self.expectation(kernel)))


def spectral_density(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    *,
    num_probes: int = 8,
    num_steps: int = 80,
    batch_size: BatchSize | None = None,
    key: Key = 0,
) -> SpectralDensity:
    """The distribution of all eigenvalues, by stochastic Lanczos quadrature.

    From each of `num_probes` random vectors of ±1 runs a Lanczos iteration of `num_steps`; the
    eigenvalues of the small matrix that it builds are the nodes of a Gaussian quadrature rule for
    the spectrum, as that vector sees it. The mean over the probes is unbiased for polynomials
    up to degree 2 · num_steps − 1, and the largest and smallest nodes are close to the extreme
    eigenvalues.

    Cost: num_probes · (num_steps + 1) Hessian-vector products, and memory for `num_steps` vectors
    like ``params``: the probes run one after another. All vectors are reorthogonalised against all,
    at 4 · num_steps · n multiplications a step for n parameters, since otherwise eigenvalues that
    have converged come up again as ghosts.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar; or a ``GaussNewton``.
      params: real floating arrays in any pytree.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``.
      num_probes: how many random vectors, a static int of at least 1.
      num_steps: how many nodes each, a static int of at least 1. Details of the density finer than
        the distance of two nodes are not seen.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      key: of the random vectors: an int, a typed key or a legacy uint32 key.

    Returns:
      The rules, and what follows from them: ``density(grid, width)``, ``expectation(function)``.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import spectral_density
    >>> loss = lambda params, batch: 0.5 * jnp.sum(jnp.array([1.0, 1.0, 4.0]) * params**2)
    >>> density = spectral_density(loss, jnp.ones(3), [None], num_probes=2, num_steps=2)
    >>> print(density.nodes[0].round(1), density.weights[0].round(1))
    [1. 4.] [0.7 0.3]

    References:
      Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J.
      Matrix Anal. Appl. 38, 2017.
      Ghorbani, Krishnan and Xiao, "An investigation into neural net optimization via Hessian
      eigenvalue density", ICML 2019, for networks.
    """
    count, params = _checks.params(params), _vectors.arrays(params)
    num_probes = _checks.integer("num_probes", num_probes, 1, float("inf"), _PROBES)
    advice = "50 to 100 shows the bulk and the outliers of a network."
    num_steps = _checks.integer("num_steps", num_steps, 1, float("inf"), advice)
    rows, flat = min(num_steps, count), is_flat(params)  # `count` rows are all there are

    def find(data: DataSet, params: PyTree, key: jax.Array) -> SpectralDensity:
        like, product, _ = space(loss, params, data, flat=flat)
        keys = jax.random.split(key, num_probes)

        def probe(number: jax.Array | int) -> jax.Array:
            signs = _vectors.draw("rademacher", keys[number], like)
            krylov = _lanczos.start(like, rows, keys[number], signs)
            krylov = _lanczos.extend(data, product, krylov, -1, rows)
            nodes, rotation = jnp.linalg.eigh(krylov.projected)
            more = (0, num_steps - rows)  # the largest again, which no function minds
            nodes = jnp.pad(nodes * krylov.unit, more, mode="edge")
            return jnp.stack([nodes, jnp.pad(rotation[0] ** 2, more)])

        empty = jnp.zeros((2, num_steps), _trees.wide_dtype(params))
        rules = data.samples(num_probes, probe, empty)
        return SpectralDensity(nodes=rules[:, 0], weights=rules[:, 1])

    return DataSet(batches, batch_size).program(find, params, _checks.key(key))
