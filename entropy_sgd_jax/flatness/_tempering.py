"""Chains that go up a ladder of inverse temperatures, and the PAC-Bayes bound at each rung."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri, xlogy

from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import _chains, _convergence

_ROUNDING = 1e-5  # by which a mean over a batch may leave [0, 1]


class TemperatureLadder(NamedTuple):
    """What was found at each inverse temperature, all of shape (rungs,); the first is 0."""

    inverse_temperatures: jax.Array  # β
    losses: jax.Array  # mean over the posterior and the data
    errors: jax.Array  # likewise, of what is certified
    divergences: jax.Array  # upper estimate of KL(posterior ‖ prior) by the left Riemann sum, nats
    loss_errors: jax.Array  # standard error of `losses`
    error_errors: jax.Array  # of `errors`
    divergence_errors: jax.Array  # of `divergences`
    bounds: jax.Array  # on the test error
    r_hat: jax.Array  # of the split chains, 1 if they agree
    drift: jax.Array  # of the loss from one half of what is kept to the other, in standard errors
    acceptance: jax.Array  # the share of proposals taken

    def at(self, number: jax.Array | int, *values: jax.Array) -> TemperatureLadder:
        """With one value for each field at rung `number`."""
        pairs = zip(self, values, strict=True)
        return TemperatureLadder(*(row.at[number].set(value) for row, value in pairs))


class Ascent(NamedTuple):
    """How far up the ladder the chains are."""

    offset: PyTree  # w − w₀, with the chains in the first axis
    step_size: jax.Array  # ε, to start the next rung with
    beta: jax.Array  # of the next rung
    areas: jax.Array  # the left Riemann sum of each chain's mean loss, shape (num_chains,)
    variance: jax.Array  # of its mean, if the rungs were independent
    best: jax.Array  # the number of the rung with the lowest bound
    draws: PyTree  # offsets there
    ladder: TemperatureLadder

    @classmethod
    def start(
        cls, offset: PyTree, scope: jax.Array, plan: _chains.Plan, rungs: int, dtype: Any
    ) -> Ascent:
        """At draws from the prior."""
        zero, rows = jnp.zeros((), dtype), jnp.ones(rungs, dtype)
        ladder = TemperatureLadder(*[rows] * len(TemperatureLadder._fields))
        best, areas = jnp.zeros((), jnp.int32), jnp.zeros(plan.num_chains, dtype)
        return cls(offset, 1 / scope, zero, areas, zero, best, offset, ladder)


class Maurer(NamedTuple):
    """The theorem, for means that chains estimate."""

    examples: jax.Array  # n
    slack: float  # the probability to fail of the theorem, and that of all means together
    rungs: int

    def bound(self, error: jax.Array, spread: jax.Array, kl: jax.Array, kl_spread: Any) -> Any:
        """On the test error, from an error, a divergence and their standard errors."""
        quantile = -ndtri(jnp.full_like(error, self.slack / (2 * self.rungs)))
        complexity = kl + quantile * kl_spread + jnp.log(2 * jnp.sqrt(self.examples) / self.slack)
        return kl_inverse(jnp.minimum(error + quantile * spread, 1), complexity / self.examples)


def climb(
    plan: _chains.Plan,
    maurer: Maurer,
    above: Callable[[Any, jax.Array, jax.Array], jax.Array],
    same: bool,
    ascent: Ascent,
    run: _chains.Run,
    offset: PyTree,
    number: jax.Array | int,
) -> Ascent:
    """Takes stock of one rung, and goes on to the next.

    Args:
      above: from this rung to the next one's β, see `next_temperature`.
      same: whether the loss itself is certified.
      run: at this rung.
      offset: where it ended.
    """
    beta = ascent.beta
    run = jax.tree.map(lambda leaf: leaf.astype(beta.dtype), run)  # a loss may have more digits
    kept = run.samples.kept(plan.burn_in)
    losses = run.here + kept.losses
    errors = losses if same else kept.errors
    spread = _convergence.standard_error(losses)
    error, error_spread = _in_unit_interval(errors), _convergence.standard_error(errors)
    kl, kl_spread = _divergence(ascent, losses.mean(axis=1), spread)
    bound = maurer.bound(error, error_spread, kl, kl_spread)
    found = (losses.mean(), error, kl, spread, error_spread, kl_spread, bound)
    health = (_convergence.split_r_hat(losses), _convergence.drift(losses), kept.acceptance.mean())
    better = (number == 0) | (bound < ascent.ladder.bounds[ascent.best])
    step = above(number, beta, losses.std()) - beta
    return Ascent(
        offset=offset,
        step_size=run.step_size,
        beta=beta + step,
        areas=ascent.areas + step * losses.mean(axis=1),
        variance=ascent.variance + (step * spread) ** 2,
        best=jnp.where(better, jnp.asarray(number, jnp.int32), ascent.best),
        draws=jax.tree.map(lambda new, old: jnp.where(better, new, old), offset, ascent.draws),
        ladder=ascent.ladder.at(number, beta, *found, *health),
    )


def _in_unit_interval(errors: jax.Array) -> jax.Array:
    """Their mean; NaN if any lies outside."""
    inside = jnp.all((errors >= -_ROUNDING) & (errors <= 1 + _ROUNDING))
    return jnp.where(inside, jnp.clip(errors.mean(), 0, 1), jnp.nan)


def _divergence(ascent: Ascent, means: jax.Array, spread: jax.Array) -> tuple[jax.Array, jax.Array]:
    """KL(posterior ‖ prior) from above, and its standard error.

    Args:
      means: of the loss along each chain.
      spread: the standard error of their mean.
    """
    chains = ascent.areas - ascent.beta * means
    independent = jnp.sqrt(ascent.variance + (ascent.beta * spread) ** 2)
    # The rungs are not independent where chains forget slowly; the chains are.
    among = chains.std(ddof=1) / len(chains) ** 0.5
    return jnp.maximum(chains.mean(), 0), jnp.maximum(independent, among)


def kl_inverse(error: jax.Array, limit: jax.Array) -> jax.Array:
    """The largest p with kl(error ‖ p) ≤ limit, rounded up; 1 where either is NaN."""

    def halve(_: Any, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        kl = xlogy(error, error / middle) + xlogy(1 - error, (1 - error) / (1 - middle))
        above = kl > limit  # never where it is NaN
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    return lax.fori_loop(0, 50, halve, (error, jnp.ones_like(error)))[1]


def next_temperature(
    ladder: np.ndarray | None, rungs: int, count: jax.Array
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """From a rung's number, its β and the deviation of the loss there to the next rung's β."""

    def given(number: Any, beta: jax.Array, deviation: jax.Array) -> jax.Array:
        return jnp.asarray(ladder, beta.dtype)[jnp.minimum(number, rungs - 1)]

    def geometric(number: Any, beta: jax.Array, deviation: jax.Array) -> jax.Array:
        first = 1 / jnp.maximum(deviation, 1 / count)
        left = jnp.maximum(rungs - number, 1)
        further = beta * (count / beta) ** (1 / left)
        last = number >= rungs - 1
        return jnp.where(last, count, jnp.where(number == 0, first, further)).astype(beta.dtype)

    return geometric if ladder is None else given
