"""Kinetic Langevin chains on the whole data set, with Metropolis' correction.

Each step is one Langevin step whose noise outlives it in part: the momentum is refreshed by a
fraction, and one leapfrog step is proposed. Without memory that is the Metropolis-adjusted Langevin
algorithm; with a long one it is Hamiltonian Monte Carlo, which crosses a flat valley in as many
steps as the valley is longer than wide, where a random walk needs the square of that.

No step size suits all of a degenerate valley: where it is narrower than a step, a chain hardly gets
in, and once in hardly out. So now and then a few steps are shorter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import _chains
from entropy_sgd_jax.flatness._chains import Plan, Run, Samples, StepSize, Target, inner_products
from entropy_sgd_jax.flatness._curvature import Loss
from entropy_sgd_jax.flatness._data import DataSet

_ACCEPTANCE = 0.8  # that the step size aims at
_REFRESHMENTS = 4  # of the momentum, on the way across the distribution
_SHIFT = 0.05  # of the level of acceptance, at each step
_CYCLE = 20  # steps from one short one to the next
_SHORTEST = 1 / 16  # of the longest step


class Chain(NamedTuple):
    """One state for each chain, in the first axis."""

    offset: PyTree  # w − w₀
    momentum: Any  # of P^(−1/2) (w − w₀)
    loss: jax.Array  # L(w) − L(w₀)
    error: jax.Array  # a second number, recorded beside the loss
    gradient: PyTree  # ∇L(w)
    level: jax.Array  # in (−1, 1); Metropolis' ratio must exceed its size


class Tuning(NamedTuple):
    """What is found in the burn-in."""

    step_size: StepSize
    spread: jax.Array  # mean squares of ⟨z, z′⟩ for two chains, and of ‖z‖; z = P^(−1/2) (w − w₀)
    squares: Any  # mean squares of the forces


def sample(
    loss: Loss, params: PyTree, data: DataSet, target: Target, plan: Plan, key: jax.Array
) -> Run:
    """All steps of all chains, from w₀."""
    run, _ = sampler(loss, params, data, plan)(
        target, key, _chains.zeros(params, plan.num_chains), 1 / sum(target)
    )
    return run


def sampler(
    loss: Loss,
    params: PyTree,
    data: DataSet,
    plan: Plan,
    error: Loss | None = None,
    shortest: float = _SHORTEST,
) -> Callable[[Target, jax.Array, Any, ArrayLike], tuple[Run, Any]]:
    """A function from target, key, offsets w − w₀ and first step size to all steps and their end.

    Losses are differences to that of the first chain at its start. `error` is recorded beside the
    loss, and need not have a gradient. The `shortest` step is that part of the longest.
    """

    def evaluate_batch(params: PyTree, offsets: PyTree, batch: PyTree) -> Any:
        def at(offset: PyTree) -> tuple[jax.Array, jax.Array]:
            moved = _chains.at(params, offset)
            value = loss(moved, batch)
            return value, jnp.zeros_like(value) if error is None else error(moved, batch)

        return jax.vmap(jax.value_and_grad(at, has_aux=True))(offsets)

    evaluate = functools.partial(data.mean(evaluate_batch), params)
    propose = jax.jit(functools.partial(_propose, plan, shortest))
    conclude = jax.jit(functools.partial(_conclude, plan, shortest))

    def run(target: Target, key: jax.Array, offset: Any, step_size: ArrayLike) -> tuple[Run, Any]:
        (values, errors), gradient = evaluate(offset)
        here = values[0]

        def step(number: jax.Array | int, carry: tuple[Chain, Tuning, Samples]) -> Any:
            chain, tuning, samples = carry
            chain, proposal = propose(target, key, chain, tuning, number)
            (value, error), gradient = evaluate(proposal.offset)
            proposal = proposal._replace(loss=value - here, error=error, gradient=gradient)
            return conclude(target, chain, proposal, tuning, samples, number)

        level_key = jax.random.fold_in(key, 0)
        level = jax.random.uniform(level_key, values.shape, values.dtype, minval=-1)
        momentum = jax.tree.map(jnp.zeros_like, offset)
        chain = Chain(offset, momentum, values - here, errors, gradient, level)
        squares = jax.tree.map(lambda leaf: leaf[0], momentum)
        first = StepSize.start(plan, jnp.asarray(step_size, values.dtype))
        tuning = Tuning(first, jnp.zeros(2, values.dtype), squares)
        empty = Samples.empty(plan, values.dtype)
        chain, tuning, samples = plan.run(data, step, (chain, tuning, empty))
        return Run(samples, jnp.exp(tuning.step_size.log), here), chain.offset

    return run


def _propose(
    plan: Plan,
    shortest: float,
    target: Target,
    key: jax.Array,
    chain: Chain,
    tuning: Tuning,
    number: jax.Array | int,
) -> tuple[Chain, Chain]:
    """The chains with a new momentum, and where half a kick and a drift take them."""
    noise = _chains.noise(key, number, chain.offset)
    roots = jax.tree.map(jnp.sqrt, _chains.preconditioner(plan, target, tuning.squares))
    time = _time(tuning, shortest, number)
    memory = _memory(tuning, time)

    def refresh(momentum: jax.Array, noise: jax.Array) -> jax.Array:
        kept = memory.astype(momentum.dtype)
        return kept * momentum + jnp.sqrt(1 - kept**2) * noise

    chain = chain._replace(
        momentum=jax.tree.map(refresh, chain.momentum, noise),
        level=(chain.level + 1 + _SHIFT) % 2 - 1,
    )
    momentum = _kicked(chain, target, roots, time)
    offset = jax.tree.map(
        lambda u, root, p: u + time.astype(u.dtype) * root[None] * p, chain.offset, roots, momentum
    )
    return chain, chain._replace(offset=offset, momentum=momentum)


def _time(tuning: Tuning, shortest: float, number: jax.Array | int) -> jax.Array:
    """The length of a step, √ε and now and then less; shape ().

    It depends on the number of the step alone, so each step leaves the density as it is. Short
    ones follow each other: the momentum turns round at each long one that is refused.
    """
    phase = jnp.cos(jnp.pi / _CYCLE * (number % _CYCLE)) ** 16
    log = tuning.step_size.log
    return jnp.exp(log / 2 + jnp.log(shortest) * phase).astype(log.dtype)


def _memory(tuning: Tuning, time: jax.Array) -> jax.Array:
    """The share of the momentum that a step of this length leaves; shape ().

    The squared width is the mean over the principal axes, each weighted by its own variance: few
    chains estimate that without bias, in any dimension.
    """
    overlap, square = tuning.spread
    width = jnp.sqrt(overlap / jnp.where(square > 0, square, 1))
    steps = width / time
    return jnp.where(steps > 0, jnp.exp(-_REFRESHMENTS / jnp.where(steps > 0, steps, 1)), 0)


def _kicked(chain: Chain, target: Target, roots: Any, time: jax.Array) -> Any:
    """The momentum after the force of half a step."""
    force = target.force(chain.gradient, chain.offset)
    return jax.tree.map(
        lambda p, root, f: p - time.astype(p.dtype) / 2 * root[None] * f,
        *(chain.momentum, roots, force),
    )


def _conclude(
    plan: Plan,
    shortest: float,
    target: Target,
    chain: Chain,
    proposal: Chain,
    tuning: Tuning,
    samples: Samples,
    number: jax.Array | int,
) -> tuple[Chain, Tuning, Samples]:
    """The second half of the kick, Metropolis' choice, then tuning and recording."""
    preconditioner = _chains.preconditioner(plan, target, tuning.squares)
    roots = jax.tree.map(jnp.sqrt, preconditioner)
    momentum = _kicked(proposal, target, roots, _time(tuning, shortest, number))
    chain, probability = _choose(target, chain, proposal._replace(momentum=momentum))
    tuning = _tuned(target, plan, chain, tuning, preconditioner, probability.mean(), number)
    square = inner_products(chain.offset, chain.offset)
    samples = samples.with_step(number, chain.loss, chain.error, 0, square, 0, probability.mean())
    return chain, tuning, samples


def _choose(target: Target, chain: Chain, proposal: Chain) -> tuple[Chain, jax.Array]:
    """The proposals, or where they are refused the old states with their momentum turned round.

    The level that decides is not drawn afresh at each step but moves on slowly, so that refusals
    come in a row, with long runs between them in which the momentum lives. The density stays as it
    is: Neal, 2020.
    """
    gain = -_rise_of_energy(target, chain, proposal)
    taken = jnp.abs(chain.level) < jnp.exp(jnp.minimum(gain, 1))  # not if it is NaN

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    proposal = proposal._replace(level=chain.level * jnp.exp(-gain))
    back = chain._replace(momentum=jax.tree.map(jnp.negative, chain.momentum))
    return jax.tree.map(choose, proposal, back), jnp.nan_to_num(jnp.exp(jnp.minimum(gain, 0)))


def _rise_of_energy(target: Target, chain: Chain, proposal: Chain) -> jax.Array:
    """Of nβ L + γ/2 ‖w − w₀‖² + ½ ‖p‖²; shape (num_chains,).

    The squares are subtracted one by one, since their sums would be too large for float32.
    """

    def rise_of_square(new: Any, old: Any) -> jax.Array:
        difference, total = (jax.tree.map(f, new, old) for f in (jnp.subtract, jnp.add))
        return inner_products(difference, total)

    rise = target.inverse_temperature * (proposal.loss - chain.loss)
    rise = rise + target.scope / 2 * rise_of_square(proposal.offset, chain.offset)
    rise = rise + rise_of_square(proposal.momentum, chain.momentum) / 2
    return rise.astype(chain.loss.dtype)


def _tuned(
    target: Target,
    plan: Plan,
    chain: Chain,
    tuning: Tuning,
    preconditioner: Any,
    acceptance: jax.Array,
    number: jax.Array | int,
) -> Tuning:
    """Step size, spread and preconditioner after one more step of the burn-in."""
    change = (acceptance - _ACCEPTANCE) / jnp.sqrt(1 + number / 10)
    whitened = jax.tree.map(lambda u, p: u / jnp.sqrt(p)[None], chain.offset, preconditioner)
    other = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), whitened)
    overlaps, squares = (inner_products(whitened, z) for z in (other, whitened))
    spread = jnp.stack([(overlaps**2).mean(), squares.mean()])
    weight = jnp.where(number < plan.burn_in, plan.forgetting(number), 0)
    force = target.force(chain.gradient, chain.offset)
    return Tuning(
        tuning.step_size.moved(plan, number, change),
        (tuning.spread + weight * (spread - tuning.spread)).astype(tuning.spread.dtype),
        _chains.mean_squares(plan, number, tuning.squares, force),
    )
