"""Several replicas over a named axis: pulled together (Parle), or averaged (DiLoCo).

A replica is a member of a named axis of `vmap`, `pmap` or `shard_map`, with parameters, state and
mini-batches of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from entropy_sgd_jax import _checks, _collectives
from entropy_sgd_jax.local_entropy import ScalarOrSchedule
from entropy_sgd_jax.noise import threefry
from entropy_sgd_jax.optimizers import entropic


class ElasticCouplingState(NamedTuple):
    """State of `add_elastic_coupling`."""

    count: chex.Array  # updates so far; shape (), int32


def add_elastic_coupling(
    strength: ScalarOrSchedule, axis_name: Any
) -> optax.GradientTransformation:
    r"""Adds a pull towards the mean of the replicas, as a spring would exert it.

    .. math::
      u^a \leftarrow u^a + \rho\, (x^a - \bar{x}), \quad
      \bar{x} = \frac{1}{n} \sum_{b=1}^{n} x^b

    It is the gradient of ρ/2 Σ_a ‖xᵃ − x̄‖², and belongs before the transformation that takes the
    step. Cost: one all-reduce of the parameters for each update, in at least float32.

    Args:
      strength: ρ, at least 0; a number, a traced scalar or a schedule of the updates so far.
      axis_name: the axis, or axes, of the replicas.

    Returns:
      A transformation whose state is an ``ElasticCouplingState``; updates keep their dtypes.

    Raises:
      ValueError: for a negative strength or no axis; in ``update`` where ``params`` is missing or
        the axis is not bound.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax import add_elastic_coupling
    >>> tx = add_elastic_coupling(0.5, "replica")
    >>> replicas = jnp.array([1.0, 2.0, 6.0])  # of one parameter each; their mean is 3
    >>> state = tx.init(replicas[0])
    >>> pull = lambda x: tx.update(jnp.zeros(()), state, x)[0]
    >>> print(jax.vmap(pull, axis_name="replica")(replicas))
    [-1.  -0.5  1.5]

    References:
      Zhang, Choromanska and LeCun, "Deep learning with Elastic Averaging SGD", NeurIPS 2015,
      https://arxiv.org/abs/1412.6651. Here the mean itself stands for their centre variable, as in
      Parle.
    """
    strength = _checks.number("strength", strength)
    axis_name = _checks.axis_name("axis_name", axis_name)

    def init(params: optax.Params) -> ElasticCouplingState:
        del params
        return ElasticCouplingState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: ElasticCouplingState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ElasticCouplingState]:
        _checks.params(params)
        _checks.bound("axis_name", axis_name)
        rho = strength(state.count) if callable(strength) else strength
        center = _collectives.wide_mean(params, axis_name)

        def pull(update: chex.Array, x: chex.Array, mean: chex.Array) -> chex.Array:
            return jnp.asarray(update + rho * (x - mean), jnp.result_type(update))

        count = optax.safe_increment(state.count)
        return jax.tree.map(pull, updates, params, center), ElasticCouplingState(count)

    return optax.GradientTransformation(init, update)


def average_over_replicas(axis_name: Any) -> optax.GradientTransformation:
    """Replaces the updates by their mean over the replicas.

    Before the outer step of `entropic` it turns the pseudo-gradient x − μ of each replica into that
    of all, so that equal replicas stay equal: the synchronisation of DiLoCo. Cost: one all-reduce
    of the updates in their own dtype.

    Args:
      axis_name: the axis, or axes, of the replicas; None for a single one, of which the mean is
        itself.

    Returns:
      A transformation without state.

    Raises:
      ValueError: in ``update`` where the axis is not bound.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax import average_over_replicas
    >>> tx = average_over_replicas("replica")
    >>> mean = lambda update: tx.update(update, tx.init(update))[0]
    >>> print(jax.vmap(mean, axis_name="replica")(jnp.array([1.0, 2.0, 6.0])))
    [3. 3. 3.]
    """
    axis_name = _checks.axis_name("axis_name", axis_name, optional=True)

    def average(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        _checks.bound("axis_name", axis_name)
        return _collectives.mean(updates, axis_name)

    return optax.stateless(average)


def replica_average(params: optax.Params, axis_name: Any) -> optax.Params:
    """Returns the mean of the replicas' parameters: the model to evaluate and to save.

    In streaming mode take the mean of ``anchor_params(state, params)``.

    Args:
      params: the parameters of this replica.
      axis_name: the axis, or axes, of the replicas; None for a single one.

    Returns:
      The mean, taken in at least float32, with the structure, shapes and dtypes of ``params``.

    Raises:
      ValueError: where the axis is not bound.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax import replica_average
    >>> mean = lambda params: replica_average(params, "replica")
    >>> print(jax.vmap(mean, axis_name="replica", out_axes=None)(jnp.array([1.0, 2.0, 6.0])))
    3.0
    """
    _checks.bound("axis_name", _checks.axis_name("axis_name", axis_name, optional=True))
    center = _collectives.wide_mean(params, axis_name)
    return jax.tree.map(lambda x, mean: jnp.asarray(mean, jnp.result_type(x)), params, center)


def parle(
    learning_rate: ScalarOrSchedule,
    momentum: ArrayLike | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: Any,
    coupling: ScalarOrSchedule,
    inner_steps: int = 25,
    inner_learning_rate: ScalarOrSchedule = 0.1,
    scope: ScalarOrSchedule = 0.03,
    noise_scale: ScalarOrSchedule = 1e-4,
    averaging: ScalarOrSchedule = 0.75,
    inner_transform: optax.GradientTransformation | None = None,
    reset_inner_state: bool = True,
    noise: str = "gaussian",
    scale_by_scope: bool = False,
    streaming: bool = False,
    batch_axis_name: Any = None,
    accumulator_dtype: Any = None,
    diagnostics: bool = False,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Parle: Entropy-SGD in several replicas that are pulled towards their mean.

    Each replica a explores around its own xᵃ for L gradients of its own, and then

    .. math::
      x^a \leftarrow \text{SGD's step on } (x^a - \mu^a) + \rho\, (x^a - \bar{x})

    It is ``entropic(optax.chain(add_elastic_coupling(coupling, replica_axis_name),
    optax.sgd(learning_rate, momentum, nesterov)), inner_steps=25, ...)``, with other noise in each
    replica. With ρ = 0 or one replica it is Entropy-SGD.

    Cost of an update: L gradient evaluations in each replica, and one all-reduce of the
    parameters, which is 1/L of data-parallel SGD's communication.

    All other arguments are ``entropic``'s. The authors take ``optax.trace(0.9, nesterov=True)`` as
    ``inner_transform`` and keep its state, with ``noise_scale=0`` and ``averaging=0.25``. Each
    replica may itself be data-parallel, over ``batch_axis_name``.

    Args:
      learning_rate: η, the outer step; 0.1 in the authors' code.
      momentum: of the outer steps, in [0, 1); None for none.
      nesterov: whether that momentum is Nesterov's.
      replica_axis_name: the axis of ``vmap``, ``pmap`` or ``shard_map`` over the replicas. All
        start from one key; replica 0 draws what it would alone, the others fold their index in.
      coupling: ρ, the pull towards the mean, at least 0; a number or a schedule of the outer
        steps. The authors' grows as ``scoping(1.0, rate, 10.0)``, and their scope as
        ``scoping(0.01, rate, 1.0)``, with rate = 1 / (2 × mini-batches per epoch).
      inner_steps: L; 25 in the paper.

    Returns:
      A transformation whose state is an ``EntropicState``. The model to report is
      ``replica_average(params, replica_axis_name)``.

    Raises:
      ValueError: for an argument out of its range or without an axis, and as ``entropic`` does.

    >>> import jax, jax.numpy as jnp, optax
    >>> from entropy_sgd_jax import parle, replica_average
    >>> tx = parle(0.5, None, replica_axis_name="replica", coupling=0.5, inner_steps=5)
    >>> grad_fn = jax.grad(lambda params, batch: jnp.mean((params - batch) ** 2))
    >>> def step(params, state, batches):
    ...     updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
    ...     params = optax.apply_updates(params, updates)
    ...     return params, state, replica_average(params, "replica")
    >>> step = jax.jit(jax.vmap(step, axis_name="replica"))
    >>> params = jnp.zeros(3)  # three replicas of one parameter
    >>> state = jax.vmap(tx.init)(params)
    >>> batches = jnp.tile(jnp.array([1.0, 2.0, 6.0])[:, None], 5)  # five for each replica
    >>> for _ in range(100):
    ...     params, state, average = step(params, state, batches)
    >>> print(f"{average[0]:.1f}")
    3.0

    References:
      Chaudhari et al., "Parle: parallelizing stochastic gradient descent", 2017,
      https://arxiv.org/abs/1707.00424. Departures: the pull is towards the mean of the x, where
      the authors' code takes that of the μ; strengths are theirs, not the paper's inverses.
    """
    tx = entropic(
        elastic_sgd(
            learning_rate,
            momentum,
            nesterov,
            replica_axis_name=replica_axis_name,
            coupling=coupling,
        ),
        inner_steps=inner_steps,
        inner_learning_rate=inner_learning_rate,
        scope=scope,
        noise_scale=noise_scale,
        averaging=averaging,
        inner_transform=inner_transform,
        reset_inner_state=reset_inner_state,
        noise=noise,
        scale_by_scope=scale_by_scope,
        streaming=streaming,
        batch_axis_name=batch_axis_name,
        accumulator_dtype=accumulator_dtype,
        diagnostics=diagnostics,
        key=key,
    )
    return _with_own_noise(tx, replica_axis_name)


def elastic_sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ArrayLike | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: Any,
    coupling: ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    r"""Elastic-SGD: SGD in several replicas that are pulled towards their mean.

    .. math::
      x^a \leftarrow \text{SGD's step on } \nabla f(x^a) + \rho\, (x^a - \bar{x})

    It is Parle with L = 1 and no scope, and a plain Optax transformation:
    ``optax.chain(add_elastic_coupling(coupling, replica_axis_name), optax.sgd(learning_rate,
    momentum, nesterov))``. Cost: one gradient and one all-reduce for each update.

    Args:
      learning_rate: η, a number, a traced scalar or a schedule.
      momentum: in [0, 1); None for none. The pull goes through it as the gradient does.
      nesterov: whether that momentum is Nesterov's.
      replica_axis_name: the axis of ``vmap``, ``pmap`` or ``shard_map`` over the replicas.
      coupling: ρ, at least 0; a number or a schedule of the updates.

    Returns:
      An Optax transformation. The model to report is ``replica_average(params, axis)``.

    Raises:
      ValueError: for an argument out of its range or without an axis.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax import elastic_sgd
    >>> tx = elastic_sgd(0.5, None, replica_axis_name="replica", coupling=1.0)
    >>> step = lambda x: x + tx.update(jnp.zeros(()), tx.init(x), x)[0]
    >>> print(jax.vmap(step, axis_name="replica")(jnp.array([1.0, 2.0, 6.0])))
    [2.  2.5 4.5]

    References:
      Zhang, Choromanska and LeCun, "Deep learning with Elastic Averaging SGD", NeurIPS 2015,
      https://arxiv.org/abs/1412.6651; as restated in Parle, https://arxiv.org/abs/1707.00424.
    """
    learning_rate = _checks.number("learning_rate", learning_rate)
    momentum = _checks.decay("momentum", momentum)
    return optax.with_extra_args_support(
        optax.chain(
            add_elastic_coupling(
                _checks.number("coupling", coupling),
                _checks.axis_name("replica_axis_name", replica_axis_name),
            ),
            optax.sgd(learning_rate, momentum, nesterov),
        )
    )


def replicated_sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ArrayLike | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: Any,
    coupling: ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Replicated SGD (rSGD): Elastic-SGD whose coupling grows until the replicas are one.

    The step is ``elastic_sgd``'s; what makes it rSGD is the *focusing* of the coupling, which
    starts low and grows by a factor of 10,000 in all::

      growth = 1e4 ** (1 / updates) - 1
      replicated_sgd(0.1, replica_axis_name="replica", coupling=scoping(g, growth, 1e4 * g))

    The authors start from g = 2 × training loss / mean squared distance from the mean of the
    replicas, each of which starts from parameters of its own.

    Args:
      learning_rate: η, a number, a traced scalar or a schedule.
      momentum: in [0, 1); None for none. The pull goes through it as the gradient does.
      nesterov: whether that momentum is Nesterov's.
      replica_axis_name: the axis of ``vmap``, ``pmap`` or ``shard_map`` over the replicas.
      coupling: ρ, at least 0; a number or a schedule of the updates, such as ``scoping``.

    Returns:
      An Optax transformation. The model to report is ``replica_average(params, axis)``.

    Raises:
      ValueError: for an argument out of its range or without an axis.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax import replicated_sgd, scoping
    >>> coupling = scoping(1e-4, 1e4 ** (1 / 1000) - 1, 1.0)
    >>> tx = replicated_sgd(0.5, replica_axis_name="replica", coupling=coupling)
    >>> step = lambda x: x + tx.update(jnp.ones(()), tx.init(x), x)[0]
    >>> print(jax.vmap(step, axis_name="replica")(jnp.zeros(3)))
    [-0.95 -0.95 -0.95]

    References:
      Pittorino et al., "Entropic gradient descent algorithms and wide flat minima", ICLR 2021,
      https://arxiv.org/abs/2006.07897. Their code's g is ρ / 2.
    """
    return elastic_sgd(
        learning_rate, momentum, nesterov, replica_axis_name=replica_axis_name, coupling=coupling
    )


def diloco(
    learning_rate: ScalarOrSchedule = 0.7,
    momentum: ArrayLike | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: Any = None,
    inner_steps: int,
    inner_learning_rate: ScalarOrSchedule,
    inner_transform: optax.GradientTransformation | None = None,
    scope: ScalarOrSchedule = 0,
    noise_scale: ScalarOrSchedule = 0,
    averaging: ScalarOrSchedule = 1,
    reset_inner_state: bool = False,
    noise: str = "gaussian",
    scale_by_scope: bool = False,
    streaming: bool = False,
    batch_axis_name: Any = None,
    accumulator_dtype: Any = None,
    diagnostics: bool = False,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""DiLoCo: L local steps of AdamW in each replica, then one Nesterov step on their mean.

    .. math::
      & x'^a \leftarrow x, \quad \text{then } L \text{ times} \quad
        x'^a \leftarrow x'^a - \eta' D(\nabla f^a(x'^a)) \\
      & x \leftarrow \text{Nesterov SGD's step on } x - \frac{1}{n} \sum_a x'^a

    It is Entropy-SGD's loop without scope and noise, keeping the last x′ and the inner state:
    ``entropic(optax.chain(average_over_replicas(replica_axis_name), optax.sgd(learning_rate,
    momentum, nesterov)), averaging=1, scope=0, noise_scale=0, reset_inner_state=False, ...)``.
    Without an axis, on one worker, it is SNOO. With Muon inside,
    ``optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0))``, it is MuLoCo, and with any
    direction inside and ``momentum=None`` it is Lookahead.

    Cost of an update: L gradient evaluations in each replica, and one all-reduce of the
    parameters, which is 1/L of data-parallel SGD's communication. In streaming mode the all-reduce
    is in the branch that every L-th update takes.

    All other arguments are ``entropic``'s. Each replica may itself be data-parallel, over
    ``batch_axis_name``.

    Args:
      learning_rate: of the outer step; 0.7 is DiLoCo's. 1.0 without momentum sets x to the mean
        of the x′ (local SGD, federated averaging).
      momentum: of the outer steps, in [0, 1); None for none.
      nesterov: whether that momentum is Nesterov's.
      replica_axis_name: the axis of ``vmap``, ``pmap`` or ``shard_map`` over the replicas; None
        for one worker.
      inner_steps: L, local steps per outer step: tens on one worker, 500 in DiLoCo.
      inner_learning_rate: of the local steps; a number or a schedule of the gradient evaluations.
      inner_transform: D, the direction of the local steps, uphill, without a learning rate. None
        for that of ``optax.adamw``,
        ``optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-4))``.
      averaging: weight of the newest x′ in the mean that stands for it; 1 keeps the last.
      reset_inner_state: whether each outer step starts the inner optimizer afresh.

    Returns:
      A transformation whose state is an ``EntropicState``. The replicas' x stay equal.

    Raises:
      ValueError: for an argument out of its range, and as ``entropic`` does.

    >>> import jax, jax.numpy as jnp, optax
    >>> from entropy_sgd_jax import anchor_params, diloco
    >>> rate = optax.cosine_decay_schedule(0.03, 500)
    >>> tx = diloco(
    ...     replica_axis_name="replica", inner_steps=5, inner_learning_rate=rate, streaming=True
    ... )
    >>> def step(params, state, batch):
    ...     grads = jax.grad(lambda params: jnp.mean((params - batch) ** 2))(params)
    ...     updates, state = tx.update(grads, state, params)
    ...     return optax.apply_updates(params, updates), state
    >>> step = jax.jit(jax.vmap(step, axis_name="replica"))
    >>> params = jnp.zeros(3)  # three replicas of one parameter
    >>> state = jax.vmap(tx.init)(params)
    >>> for _ in range(500):
    ...     params, state = step(params, state, jnp.array([[2.5], [3.0], [3.5]]))
    >>> print(jnp.round(anchor_params(state, params), 1))
    [3. 3. 3.]

    References:
      Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023,
      https://arxiv.org/abs/2311.08105.
      "SNOO: Step-K Nesterov Outer Optimizer", 2025, https://arxiv.org/abs/2510.15830.
      "MuLoCo: Muon is a practical inner optimizer for DiLoCo", 2025,
      https://arxiv.org/abs/2505.23725.
      Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019,
      https://arxiv.org/abs/1907.08610.
    """
    if inner_transform is None:
        inner_transform = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-4))
    learning_rate = _checks.number("learning_rate", learning_rate)
    momentum = _checks.decay("momentum", momentum)
    replica_axis_name = _checks.axis_name("replica_axis_name", replica_axis_name, optional=True)
    tx = entropic(
        optax.chain(
            average_over_replicas(replica_axis_name),
            optax.sgd(learning_rate, momentum, nesterov),
        ),
        inner_steps=inner_steps,
        inner_learning_rate=inner_learning_rate,
        scope=scope,
        noise_scale=noise_scale,
        averaging=averaging,
        inner_transform=inner_transform,
        reset_inner_state=reset_inner_state,
        noise=noise,
        scale_by_scope=scale_by_scope,
        streaming=streaming,
        batch_axis_name=batch_axis_name,
        accumulator_dtype=accumulator_dtype,
        diagnostics=diagnostics,
        key=key,
    )
    return _with_own_noise(tx, replica_axis_name)


def _with_own_noise(
    tx: optax.GradientTransformationExtraArgs, axis_name: Any
) -> optax.GradientTransformationExtraArgs:
    """Lets each replica draw its own noise, from the one key that all their states hold."""
    if axis_name is None:
        return tx

    def update(
        grads: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        _checks.bound("replica_axis_name", axis_name)
        index = lax.axis_index(axis_name)
        shared = threefry(state.rng_key)
        own = jnp.where(index == 0, shared, jax.random.fold_in(shared, index))
        updates, moved = tx.update(grads, state._replace(rng_key=own), params, **extra_args)
        return updates, moved._replace(rng_key=state.rng_key)

    return optax.GradientTransformationExtraArgs(tx.init, update)
