"""The local entropy, by annealed importance sampling."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import Key, PyTree
from entropy_sgd_jax.flatness import checks, vectors
from entropy_sgd_jax.flatness.curvature import Loss
from entropy_sgd_jax.flatness.data import BatchSize, DataSet
from entropy_sgd_jax.flatness.estimates import Estimate

_PILOTS = 8  # further chains, which choose the step size for the others
_ACCEPTANCE = 0.6  # that they aim at
_ADAPTATION = 0.3  # of the logarithm of the step size, per step


def local_entropy(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    scope: ArrayLike,
    *,
    inverse_temperature: ArrayLike = 1.0,
    num_chains: int = 32,
    num_steps: int = 256,
    include_volume: bool = True,
    batch_size: BatchSize | None = None,
    key: Key = 0,
) -> Estimate:
    r"""The local entropy of the mean loss f over the data set: what Entropy-SGD ascends.

    .. math::
      F(x; \gamma) = \log \int \exp(-\beta f(x') - \gamma/2 \|x - x'\|^2) \, dx'

    Each chain starts from the exactly known Gaussian of a flat loss, and the loss is switched on
    from s = 0 to 1. The work W that this takes, the sum of (s′ − s) β f over all steps, gives
    exp(F) in the mean: exp(F) = (2π/γ)^(n/2) ⟨exp(−W)⟩, without bias from the number of steps or
    from chains that lag behind. In between, each chain moves by Langevin steps with Metropolis'
    correction, in a form that leaves the Gaussian as it is at any step size and in any dimension.
    Eight further chains choose that size. Each chain takes part in the error with a number of its
    own, so that no correlation along a chain enters.

    Cost: `num_steps` + 1 gradients of each of `num_chains` + 8 chains over the data, in as many
    passes, for each scope; memory for three vectors like ``params`` for each chain, and the
    intermediate values of as many batches at once.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar.
      params: x, real floating arrays in any pytree.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``. The chains follow the whole
        loss, not a batch's.
      scope: γ, above 0, in 1 / (units of the parameters)²: a number, or an array for a profile, all
        of whose points share their random numbers.
      inverse_temperature: β, above 0. Chaudhari et al. have 1; the number of examples makes the
        integrand a posterior density.
      num_chains: independent samples, a static int of at least 2.
      num_steps: of each chain, a static int of at least 1. More lower the error where β f varies by
        much more than 1 within the scope.
      include_volume: whether to add (n/2) log(2π/γ), the value of a flat loss. In float32 it
        swallows the digits of a large network: leave it out to compare solutions.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      key: of the chains: an int, a typed key or a legacy uint32 key.

    Returns:
      F in nats and its standard error, in the shape of `scope`. The error is that of the spread of
      exp(−W) over the chains, or what a normal distribution of W would have if that is more: with
      Var W below 1 the error is small and sound, far beyond it says no more than that the estimate
      is bad, and to take more steps.

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
    count = checks.params(params)
    advice = "1e-4 to 1 is usual in training."
    scope = checks.positive("scope", scope, advice, scalar=False)
    beta = checks.positive("inverse_temperature", inverse_temperature, "1.0 is the paper's.")
    advice = "The standard error is over them; 32 is the default."
    num_chains = checks.integer("num_chains", num_chains, 2, float("inf"), advice)
    advice = "256 is the default."
    num_steps = checks.integer("num_steps", num_steps, 1, float("inf"), advice)
    data, key = DataSet(batches, batch_size), checks.key(key)
    scopes = scope.astype(vectors.dtype_of(params)).reshape(-1)

    def at(number: ArrayLike) -> jax.Array:
        chains = anneal(loss, params, data, scopes[number], beta, num_chains, num_steps, key)
        volume = 0.5 * count * jnp.log(2 * jnp.pi / scopes[number])
        value, error = _log_mean_exp(-chains.work)
        return jnp.stack([value + include_volume * volume, error])

    values, errors = data.samples(scopes.size, at, jnp.zeros(2, scopes.dtype)).T
    return Estimate(values.reshape(scope.shape), errors.reshape(scope.shape))


class Chains(NamedTuple):
    """One state for each chain, in the first axis of all but the step size."""

    offset: PyTree  # x′ − x
    loss: jax.Array  # f(x′)
    gradient: PyTree  # ∇f(x′)
    work: jax.Array  # W
    log_step_size: jax.Array  # shape ()


def anneal(
    loss: Loss,
    params: PyTree,
    data: DataSet,
    scope: jax.Array,
    beta: jax.Array,
    num_chains: int,
    num_steps: int,
    key: jax.Array,
) -> Chains:
    """Chains from the Gaussian to the Gibbs distribution; a mean over them, weighted by exp(−W), is
    one over exp(−β f(x′) − γ/2 ‖x − x′‖²).
    """

    def evaluate_batch(params: PyTree, offsets: PyTree, batch: PyTree) -> Any:
        def at(offset: PyTree) -> jax.Array:
            return loss(_trees.cast_like(vectors.add_scaled(offset, 1, params), params), batch)

        return jax.vmap(jax.value_and_grad(at))(offsets)

    evaluate = functools.partial(data.mean(evaluate_batch), params)

    def step(number: ArrayLike, chains: Chains) -> Chains:
        # Small steps where the loss is weak, since there its mean falls fastest.
        before, now = (((number + i) / num_steps) ** 2 for i in (0, 1))
        work = chains.work + (now - before) * beta * chains.loss[:num_chains]
        chains = chains._replace(work=jnp.asarray(work, chains.work.dtype))
        step_key = jax.random.fold_in(key, number + 1)
        proposal = _propose(chains, scope, now * beta, step_key)
        evaluated = evaluate(proposal)
        moved: Chains = _accept(chains, proposal, evaluated, scope, now * beta, step_key)
        return moved

    noise = _noise(jax.random.fold_in(key, 0), params, num_chains + _PILOTS)
    offset = jax.tree.map(lambda leaf: leaf / jnp.sqrt(scope).astype(leaf.dtype), noise)
    value, gradient = evaluate(offset)
    work = jnp.zeros(num_chains, value.dtype)
    log_step_size = jnp.log(jnp.asarray(2, value.dtype))
    return data.loop(0, num_steps, step, Chains(offset, value, gradient, work, log_step_size))


def _noise(key: jax.Array, params: PyTree, count: int) -> Any:
    """Unit normal, for each of `count` chains."""
    keys = jax.random.split(key, count)
    return jax.vmap(lambda key: vectors.draw(jax.random.normal, key, params))(keys)


@jax.jit
def _propose(chains: Chains, scope: jax.Array, weight: jax.Array, key: jax.Array) -> Any:
    """A semi-implicit Langevin step, which leaves the Gaussian N(0, 1/γ) as it is.

    At step size 2 it draws from that Gaussian afresh, shifted by the gradient.
    """
    size = jnp.exp(chains.log_step_size)

    def leaf_step(offset: jax.Array, gradient: jax.Array, noise: jax.Array) -> jax.Array:
        drift = (2 - size) * offset - 2 * size * weight / scope * gradient
        return ((drift + jnp.sqrt(8 * size / scope) * noise) / (2 + size)).astype(offset.dtype)

    noise = _noise(jax.random.fold_in(key, 0), *_one_chain(chains.offset))
    return jax.tree.map(leaf_step, chains.offset, chains.gradient, noise)


def _one_chain(offset: PyTree) -> tuple[Any, int]:
    """The first chain's, and how many there are."""
    return jax.tree.map(lambda leaf: leaf[0], offset), len(jax.tree.leaves(offset)[0])


@jax.jit
def _accept(
    chains: Chains,
    offset: PyTree,
    evaluated: PyTree,
    scope: jax.Array,
    weight: jax.Array,
    key: jax.Array,
) -> Chains:
    """Metropolis' choice between the old states and the proposed ones, and the next step size."""
    size = jnp.exp(chains.log_step_size)
    proposed = chains._replace(offset=offset, loss=evaluated[0], gradient=evaluated[1])

    def flow(here: Chains, there: Chains) -> jax.Array:
        """−log of (density here) · (density of the move there), less what is symmetric."""
        move = jax.tree.map(
            lambda u, v: (v - u) / 2 + size.astype(u.dtype) / 4 * (u + v), here.offset, there.offset
        )
        squared = jax.vmap(vectors.inner_product)(here.gradient, here.gradient)
        along = jax.vmap(vectors.inner_product)(move, here.gradient)
        return weight * (here.loss + along + size / (4 * scope) * weight * squared)

    probability = jnp.exp(jnp.minimum(flow(chains, proposed) - flow(proposed, chains), 0))
    uniform = jax.random.uniform(jax.random.fold_in(key, 1), probability.shape, probability.dtype)
    taken = uniform < probability  # never where the loss is not a number

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    offset, loss, gradient = (
        jax.tree.map(choose, new, old) for new, old in zip(proposed[:3], chains[:3], strict=True)
    )
    # Only the pilots steer, and they do not count, so that to all others the sizes are given.
    excess = jnp.nan_to_num(probability[len(chains.work) :]).mean() - _ACCEPTANCE
    log_step_size = jnp.minimum(chains.log_step_size + _ADAPTATION * excess, jnp.log(2.0))
    log_step_size = jnp.asarray(log_step_size, chains.log_step_size.dtype)
    return Chains(offset, loss, gradient, chains.work, log_step_size)


def _log_mean_exp(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log ⟨exp(logs)⟩ to second order in its own error, and that error."""
    count = len(logs)
    terms = jnp.exp(logs - logs.max())
    spread = terms.var(ddof=1) / (terms.mean() ** 2 * count)
    value = logs.max() + jnp.log(terms.mean()) + spread / 2
    # A few samples miss the tail that dominates the mean of a wide distribution, and its spread
    # too: hence no less than that of a normal distribution, which errs by Var / 2 at most.
    variance = logs.var(ddof=1)
    normal = jnp.minimum(jnp.expm1(variance) / count, variance**2 / 4)
    normal = jnp.nan_to_num(normal, posinf=0)  # a chain that met an infinite loss weighs nothing
    return value, jnp.sqrt(jnp.maximum(spread, normal))
