"""What can be promised of the test error: a PAC-Bayes bound from chains at rising temperatures."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import Key, PyTree
from entropy_sgd_jax.flatness import _chains, _checks, _metropolis, _sgld
from entropy_sgd_jax.flatness._curvature import Loss, ScalarLoss
from entropy_sgd_jax.flatness._data import BatchSize
from entropy_sgd_jax.flatness._tempering import (
    Ascent,
    Maurer,
    TemperatureLadder,
    climb,
    next_temperature,
)

_FEWEST = 8  # examples for which Maurer's bound holds
_HIGH_R_HAT = 1.1


class PacBayesBound(NamedTuple):
    """The lowest bound of the ladder, its parts, and what tells whether to believe them."""

    value: jax.Array  # on the test error of the posterior, shape ()
    error: jax.Array  # of the posterior on the data, shape ()
    divergence: jax.Array  # KL(posterior ‖ prior), from above, in nats, shape ()
    inverse_temperature: jax.Array  # β of this posterior, shape ()
    draws: PyTree  # the end of each chain there, like `params` with the chains in a first axis
    ladder: TemperatureLadder

    def check(self) -> None:
        """Warns of all that speaks against the bound, or against each of a stack from `jax.vmap`.

        Outside of ``jax.jit`` that is already done.
        """
        _checks.warn_of_each(self, _doubts)


def _doubts(it: PacBayesBound) -> Iterator[str]:
    if np.isnan(it.ladder.errors).any():
        yield "What is certified has left [0, 1], or is not finite: there is no bound."
    chains = len(jax.tree.leaves(it.draws)[0])
    ladder = it.ladder
    used = ladder.inverse_temperatures <= float(it.inverse_temperature)
    limit = 3 + 16 / (chains - 1)  # about what Student's distribution asks for, for all rungs
    late = used & ~((ladder.r_hat <= _HIGH_R_HAT) & (np.abs(ladder.drift) <= limit))
    if late.any():
        worst = int(np.argmax(np.where(late, np.nan_to_num(ladder.r_hat, nan=np.inf), 0)))
        yield (
            f"The chains have not reached the posterior at {late.sum()} of {used.sum()} "
            f"temperatures, and the bound assumes that they have. Worst is the inverse temperature "
            f"{ladder.inverse_temperatures[worst]:.3g}: split R̂ is {ladder.r_hat[worst]:.3f}, and "
            f"the loss drifts by {ladder.drift[worst]:.1f} standard errors. Raise `num_steps`; or "
            "`scope`, for a narrower prior; or end at a lower inverse temperature."
        )


def pac_bayes_bound(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    *,
    error: Loss | None = None,
    scope: ArrayLike = 1.0,
    inverse_temperatures: Sequence[float] | None = None,
    num_temperatures: int = 24,
    confidence: float = 0.95,
    num_chains: int = 8,
    num_steps: int = 500,
    batch_size: BatchSize | None = None,
    key: Key = 0,
) -> PacBayesBound:
    r"""An upper bound on the test error of a Gibbs posterior, from the training data alone.

    .. math::
      \pi = N(w_0, 1/\gamma), \qquad G_\beta(w) \propto \exp(-\beta \, \hat L(w)) \, \pi(w), \qquad
      KL(G_\beta \| \pi) = \int_0^\beta \langle \hat L \rangle_b \, db
      - \beta \langle \hat L \rangle_\beta

    Chains go up a ladder of inverse temperatures, from draws of the prior π on. As the mean loss
    only falls with β, the left Riemann sum over the ladder is at least the integral, so that the
    divergence is estimated from above. Maurer's PAC-Bayes theorem then says of every G_β at once

    .. math::
      kl(\langle \hat e \rangle_\beta \,\|\, \langle e \rangle_\beta)
      \le (KL(G_\beta \| \pi) + \ln(2 \sqrt{n} / \delta)) / n

    for the mean error ê on the n examples, and e on new ones of the same distribution; solved for
    e, that is the bound, and the lowest of the ladder is returned.

    *What is certified* is the mean of `error` over draws from the posterior, a classifier that
    draws its parameters at random for each prediction; not one network, nor their vote. `loss` only
    defines the posterior. It needs a gradient and no bounds, such as a cross-entropy; `error` must
    lie in [0, 1] and needs no gradient, such as the share of wrong answers. Without `error`, the
    loss is certified itself.

    *What is assumed*: examples are independent and of one distribution; `params`, `scope`, the
    architecture and the loss were chosen without them; and the chains have reached the posterior of
    each temperature. No finite chain proves the last. A warning tells if R̂ or a drift of the loss
    speak against it; under ``jax.jit``, call ``.check()`` on what came out. At stationarity the
    bound holds with probability `confidence`: half of what is left is the data's, half that of the
    chains, whose standard errors widen all means of the ladder as those of a normal distribution.

    Cost: ``(num_temperatures + 1) * num_steps`` gradients of each chain over all data. Memory for
    some ten vectors like ``params`` for each chain, and the intermediate values of a batch.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar.
      params: w₀, the mean of the prior, which must not know the data: an initialisation, or zeros.
        Real floating arrays in any pytree.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``; of 8 examples or more.
      error: from ``(params, batch)`` to the mean over the batch, in [0, 1]; None is `loss`.
      scope: γ, above 0, the precision of the prior: its standard deviation is 1/√γ, in the units of
        the parameters.
      inverse_temperatures: β, the factors of the mean loss in the exponent, above 0 and rising. 0
        is put before. None is a geometric ladder from one over the prior's standard deviation of
        the loss to n.
      num_temperatures: how many, where they are not given, a static int of at least 1. The more,
        the smaller the excess of the Riemann sum.
      confidence: in (0, 1).
      num_chains: a static int of at least 2.
      num_steps: of each chain at each temperature, a static int of at least 8. The first half is
        thrown away.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      key: an int, a typed key or a legacy uint32 key.

    Returns:
      A ``PacBayesBound``: its `value`, parts, draws from the certified posterior, and the ladder.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form or of an
        unclear number of examples, and for an error whose mean over the data leaves [0, 1]. Single
        examples are not looked at: bound each one's yourself.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import pac_bayes_bound
    >>> x = jax.random.normal(jax.random.key(1), (1000, 2))
    >>> def loss(params, x):  # a logistic regression: which coordinate is the larger one?
    ...     margin = jnp.sign(x[:, 0] - x[:, 1]) * (x @ params)
    ...     return jnp.mean(jnp.log1p(jnp.exp(-margin)))
    >>> def error(params, x):
    ...     return jnp.mean((x[:, 0] > x[:, 1]) != (x @ params > 0))
    >>> bound = pac_bayes_bound(loss, jnp.zeros(2), [x], error=error, scope=0.1)
    >>> print(f"{bound.error:.2f} {bound.value:.2f}")
    0.01 0.04

    References:
      Maurer, "A note on the PAC Bayesian theorem", 2004, https://arxiv.org/abs/cs/0411099.
      Dziugaite and Roy, "Entropy-SGD optimizes the prior of a PAC-Bayes bound", ICML 2018, for the
      Gibbs posterior of Langevin chains; the prior here knows no data.
      Maurer, Mirzaei and Pontil, "Generalization of Gibbs and Langevin Monte Carlo algorithms in
      the interpolation regime", 2025, https://arxiv.org/abs/2510.06028, for chains at rising
      inverse temperatures.
    """
    _checks.params(params)
    data = _sgld.Minibatches(batches, batch_size)
    dtype = _trees.wide_dtype(params)
    scope = _checks.positive("scope", scope, "It is the precision of the prior.", dtype)
    count = _count(data)
    ladder = _given(inverse_temperatures)
    rungs = len(ladder) if ladder is not None else _temperatures(num_temperatures)
    plan = _chains.plan(num_chains, num_steps)
    maurer = Maurer(count, _slack(confidence), rungs + 1)
    above = next_temperature(ladder, rungs, count)
    # The ladder leads in from the wide end, with few steps at each rung: none of them short.
    certified = None if error is None else ScalarLoss(error, "error")
    sample = _metropolis.sampler(ScalarLoss(loss), params, data, plan, certified, shortest=1.0)
    conclude = jax.jit(functools.partial(climb, plan, maurer, above, error is None))
    key = _checks.key(key)
    zeros = _chains.zeros(params, plan.num_chains)

    def rung(number: jax.Array | int, ascent: Ascent) -> Ascent:
        target = _chains.Target(ascent.beta, scope)
        rung_key = jax.random.fold_in(key, number)
        run, offset = sample(target, rung_key, ascent.offset, ascent.step_size)
        climbed: Ascent = conclude(ascent, run, offset, number)
        return climbed

    noise = _chains.noise(jax.random.fold_in(key, rungs + 1), 0, zeros)
    first = jax.tree.map(lambda leaf: leaf / jnp.sqrt(scope).astype(leaf.dtype), noise)
    ascent = data.loop(0, rungs + 1, rung, Ascent.start(first, scope, plan, rungs + 1, dtype))
    bound = _concluded(params, ascent)
    if not _trees.is_traced(bound):
        _check_range(bound, "loss" if error is None else "error")
        _checks.warn_of_each(bound, _doubts)
    return bound


def _concluded(params: PyTree, ascent: Ascent) -> PacBayesBound:
    ladder, best = ascent.ladder, ascent.best
    draws = jax.vmap(lambda offset: _trees.cast_like(_chains.at(params, offset), params))
    return PacBayesBound(
        value=ladder.bounds[best],
        error=ladder.errors[best],
        divergence=ladder.divergences[best],
        inverse_temperature=ladder.inverse_temperatures[best],
        draws=draws(ascent.draws),
        ladder=ladder,
    )


def _check_range(bound: PacBayesBound, name: str) -> None:
    if np.isnan(np.asarray(bound.ladder.errors)).any():
        raise ValueError(
            f"`{name}` must be in [0, 1]; got values outside, or some that are not finite. Pass as "
            "`error` what is to be certified, such as the share of wrong answers; `loss` may then "
            "be unbounded."
        )


def _count(data: _sgld.Minibatches) -> jax.Array:
    count = data.total()
    if not _trees.is_traced(count) and count < _FEWEST:
        raise ValueError(
            f"`batches` must count at least {_FEWEST} examples; got {float(count):g}. The bound is "
            "of n independent examples; `batch_size` says how many a batch has."
        )
    return jnp.asarray(count, jnp.float32)


def _slack(confidence: Any) -> float:
    """Half of the probability that the bound fails."""
    if not (isinstance(confidence, int | float | np.number | jax.Array) and 0 < confidence < 1):
        raise ValueError(
            f"`confidence` must be a number in (0, 1); got {confidence!r}. 0.95 is the default."
        )
    return (1 - float(confidence)) / 2


def _given(ladder: Any) -> np.ndarray | None:
    if ladder is None:
        return None
    rungs = np.asarray(ladder, np.float64)
    rising = rungs.ndim == 1 and rungs.size and (np.diff(rungs, prepend=0) > 0).all()
    if not (rising and np.isfinite(rungs).all()):
        raise ValueError(
            "`inverse_temperatures` must be finite numbers that rise from above 0; got "
            f"{ladder!r}. None has them chosen."
        )
    return rungs


def _temperatures(number: Any) -> int:
    advice = "The more, the smaller the excess of the Riemann sum; 24 is the default."
    return _checks.integer("num_temperatures", number, 1, math.inf, advice)
