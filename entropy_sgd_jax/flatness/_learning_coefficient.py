"""The local learning coefficient: how many parameters a minimum really uses."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import Key, PyTree
from entropy_sgd_jax.flatness import _chains, _checks, _convergence, _metropolis, _sgld
from entropy_sgd_jax.flatness._curvature import Loss, ScalarLoss
from entropy_sgd_jax.flatness._data import BatchSize
from entropy_sgd_jax.flatness._progress import Progress

_LOW_ACCEPTANCE = 0.3
_HIGH_BIAS = 0.2
_HIGH_ROUNDING = 0.3
_HIGH_R_HAT = 1.1
_SAMPLERS = {"metropolis": _metropolis.sample, "sgld": _sgld.sample}


class LearningCoefficient(NamedTuple):
    """λ̂, its error, and what tells whether to believe them.

    The first half of each chain is thrown away: only `trace` and `distances` show it.
    """

    value: jax.Array  # λ̂, shape ()
    standard_error: jax.Array  # of `value`, with the correlation along the chains, shape ()
    chains: jax.Array  # an estimate for each chain, shape (num_chains,)
    trace: jax.Array  # L(w) − L(w₀) of all steps, shape (num_chains, num_steps)
    distances: jax.Array  # ‖w − w₀‖² of all steps, shape (num_chains, num_steps)
    inverse_temperature: jax.Array  # nβ, shape ()
    step_size: jax.Array  # ε of the longest steps, shape ()
    step_bias: jax.Array  # of a finite ε; it is subtracted already; 0 with Metropolis, shape ()
    acceptance: jax.Array  # the share of proposals taken; 1 without Metropolis, shape ()
    rounding: jax.Array  # of nβ L by the digits of the loss, shape ()
    r_hat: jax.Array  # of the split chains, 1 if they agree, shape ()
    drift: jax.Array  # of the loss from one half of what is kept to the other, in standard errors
    departure: jax.Array  # of ‖w − w₀‖², likewise

    def check(self) -> None:
        """Warns of all that casts doubt on the value, or on each of a stack from `jax.vmap`.

        Outside of ``jax.jit`` that is already done.
        """
        _checks.warn_of_each(self, _doubts)


def _doubts(it: LearningCoefficient) -> Iterator[str]:
    diverged = np.count_nonzero(~np.isfinite(it.chains))
    if diverged:
        yield (
            f"{diverged} of {len(it.chains)} chains diverged: their loss is not finite. Lower "
            "`step_size`, or leave it out to have it found."
        )
        return
    if it.acceptance < _LOW_ACCEPTANCE:
        yield (
            f"Only {it.acceptance:.0%} of the proposals were accepted. Lower `step_size`; or leave "
            "it out, and raise `num_steps`, half of which go to finding it."
        )
    if it.value < -3 * it.standard_error:
        yield (
            f"`params` is no minimum: the loss along the chains is lower, so that the coefficient "
            f"comes to {it.value:.3g} ± {it.standard_error:.2g}. Train further, or raise `scope`."
        )
    if abs(it.step_bias) > _HIGH_BIAS * abs(it.value) + it.standard_error:
        yield (
            f"The finite step size adds {it.step_bias:.3g} to a coefficient of {it.value:.3g}. "
            "Lower `step_size`, or leave it out to have it found."
        )
    if it.rounding > _HIGH_ROUNDING:
        yield (
            f"The digits of the loss leave nβ L uncertain by {it.rounding:.2g}. Let it return "
            "float32; if it does, pass float64 parameters, under jax_enable_x64, or a lower "
            "`inverse_temperature`."
        )
    limit = 3 + 8 / (len(it.chains) - 1)  # about what Student's distribution asks for
    if it.r_hat > _HIGH_R_HAT or abs(it.drift) > limit or it.departure > limit:
        yield (
            f"The chains have not arrived: split R̂ is {it.r_hat:.3f}, and from the first half of "
            f"what is kept to the second, the loss changed by {it.drift:.1f} standard errors and "
            f"the squared distance from `params` by {it.departure:.1f}. Raise `num_steps`; or "
            "`scope`, to ask about a smaller neighbourhood."
        )


def local_learning_coefficient(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    *,
    inverse_temperature: ArrayLike | None = None,
    scope: ArrayLike = 1.0,
    step_size: Any = None,
    method: str = "metropolis",
    precondition: bool | None = None,
    num_chains: int = 8,
    num_steps: int = 2000,
    batch_size: BatchSize | None = None,
    progress: bool | Progress = False,
    key: Key = 0,
) -> LearningCoefficient:
    r"""The local learning coefficient: half the number of parameters that a minimum really uses.

    .. math::
      \hat\lambda = n\beta \, (\langle L(w) \rangle - L(w_0)), \qquad
      p(w) \propto \exp(-n\beta \, L(w) - \gamma/2 \, \|w - w_0\|^2)

    With a Hessian of full rank it is half the number of all parameters. One that is degenerate at
    w₀ counts less, and one that the loss does not depend on counts nothing. It is also
    −∂F/∂ln(nβ) − nβ L(w₀) of the local entropy F at inverse temperature nβ.

    Chains start at w₀ and move side by side. By default each step is a Langevin step on the whole
    loss with Metropolis' correction, so that its size, found in the burn-in, biases nothing, and
    its momentum lasts about as long as it takes to cross the valley. A few in twenty steps are
    shorter, for valleys narrower than a step. With ``method="sgld"`` it is

    .. math::
      w \leftarrow w - (\varepsilon/2) (n\beta \nabla L_B(w) + \gamma (w - w_0))
      + \sqrt{\varepsilon} \, \xi

    on one mini-batch B, new at each step and shared by the chains; the noise that its gradient has
    at w₀ is subtracted. The loss is measured as a difference to w₀ on the next mini-batch,
    which w does not know. What the step size adds to nβ ⟨L⟩ is (ε/8) ⟨(nβ ∇L + γ(w − w₀)) · nβ ∇L⟩
    in a quadratic valley, and less in a flatter one; it is subtracted, and ε is chosen so that it
    is 4 % of λ̂. Outside ``jax.jit`` a warning tells if chains diverge, have not arrived, or fall
    below L(w₀); inside, call ``.check()`` on the result.

    Cost: `num_steps` gradients of each chain, on all data or on a mini-batch; for "sgld" one more
    gradient a step, for all chains together. Memory for eight vectors like ``params`` for each
    chain, and the intermediate values of a batch for each.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar.
      params: w₀, a minimum of the loss; real floating arrays in any pytree. Let ``loss`` close
        over what must not move.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``. For "sgld" these are the
        mini-batches: stacked ones are drawn at random, others come in their order.
      inverse_temperature: nβ, above 0, the factor of the mean loss in the exponent. None is
        n / ln n, for the n examples in `batches`.
      scope: γ, above 0, in 1 / (units of the parameters)². It is not multiplied by nβ.
      step_size: ε, above 0, in (units of the parameters)², of the longest steps. None: it is found
        in the burn-in.
      method: "metropolis", or "sgld" where a pass over all data at each step is too much.
      precondition: whether each parameter has a step size of its own, ε times
        √(γ / mean squared force), as in RMSProp; the mean is taken in the burn-in and then kept.
        None is True if the step size is to be found, else False.
      num_chains: a static int of at least 2.
      num_steps: of each chain, a static int of at least 8. The first half is the burn-in.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      progress: True for a bar, which needs rich; or a function of a description, the number of
        parts done and their total.
      key: an int, a typed key or a legacy uint32 key.

    Returns:
      A ``LearningCoefficient``: λ̂, its standard error, and what tells whether to believe them.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import local_learning_coefficient
    >>> def loss(params, batch):  # 1/2, 1/4, 1/4, and 0 for the last, of which it knows nothing
    ...     return params[0] ** 2 + params[1] ** 4 + params[2] ** 4
    >>> estimate = local_learning_coefficient(
    ...     loss, jnp.zeros(4), [None], inverse_temperature=1e6, num_chains=32
    ... )
    >>> print(f"{estimate.value:.1f}")
    1.0

    References:
      Lau, Furman, Wang, Murfet and Wei, "The local learning coefficient: a singularity-aware
      complexity measure", AISTATS 2025, https://arxiv.org/abs/2308.12108. There is no Metropolis
      correction there, and L(w₀) is one number for all mini-batches.
      Neal, "Non-reversibly updating a uniform [0,1] value for Metropolis accept/reject decisions",
      2020, https://arxiv.org/abs/2001.11950, and Hoffman and Sountsov, "Tuning-free generalized
      Hamiltonian Monte Carlo", AISTATS 2022, for the Langevin step that remembers; Neal, "MCMC
      using Hamiltonian dynamics", 2011, for steps of several sizes.
      Baker, Fearnhead, Fox and Nemeth, "Control variates for stochastic gradient MCMC", Statistics
      and Computing 29, 2019.
      Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and
      localization: an improved R̂", Bayesian Analysis 16, 2021, for the error with correlation.
    """
    _checks.params(params)
    loss = scalar = ScalarLoss(loss)
    if isinstance(batches, list) and len(batches) == 1 and batches[0] is None:
        # Stacked, for loops without Python; the loss does not look at it.
        batches, loss = jnp.zeros(1), _without_data(loss)
    data = _sgld.Minibatches(batches, batch_size)
    target = _target(params, data, inverse_temperature, scope)
    plan = _plan(params, step_size, precondition, num_chains, num_steps, progress)
    advice = "'metropolis' is exact, and takes all data at each step; 'sgld' takes one batch."
    method = _checks.choice("method", method, tuple(_SAMPLERS), advice)

    def measure(
        data: _sgld.Minibatches, params: PyTree, target: Any, step_size: Any, key: jax.Array
    ) -> LearningCoefficient:
        run = _SAMPLERS[method](loss, params, data, target, plan._replace(step_size=step_size), key)
        beta, shared = target.inverse_temperature, method == "sgld"
        return _estimate(run, beta, plan.burn_in, shared, scalar.eps)

    arguments = (params, target, plan.step_size, _checks.key(key))
    estimate: LearningCoefficient = (
        measure(data, *arguments) if progress else data.program(measure, *arguments)
    )
    if not _trees.is_traced(estimate):
        _checks.warn_of_each(estimate, _doubts)
    return estimate


def _without_data(loss: Loss) -> Loss:
    return lambda params, batch: loss(params, None)


def _target(
    params: PyTree, data: _sgld.Minibatches, temperature: Any, scope: ArrayLike
) -> _chains.Target:
    if temperature is None:
        temperature = n = data.total()
        if not _trees.is_traced(n) and n < 2:
            raise ValueError(
                f"`inverse_temperature` must be given where `batches` count {n:g} examples; got "
                "None, which is n / ln n. Pass nβ, the factor of the loss in the exponent."
            )
        temperature = n / (jnp if _trees.is_traced(n) else np).log(n)
    dtype = _trees.wide_dtype(params)
    beta = _checks.positive("inverse_temperature", temperature, "n / ln n is usual.", dtype)
    return _chains.Target(beta, _checks.positive("scope", scope, "1.0 is the default.", dtype))


def _plan(
    params: PyTree,
    step_size: Any,
    precondition: bool | None,
    num_chains: int,
    num_steps: int,
    progress: bool | Progress,
) -> _chains.Plan:
    if precondition is None:
        precondition = step_size is None
    if step_size is not None:
        dtype = _trees.wide_dtype(params)
        step_size = _checks.positive("step_size", step_size, "None has it found.", dtype)
    plan = _chains.plan(num_chains, num_steps)
    return plan._replace(step_size=step_size, precondition=bool(precondition), progress=progress)


@functools.partial(jax.jit, static_argnames=("burn_in", "shared", "eps"))
def _estimate(
    run: _chains.Run, beta: jax.Array, burn_in: int, shared: bool, eps: float
) -> LearningCoefficient:
    kept = run.samples.kept(burn_in)
    unbiased = beta * kept.losses - kept.biases
    error = _convergence.standard_error(unbiased)
    if shared:  # the batches of all chains are the same
        together = _convergence.standard_error(unbiased.mean(axis=0, keepdims=True))
        error = jnp.maximum(error, together)
    return LearningCoefficient(
        value=unbiased.mean(),
        standard_error=error,
        chains=unbiased.mean(axis=1),
        trace=run.samples.losses,
        distances=run.samples.distances,
        inverse_temperature=beta,
        step_size=run.step_size,
        step_bias=kept.biases.mean(),
        acceptance=kept.acceptance.mean(),
        rounding=beta * jnp.abs(run.here) * eps,
        r_hat=_convergence.split_r_hat(unbiased),
        drift=_convergence.drift(unbiased),
        departure=_convergence.drift(kept.distances),
    )
