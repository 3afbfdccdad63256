"""The local entropy: the volume of a valley, to the scope's reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import Key, PyTree
from entropy_sgd_jax.flatness import _chains, _checks, _gaussian, _vectors
from entropy_sgd_jax.flatness._annealing import PILOTS, Chains, anneal
from entropy_sgd_jax.flatness._curvature import Loss, ScalarLoss, operator
from entropy_sgd_jax.flatness._data import BatchSize, DataSet
from entropy_sgd_jax.flatness._estimates import Estimate


def local_entropy(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    scope: ArrayLike,
    *,
    inverse_temperature: ArrayLike = 1.0,
    num_chains: int = 64,
    num_steps: int = 256,
    include_volume: bool = True,
    batch_size: BatchSize | None = None,
    key: Key = 0,
) -> Estimate:
    r"""The local entropy of the mean loss f over the data set: what Entropy-SGD ascends.

    .. math::
      F(x; \gamma) = \log \int \exp(-\beta f(x') - \gamma/2 \|x - x'\|^2) \, dx'

    First a Gaussian is fitted: the scope's own, N(x, 1/γ), narrowed to the parabolic part of the
    loss, along the eigenvectors of the Hessian at x (the 256 first ones of a large network, fewer
    beyond 65,536 parameters). The integral of a quadratic loss is that of the Gaussian. For
    what is left of any other loss, chains start from the Gaussian, and the rest is switched on from
    s = 0 to 1. The work W that this takes gives exp(F) in the mean: it is the Gaussian's integral
    times ⟨exp(−W)⟩, without bias from the number of steps or from chains that lag behind. In
    between, each chain moves by Langevin steps with Metropolis' correction, in a form that leaves
    the Gaussian as it is at any step size and in any dimension. Eight further chains choose that
    size, and the steps of s. The standard error is over independent chains, so that no correlation
    along a chain enters.

    Cost, for each scope: `num_steps` + 2 gradients of each of `num_chains` + 8 chains over the
    data, in as many passes, and one more for each round of the fit: 2 to 11, 64 at most; up to 257
    Hessian-vector products. Memory for three vectors like ``params`` for each chain and for
    one for each axis, and the intermediate values of as many batches at once.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar.
      params: x, real floating arrays in any pytree.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``. The chains follow the whole
        loss, not a batch's.
      scope: γ, above 0, in 1 / (units of the parameters)²: a number, or an array for a profile, all
        of whose points share their random numbers.
      inverse_temperature: β, above 0. Chaudhari et al. have 1; the number of examples makes the
        integrand a posterior density.
      num_chains: independent samples, a static int of at least 2. A valley that the Gaussian which
        they start from enters with probability p is missed by all with (1 − p)^num_chains.
      num_steps: of each chain, a static int of at least 1. More lower the error if β f varies by
        much more than 1 around the Gaussian.
      include_volume: whether to add (n/2) log(2π/γ), the value of a flat loss. In float32 it
        swallows the digits of a large network: leave it out to compare solutions.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      key: of the chains: an int, a typed key or a legacy uint32 key.

    Returns:
      F in nats and its standard error, in the shape of `scope`. The error is that of the spread of
      exp(−W) over the chains, or what a normal distribution of W would have if that is more, and
      the rounding of the loss and of what F is the sum of. An error below 1 is sound, except for a
      valley so narrow that no chain has entered it; an error above 1 means only that the estimate
      is unreliable, which a warning says outside ``jax.jit``: take more steps, or let the loss
      return more digits.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import local_entropy
    >>> loss = lambda params, batch: 0.5 * jnp.sum(params**2)
    >>> estimate = local_entropy(loss, jnp.zeros(2), [None], scope=1.0)  # log(2π/2)
    >>> print(f"{estimate.value:.1f} ± {estimate.standard_error:.1f}")
    1.1 ± 0.0

    References:
      Chaudhari et al., "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys", ICLR 2017,
      https://arxiv.org/abs/1611.01838
      Neal, "Annealed importance sampling", Statistics and Computing 11, 2001.
      Cotter, Roberts, Stuart and White, "MCMC methods for functions: modifying old algorithms to
      make them faster", Statistical Science 28, 2013, for the Langevin step.
    """
    count, params = _checks.params(params), _vectors.arrays(params)
    dtype, advice = _trees.wide_dtype(params), "1e-4 to 1 is usual in training."
    scope = _checks.positive("scope", scope, advice, dtype, scalar=False)
    advice = "1.0 is the paper's."
    beta = _checks.positive("inverse_temperature", inverse_temperature, advice, dtype)
    advice = "The standard error is over them; 64 is the default."
    num_chains = _checks.integer("num_chains", num_chains, 2, float("inf"), advice)
    advice = "256 is the default."
    num_steps = _checks.integer("num_steps", num_steps, 1, float("inf"), advice)
    loss, data, key = ScalarLoss(loss), DataSet(batches, batch_size), _checks.key(key)
    scopes = scope.reshape(-1)

    def at(number: jax.Array | int) -> jax.Array:
        scope = scopes[number]
        chains, _, start, least = integrate(
            loss, params, data, scope, beta, num_chains, num_steps, key
        )
        along, rest = (-0.5 * jnp.log(precision / scope) for precision in start.precision)
        volume = 0.5 * count * jnp.log(2 * jnp.pi / scope) if include_volume else scope * 0
        value, error = _log_mean_exp(-chains.work)
        terms = [value, jnp.sum(along), (count - along.size) * rest, volume, -least]
        total = sum(terms[1:], start=value)
        of_sum = 2 * jnp.finfo(dtype).eps * sum(map(jnp.abs, terms))
        rounding = of_sum + loss.eps * jnp.abs(least)
        error = jnp.where(jnp.isfinite(total), jnp.hypot(error, rounding), jnp.inf)
        return jnp.stack([total, error])

    values, errors = data.samples(scopes.size, at, jnp.zeros(2, dtype)).T
    _checks.warn_where(
        ~(errors <= 1),
        "The standard error of local_entropy is above 1 nat, which means only that the estimate is "
        "unreliable: raise `num_steps` or `scope`, or lower `inverse_temperature`.",
    )
    return Estimate(values.reshape(scope.shape), errors.reshape(scope.shape))


def integrate(
    loss: Loss,
    params: PyTree,
    data: DataSet,
    scope: jax.Array,
    beta: jax.Array,
    num_chains: int,
    num_steps: int,
    key: jax.Array,
) -> tuple[Chains, _gaussian.Axes, _gaussian.Gaussian, jax.Array]:
    """The chains, their axes, the Gaussian they start from, and the energy theirs counts from."""
    axes_key, fit_key, chain_key = jax.random.split(key, 3)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    product = operator(loss, params, data)
    axes = _gaussian.principal_axes(data, product, params, count, axes_key)

    @jax.jit
    def noise(key: jax.Array) -> Any:
        keys = jax.random.split(key, num_chains + PILOTS)
        return jax.vmap(lambda key: axes.noise(key, params))(keys)

    energy = _energy(loss, params, data, axes, beta)
    start, least = _gaussian.fit(data, energy, noise, scope, fit_key)

    def excess(points: PyTree) -> tuple[jax.Array, Any]:
        """Of β f + γ/2 ‖·‖² over the energy of the Gaussian, and its gradient in its units."""
        places = start.place(points)
        value, gradient = energy(places)
        squares = [jax.vmap(_trees.inner_product)(tree, tree) for tree in (places, points)]
        gradient = start.in_units(_vectors.add_scaled(gradient, scope, places))
        gradient = _vectors.add_scaled(gradient, -1, points)
        return value - least + 0.5 * (scope * squares[0] - squares[1]), gradient

    return anneal(data, excess, noise, num_steps, chain_key), axes, start, least


def _energy(
    loss: Loss, params: PyTree, data: DataSet, axes: _gaussian.Axes, beta: jax.Array
) -> Callable[[Any], tuple[jax.Array, Any]]:
    """β f and its gradient, from and in the coordinates of several places."""

    def batch_energy(params: PyTree, offsets: PyTree, batch: PyTree) -> Any:
        def at(offset: PyTree) -> jax.Array:
            return loss(_chains.at(params, offset), batch)

        return jax.vmap(jax.value_and_grad(at))(offsets)

    mean = data.mean(batch_energy)
    join, split = (jax.jit(jax.vmap(change)) for change in (axes.join, axes.split))

    def energy(places: Any) -> tuple[jax.Array, Any]:
        value, gradient = mean(params, join(places))
        scaled = jax.tree.map(lambda leaf: beta * leaf, split(gradient))
        return beta * value.astype(beta.dtype), scaled

    return energy


def _log_mean_exp(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log ⟨exp(logs)⟩ to second order in its own error, and that error."""
    count = len(logs)
    terms = jnp.exp(logs - logs.max())
    spread = terms.var(ddof=1) / (terms.mean() ** 2 * count)
    value = logs.max() + jnp.log(terms.mean()) + spread / 2
    # A few samples miss the tail that dominates the mean of a wide distribution, and its spread
    # too: hence no less than that of a normal distribution, which errs by Var / 2 at most. Its
    # width is that of the upper half, since a chain left behind in a wall weighs nothing.
    variance = 2 * jnp.mean(jnp.maximum(logs - jnp.median(logs), 0) ** 2)
    normal = jnp.minimum(jnp.expm1(variance) / count, variance**2 / 4)
    normal = jnp.nan_to_num(normal, posinf=0)  # a chain that met an infinite loss weighs nothing
    return value, jnp.sqrt(jnp.maximum(spread, normal))
