"""The optimizers: `entropic` around any base, and the paper's two as one expression each."""

from __future__ import annotations

from typing import Any, Unpack

import optax
from jax.typing import DTypeLike

from entropy_sgd_jax import _checks, _gradients
from entropy_sgd_jax._algorithm import Algorithm
from entropy_sgd_jax._options import advised, with_options_of
from entropy_sgd_jax._protocol import Adviser
from entropy_sgd_jax._state import EntropicState
from entropy_sgd_jax._transformation import EntropicTransformation
from entropy_sgd_jax._typing import (
    AxisName,
    EntropicOptions,
    Key,
    Noise,
    PyTree,
    Scalar,
    ScalarOrSchedule,
)


@advised
def entropic(
    base_optimizer: optax.GradientTransformation,
    *,
    inner_steps: int = 20,
    inner_learning_rate: ScalarOrSchedule = 0.1,
    scope: ScalarOrSchedule = 0.03,
    noise_scale: ScalarOrSchedule = 1e-4,
    averaging: ScalarOrSchedule = 0.75,
    inner_transform: optax.GradientTransformation | None = None,
    reset_inner_state: bool = True,
    noise: Noise = "gaussian",
    scale_by_scope: bool = False,
    streaming: bool = False,
    batch_axis_name: AxisName | None = None,
    accumulator_dtype: DTypeLike | None = None,
    diagnostics: bool = False,
    key: Key = 0,
) -> EntropicTransformation:
    r"""Makes any base optimizer descend the local entropy instead of the loss.

    The local entropy F(x; γ) = log ∫ exp(−f(x′) − γ/2 ‖x − x′‖²) dx′ is large where a *wide*
    region of low loss f surrounds x. Its gradient is −γ (x − ⟨x′⟩); the mean ⟨x′⟩ is estimated by
    L steps of stochastic gradient Langevin dynamics, and the base optimizer is given x minus that
    mean in place of the gradient.

    .. math::
      & x', \mu \leftarrow x \\
      & \text{repeat } L \text{ times, each on a fresh mini-batch:} \\
      & \quad d \leftarrow D(\nabla f(x')) \\
      & \quad x' \leftarrow x' - \eta' (d + \gamma (x' - x)) + \sqrt{\eta'}\, \varepsilon\, \xi \\
      & \quad \mu \leftarrow (1 - \alpha)\, \mu + \alpha\, x' \\
      & x \leftarrow \text{base optimizer's step on } G = x - \mu

    ===========  ===========================  =======================================
    paper        argument                     state
    ===========  ===========================  =======================================
    L            ``inner_steps``
    η′           ``inner_learning_rate``
    γ            ``scope``, see ``scoping``
    ε            ``noise_scale``
    α            ``averaging``
    D            ``inner_transform``          ``inner_state``
    x′, μ        ..                           ``langevin_iterate``, ``langevin_average``
    x            ..                           ``params``; ``anchor`` in streaming mode
    ===========  ===========================  =======================================

    **Scan mode** (the default) runs all L gradients in one ``jax.lax.scan`` inside ``update``::

      updates, state = tx.update(grads, state, params, grad_fn=grad_fn, batches=batches)

    ``grads`` is the gradient at ``params`` and serves as the first Langevin gradient, so
    ``grad_fn(params, batch)`` runs L − 1 times; with ``grads=None`` it runs L times. The leaves of
    ``batches`` have that number as leading axis. Without ``batches``, the second argument of
    ``grad_fn`` is the number of the call, from 0. ``value_and_grad_fn`` may stand in for
    ``grad_fn``; its losses, and that of ``grads`` as ``value``, go to the diagnostics. ``params``
    stays x: evaluate it, save it.

    **Streaming mode** (``streaming=True``) takes one Langevin step in each
    ``tx.update(grads, state, params)`` and moves x at every L-th: a drop-in for any training loop.
    ``params`` is then x′, and ``anchor_params(state, params)`` gives x. Both modes trace the same
    trajectory, noise included.

    Cost of one update: L gradient evaluations, as many as L steps of plain SGD. Memory: x′ and μ
    in the accumulator's dtype, and the state of ``inner_transform``; in streaming mode also x.
    With donated arguments they change in place; temporary memory is a gradient and, in scan mode,
    a copy of x. Only ``batches`` grows with L, and for small networks up to 1 MiB of noise.

    Always call ``update`` under ``jax.jit``: outside, every call compiles the scan again.

    A cycle of L steps in which x′, or a state that is carried on, turned non-finite does not count,
    nor does one after which x would: ``updates`` are zero, ``base_state`` stays, x′, μ and
    ``inner_state`` start again from x, and the count goes on, as do schedules inside. In streaming
    mode, elements of x′ that are not finite stay where they were until the cycle ends, so that
    ``params`` are finite at all times. ``diagnostics=True`` counts the ``refused_updates``. To
    survive a bad gradient inside the loop, without giving up the other L − 1, put
    ``optax.apply_if_finite`` or ``optax.zero_nans`` into ``inner_transform``.

    Transformations chained *before* this one see only ``grads``; clipping, weight decay and
    masking of all L gradients belong in ``inner_transform`` (or use streaming mode).

    ``inner_learning_rate``, ``scope``, ``noise_scale`` and ``averaging`` may each be a number, a
    traced scalar or an Optax schedule.

    Args:
      base_optimizer: takes the outer step; its learning rate, schedules and state count outer
        steps. ``optax.sgd(1.0)`` is the paper's start: it sets x to μ.
      inner_steps: L, Langevin steps per update; a static int of at least 0, 5 to 20 in the paper.
        0 runs the base optimizer alone on ``grads``.
      inner_learning_rate: η′, the Langevin step size; 0.1 to 1 in the paper. A schedule is called
        with the number of gradient evaluations so far, all others with that of outer steps.
      scope: γ, the pull towards x, at least 0; a lower scope looks at wider valleys.
      noise_scale: ε, the thermal noise, at least 0; each step adds √η′·ε standard deviations. The
        Python number 0 leaves the noise out of the program.
      averaging: α, in [0, 1], the weight of the *newest* x′ in μ; 1 keeps the last x′, and the
        Python number 1 leaves μ out of the state, in scan mode x′ as well.
      inner_transform: D, an Optax transformation of the inner gradients to a direction uphill:
        momentum, clipping, weight decay, preconditioning, without a learning rate of its own (a
        whole optimizer needs ``optax.scale(-1)`` after it). Its ``params`` are x′. None takes
        the gradients as they are.
      reset_inner_state: whether each update starts ``inner_transform`` again, as the paper's code
        does, or goes on with its state, as the authors' later code does, which trains faster.
        Schedules in it go on counting gradients in either case.
      noise: "gaussian", or "rademacher": ±1, cheaper, and enough for the weak order of the scheme.
      scale_by_scope: whether G = γ (x − μ), as the paper prints it, instead of x − μ, as its
        experiments ran.
      streaming: the mode, see above.
      batch_axis_name: inside ``pmap`` or ``shard_map``, the axis over which to average all
        gradients and ``value``. Under ``jit`` with shardings nothing is needed. All devices draw
        the same noise.
      accumulator_dtype: dtype of x′, μ and the noise; None for the parameters', at least float32.
      diagnostics: whether to keep a record of each update, see ``entropic_diagnostics``.
      key: seed of the noise: an int, a typed key or a legacy uint32 key. Groups of
        ``optax.partition`` with one key draw the same noise.

    Returns:
      A transformation whose state is an ``EntropicState``. Updates have the parameters' structure,
      shapes and dtypes. Unknown keyword arguments of ``update`` go to ``base_optimizer``.

    Raises:
      ValueError: here for an argument out of its range; in ``update`` for a missing ``grad_fn`` or
        ``params``, batches of another length, and gradients or a state of another tree.
      TypeError: for an unknown keyword, naming the one that may have been meant.

    >>> import jax, jax.numpy as jnp, optax
    >>> from entropy_sgd_jax import entropic
    >>> tx = entropic(optax.adam(0.3), inner_steps=10)
    >>> grad_fn = jax.grad(lambda params, batch: jnp.mean((params - batch) ** 2))
    >>> @jax.jit
    ... def step(params, state, batches):  # batches: ten of them, stacked
    ...     updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
    ...     return optax.apply_updates(params, updates), state
    >>> params = jnp.zeros(())
    >>> state = tx.init(params)
    >>> for _ in range(100):
    ...     params, state = step(params, state, jnp.tile(jnp.array([2.0, 4.0]), 5))
    >>> print(f"{params:.1f}")
    3.1

    References:
      Chaudhari et al., "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys", ICLR 2017,
      https://arxiv.org/abs/1611.01838. Departures: G = x − μ by default, as in section 4.3 there;
      the incoming gradient is spent as the first of the L. The authors' code differs from their
      paper; docs/migration.md says which arguments reproduce it.

      Pittorino et al., "Entropic gradient descent algorithms and wide flat minima", ICLR 2021,
      https://arxiv.org/abs/2006.07897, for the name.
    """
    base_optimizer = _checks.check("base_optimizer", base_optimizer)
    _checks.warn_uphill(base_optimizer)
    return build(
        base_optimizer,
        inner_steps=inner_steps,
        inner_learning_rate=inner_learning_rate,
        scope=scope,
        noise_scale=noise_scale,
        averaging=averaging,
        inner_transform=_checks.check("inner_transform", inner_transform),
        reset_inner_state=reset_inner_state,
        noise=noise,
        scale_by_scope=scale_by_scope,
        streaming=streaming,
        batch_axis_name=batch_axis_name,
        accumulator_dtype=accumulator_dtype,
        diagnostics=diagnostics,
        key=key,
    )


def build(
    base_optimizer: optax.GradientTransformation,
    *,
    inner_transform: optax.GradientTransformation | None,
    batch_axis_name: AxisName | None,
    replica_axis_name: AxisName | None = None,
    **options: Any,
) -> EntropicTransformation:
    """`entropic` over replicas, each of which draws its own noise from one key.

    What a user passes has been checked by a trial step already; ours need no check.
    """
    _checks.different_axes(_checks.check("batch_axis_name", batch_axis_name), replica_axis_name)
    options = {name: _checks.check(name, value) for name, value in options.items()}
    if options["scale_by_scope"] and isinstance(options["scope"], float) and not options["scope"]:
        advice = "It would multiply x - μ by 0, and x would never move."
        raise _checks.error("scale_by_scope", "False where `scope` is 0", "True", advice)
    alone = options["inner_steps"] == 0
    options["streaming"] &= not alone
    _checks.of_streams_only(options)
    algorithm = Algorithm(
        base_optimizer=optax.with_extra_args_support(base_optimizer),
        inner_transform=optax.with_extra_args_support(inner_transform or optax.identity()),
        axes=_gradients.Axes(batch_axis_name, replica_axis_name),
        **options,
    )
    driver = algorithm.stream if algorithm.streaming else algorithm.scan
    driver = algorithm.base_alone if alone else driver
    adviser = Adviser()

    def update(
        updates: PyTree | None, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, EntropicState]:
        returned = driver(updates, state, params, **extra_args)
        if not alone:
            adviser.look_at((updates, state, params), extra_args)
        return returned

    return EntropicTransformation(algorithm.init, update)


@with_options_of(entropic)
def entropy_sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    *,
    inner_momentum: Scalar | None = 0.9,
    inner_nesterov: bool = True,
    **options: Unpack[EntropicOptions],
) -> EntropicTransformation:
    r"""Entropy-SGD: stochastic gradient descent on the local entropy.

    The paper's algorithm: L Langevin steps with Nesterov momentum around x, then one step of SGD
    on G = x − μ. It is ``entropic(optax.sgd(learning_rate, momentum, nesterov),
    inner_transform=optax.trace(inner_momentum, inner_nesterov), ...)``, and nothing else: see
    ``entropic`` for the update, its two modes, its cost and all the other arguments.

    Args:
      learning_rate: η, the outer step: a number, a traced scalar or a schedule of the outer steps.
        1.0 is the paper's start, which sets x to μ; lower it in steps, or anneal it to zero.
      momentum: of the outer steps, in [0, 1); None for none.
      nesterov: whether that momentum is Nesterov's.
      inner_momentum: of the Langevin steps, in [0, 1), on the gradients alone: pull and noise are
        added after it. None for none. A given ``inner_transform`` takes its place.
      inner_nesterov: whether that momentum is Nesterov's.

    Returns:
      A transformation whose state is an ``EntropicState``.

    Raises:
      ValueError: for an argument out of its range; and as ``entropic`` does.

    >>> import jax, jax.numpy as jnp, optax
    >>> from entropy_sgd_jax import anchor_params, entropy_sgd
    >>> tx = entropy_sgd(1.0, inner_steps=5, streaming=True)
    >>> @jax.jit
    ... def step(params, state):
    ...     updates, state = tx.update(jax.grad(lambda w: jnp.sum(w**2))(params), state, params)
    ...     return optax.apply_updates(params, updates), state
    >>> params = jnp.ones(3)
    >>> state = tx.init(params)
    >>> for _ in range(50):
    ...     params, state = step(params, state)
    >>> print(f"{jnp.abs(anchor_params(state, params)).max():.2f}")
    0.00

    References:
      Chaudhari et al., "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys", ICLR 2017,
      https://arxiv.org/abs/1611.01838
    """
    base_optimizer = sgd(learning_rate, momentum, nesterov)
    return _with_momentum(base_optimizer, inner_momentum, inner_nesterov, options)


def sgd(
    learning_rate: ScalarOrSchedule, momentum: Scalar | None, nesterov: bool
) -> optax.GradientTransformationExtraArgs:
    """`optax.sgd` with its arguments checked."""
    return optax.sgd(
        _checks.check("learning_rate", learning_rate),
        _checks.check("momentum", momentum),
        _checks.check("nesterov", nesterov),
    )


@with_options_of(entropic)
def entropy_adam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    inner_momentum: Scalar | None = 0.9,
    inner_nesterov: bool = True,
    **options: Unpack[EntropicOptions],
) -> EntropicTransformation:
    r"""Entropy-Adam: Adam on the local entropy.

    The paper's optimizer for recurrent networks: L Langevin steps with Nesterov momentum around x,
    then one step of Adam on G = x − μ. It is ``entropic(optax.adam(learning_rate, b1, b2, eps),
    inner_transform=optax.trace(inner_momentum, inner_nesterov), ...)``, and nothing else: see
    ``entropic`` for the update, its two modes, its cost and all the other arguments.

    Args:
      learning_rate: η, the outer step: a number, a traced scalar or a schedule of the outer steps;
        0.01 in the paper.
      b1: decay of Adam's mean, in [0, 1); 0.5 in the paper.
      b2: decay of Adam's second moment, in [0, 1).
      eps: added to the root of the second moment, at least 0.
      inner_momentum: of the Langevin steps, in [0, 1), on the gradients alone: pull and noise are
        added after it. None for none. A given ``inner_transform`` takes its place.
      inner_nesterov: whether that momentum is Nesterov's.

    Returns:
      A transformation whose state is an ``EntropicState``.

    Raises:
      ValueError: for an argument out of its range; and as ``entropic`` does.

    >>> import jax, jax.numpy as jnp, optax
    >>> from entropy_sgd_jax import entropy_adam
    >>> tx = entropy_adam(0.1, inner_steps=5)
    >>> grad_fn = jax.grad(lambda params, call: jnp.sum(params**2))
    >>> @jax.jit
    ... def step(params, state):
    ...     updates, state = tx.update(None, state, params, grad_fn=grad_fn)
    ...     return optax.apply_updates(params, updates), state
    >>> params = jnp.ones(3)
    >>> state = tx.init(params)
    >>> for _ in range(200):
    ...     params, state = step(params, state)
    >>> print(f"{jnp.abs(params).max():.1f}")
    0.0

    References:
      Chaudhari et al., "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys", ICLR 2017,
      https://arxiv.org/abs/1611.01838, section 4.3.
      Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015.
    """
    base_optimizer = optax.adam(
        _checks.check("learning_rate", learning_rate),
        _checks.check("b1", b1),
        _checks.check("b2", b2),
        _checks.check("eps", eps),
    )
    return _with_momentum(base_optimizer, inner_momentum, inner_nesterov, options)


def _with_momentum(
    base_optimizer: optax.GradientTransformation,
    decay: Scalar | None,
    nesterov: bool,
    options: EntropicOptions,
) -> EntropicTransformation:
    """`entropic` with momentum inside, unless `inner_transform` is given."""
    decay = _checks.check("inner_momentum", decay)
    nesterov = _checks.check("inner_nesterov", nesterov)
    given = _checks.check("inner_transform", options.get("inner_transform"))
    if given is None and decay is not None:
        given = optax.trace(decay, nesterov)
    return build(base_optimizer, **{**options, "inner_transform": given})
