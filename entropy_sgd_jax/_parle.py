"""Replicas that a spring pulls towards their mean: Parle, Elastic-SGD and replicated SGD.

A replica is a member of a named axis of `vmap`, `pmap` or `shard_map`, with parameters, state and
mini-batches of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from entropy_sgd_jax import _checks, _collectives, _protocol
from entropy_sgd_jax._optimizers import build, entropic, sgd
from entropy_sgd_jax._options import advised, with_options_of
from entropy_sgd_jax._transformation import EntropicTransformation
from entropy_sgd_jax._typing import AxisName, EntropicOptions, PyTree, Scalar, ScalarOrSchedule


class ElasticCouplingState(NamedTuple):
    """State of `add_elastic_coupling`."""

    count: jax.Array  # type: ignore[assignment]  # updates so far; shape (), int32


def add_elastic_coupling(
    strength: ScalarOrSchedule, axis_name: AxisName
) -> optax.GradientTransformationExtraArgs:
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
      ValueError: for a negative strength or no axis; in ``update`` if ``params`` is missing,
        the axis is not bound, for a ``replica_weight``, since x̄ is the plain mean, or for updates
        that JAX knows to be equal on all replicas.

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
      https://arxiv.org/abs/1412.6651. Here the mean itself replaces their centre variable, as in
      Parle.
    """
    strength = _checks.check("strength", strength)
    axis_name = _checks.given("axis_name", axis_name)

    def init(params: PyTree) -> ElasticCouplingState:
        del params
        return ElasticCouplingState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        replica_weight: None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ElasticCouplingState]:
        del extra_args
        if replica_weight is not None:
            advice = "Only diloco and average_over_replicas weight replicas."
            raise _checks.error("replica_weight", "left out of a coupling", "a weight", advice)
        _protocol.params(params)
        _protocol.bound("axis_name", axis_name)
        _protocol.not_summed(updates, axis_name)
        rho = strength(state.count) if callable(strength) else strength
        center = _collectives.wide_mean(params, axis_name)

        def pull(update: jax.Array, x: jax.Array, mean: jax.Array) -> jax.Array:
            wide = mean.dtype
            spring = jnp.asarray(rho, wide) * (jnp.asarray(x, wide) - mean)
            return jnp.asarray(jnp.asarray(update, wide) + spring, jnp.result_type(update))

        count = jnp.asarray(optax.safe_increment(state.count))
        return jax.tree.map(pull, updates, params, center), ElasticCouplingState(count)

    return optax.GradientTransformationExtraArgs(init, update)


@with_options_of(entropic, inner_steps=25)
def parle(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: AxisName,
    coupling: ScalarOrSchedule,
    **options: Unpack[EntropicOptions],
) -> EntropicTransformation:
    r"""Parle: Entropy-SGD in several replicas that are pulled towards their mean.

    Each replica a explores around its own xᵃ for L gradients of its own, and then

    .. math::
      x^a \leftarrow \text{SGD's step on } (x^a - \mu^a) + \rho\, (x^a - \bar{x})

    It is ``entropic(optax.chain(add_elastic_coupling(coupling, replica_axis_name),
    optax.sgd(learning_rate, momentum, nesterov)), inner_steps=25, ...)``, with different noise in
    each replica. With ρ = 0 or one replica it is Entropy-SGD.

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
        start from one key; replica 0 draws what it would alone, and the others fold their index in.
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
    base_optimizer = elastic_sgd(
        learning_rate, momentum, nesterov, replica_axis_name=replica_axis_name, coupling=coupling
    )
    given = _checks.check("inner_transform", options.get("inner_transform"))
    options["inner_transform"] = given
    return build(base_optimizer, replica_axis_name=replica_axis_name, **options)


@advised
def elastic_sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: AxisName,
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
    step = sgd(learning_rate, momentum, nesterov)
    coupling = _checks.check("coupling", coupling)
    replica_axis_name = _checks.given("replica_axis_name", replica_axis_name)
    return optax.chain(add_elastic_coupling(coupling, replica_axis_name), step)


@advised
def replicated_sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: AxisName,
    coupling: ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Replicated SGD (rSGD): Elastic-SGD whose coupling grows until the replicas coincide.

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
