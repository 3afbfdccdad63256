"""Several replicas over a named axis: pulled together (Parle), or averaged (DiLoCo).

A replica is a member of a named axis of `vmap`, `pmap` or `shard_map`, with parameters, state and
mini-batches of its own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from entropy_sgd_jax import (
    _checks,
    _collectives,
    _guard,
    _noise,
    _protocol,
    _quantisation,
    _sparsification,
    _trees,
)
from entropy_sgd_jax._fragments import Fragments, in_turn
from entropy_sgd_jax._optimizers import build, entropic, sgd
from entropy_sgd_jax._options import advised, with_options_of
from entropy_sgd_jax._transformation import EntropicTransformation
from entropy_sgd_jax._typing import (
    AxisName,
    EntropicOptions,
    LangevinOptions,
    PyTree,
    Scalar,
    ScalarOrSchedule,
    Tree,
)


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


class AverageState(NamedTuple):
    """State of `average_over_replicas` in integers, or of the largest numbers."""

    residual: PyTree  # what was left out, like the updates, float32


def average_over_replicas(
    axis_name: AxisName | None, *, bits: int | None = None, top_k: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Replaces the updates by their mean over the replicas that can contribute.

    Before the outer step of `entropic` it turns the pseudo-gradient x − μ of each replica into that
    of all, so that equal replicas stay equal: the synchronisation of DiLoCo. Cost: one all-reduce
    of the updates in their own dtype.

    ``update(..., replica_weight=w)`` weights the mean by a scalar w ≥ 0 of each replica: the tokens
    it has seen, or 0 if it is absent. A replica whose updates hold a NaN or Inf counts as 0. If all
    weights are 0 there is no mean: the result is NaN, for which `entropic` takes no step. Weights
    are cast to the updates' dtype, so keep them near 1 for float16.

    With ``bits`` the mean is exchanged in integers: an all-to-all of each replica's share, its
    mean, and an all-gather, with a float32 scale for every 64 numbers. That is 0.27 of the bytes
    of an all-reduce in float32 with 8 bits, and 0.14 with 4. Rounding is fed back: what it leaves
    out is kept and added the next time. All updates are concatenated for this, which gathers
    sharded ones.

    With ``top_k`` each replica sends the ``top_k`` largest of every 4,096 numbers with their
    places, to all others: (4 + 2) · ``top_k`` / 4096 bytes per parameter and replica, less with
    ``bits``. The rest is kept, and 0.95 of it is added the next time, which does the work of an
    outer momentum. This is SparseLoCo's, with 64; there it goes with ``diloco(1.0, None, ...)``.

    Args:
      axis_name: the axis, or axes, of the replicas; None for a single one, which is its
        own mean.
      bits: 8 or 4; None for the updates' own dtype.
      top_k: from 1 to 4096, even with 4 bits; None to send all numbers.

    Returns:
      A transformation without state, or with the residuals, float32, one per parameter.

    Raises:
      ValueError: for ``bits`` or ``top_k`` out of range or without an axis; in ``update`` for an
        axis that is not bound, a concrete weight below 0, or updates that JAX knows to be equal on
        all replicas: inside `shard_map` it sums the gradient at replicated parameters.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax import average_over_replicas
    >>> tx = average_over_replicas("replica")
    >>> mean = lambda u, w: tx.update(u, tx.init(u), replica_weight=w)[0]
    >>> updates, weights = jnp.array([1.0, 2.0, 6.0]), jnp.array([1.0, 1.0, 2.0])
    >>> print(jax.vmap(mean, axis_name="replica")(updates, weights))
    [3.75 3.75 3.75]

    References:
      Douillard et al., "Streaming DiLoCo with overlapping communication", 2025,
      https://arxiv.org/abs/2501.18512, for few bits. The two rounds of rounding are torchft's, the
      feedback is that of Seide et al., "1-bit stochastic gradient descent", 2014.
      Sarfi et al., "Communication efficient LLM pre-training with SparseLoCo", 2025,
      https://arxiv.org/abs/2508.15706, for the largest numbers. They send 2 bits.
    """
    axis_name, bits = _checks.check("axis_name", axis_name), _checks.check("bits", bits)
    top_k = _checks.check("top_k", top_k)
    for name, value in (("bits", bits), ("top_k", top_k)):
        if value is not None and axis_name is None:
            advice = "One replica exchanges nothing; name the axis of several."
            raise _checks.error(name, "None without an axis of replicas", str(value), advice)
    if bits == 4 and top_k is not None and top_k % 2:
        advice = "Two numbers of 4 bits share a byte."
        raise _checks.error("top_k", "even with bits=4", str(top_k), advice)
    exchange: Any = None  # an all-reduce
    if top_k is not None:
        exchange = functools.partial(_sparsification.mean, top_k=top_k, bits=bits)
    elif bits is not None:
        exchange = functools.partial(_quantisation.mean, bits=bits)

    def init(params: PyTree) -> optax.EmptyState | AverageState:
        if exchange is None:
            return optax.EmptyState()
        zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), params)
        return AverageState(_collectives.own(zeros, axis_name))

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        replica_weight: Scalar | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        del params, extra_args
        weight = 1 if replica_weight is None else _checks.check("replica_weight", replica_weight)
        weight = jnp.asarray(weight, jnp.float32)
        if axis_name is None:
            if replica_weight is not None:
                nobody = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), updates)
                updates = _trees.where(weight == 0, nobody, updates)
            return updates, state
        _protocol.bound("axis_name", axis_name)
        _protocol.not_summed(updates, axis_name)
        weight = jnp.where(_guard.all_finite(updates), weight, jnp.zeros_like(weight))
        if exchange is None or not sum(map(jnp.size, jax.tree.leaves(updates))):
            return _collectives.weighted_mean(updates, weight, axis_name), state
        numbers, unravel = ravel_pytree(_trees.cast_like(updates, state.residual))
        residual, _ = ravel_pytree(state.residual)
        numbers = jnp.where(weight == 0, jnp.zeros_like(numbers), numbers)  # may be anything there
        mean, residual = exchange(numbers, residual, weight, axis_name)
        return _trees.cast_like(unravel(mean), updates), AverageState(unravel(residual))

    return optax.GradientTransformationExtraArgs(init, update)


def replica_average(params: Tree, axis_name: AxisName | None) -> Tree:
    """Returns the mean of the replicas' parameters: the model to evaluate and to save.

    In streaming mode take the mean of ``anchor_params(state, params)``.

    Args:
      params: the parameters of this replica.
      axis_name: the axis, or axes, of the replicas; None for a single one.

    Returns:
      The mean, taken in at least float32, with the structure, shapes and dtypes of ``params``.

    Raises:
      ValueError: if the axis is not bound.

    >>> import jax, jax.numpy as jnp
    >>> from entropy_sgd_jax import replica_average
    >>> mean = lambda params: replica_average(params, "replica")
    >>> print(jax.vmap(mean, axis_name="replica", out_axes=None)(jnp.array([1.0, 2.0, 6.0])))
    3.0
    """
    _protocol.bound("axis_name", _checks.check("axis_name", axis_name))
    center = _collectives.wide_mean(params, axis_name)
    return jax.tree.map(lambda x, mean: jnp.asarray(mean, jnp.result_type(x)), params, center)


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


@with_options_of(entropic, averaging=1, scope=0, noise_scale=0, reset_inner_state=False)
def diloco(
    learning_rate: ScalarOrSchedule = 0.7,
    momentum: Scalar | None = 0.9,
    nesterov: bool = True,
    *,
    replica_axis_name: AxisName | None = None,
    inner_steps: int,
    inner_optimizer: optax.GradientTransformation | None = None,
    inner_learning_rate: ScalarOrSchedule | None = None,
    inner_transform: optax.GradientTransformation | None = None,
    fragments: Fragments | None = None,
    offset: int | None = None,
    delay: int | None = None,
    blend: float | None = None,
    bits: int | None = None,
    top_k: int | None = None,
    **options: Unpack[LangevinOptions],
) -> EntropicTransformation:
    r"""DiLoCo: L local steps of AdamW in each replica, then one Nesterov step on their mean.

    .. math::
      & x'^a \leftarrow x, \quad \text{then } L \text{ times} \quad
        x'^a \leftarrow x'^a - \eta' D(\nabla f^a(x'^a)) \\
      & x \leftarrow \text{Nesterov SGD's step on } x - \frac{1}{n} \sum_a x'^a

    It is Entropy-SGD's loop without scope and noise, keeping the last x′ and the inner state:
    ``entropic(optax.chain(average_over_replicas(replica_axis_name), optax.sgd(learning_rate,
    momentum, nesterov)), averaging=1, scope=0, noise_scale=0, reset_inner_state=False, ...)``.
    Without an axis, on one worker, it is SNOO. With ``inner_optimizer=optax.contrib.muon(...)`` it
    is MuLoCo, and with any optimizer inside and ``momentum=None`` it is Lookahead.

    Cost of an update: L gradient evaluations in each replica, and one all-reduce of the
    parameters, which is 1/L of data-parallel SGD's communication. In streaming mode the all-reduce
    is in the branch that every L-th update takes.

    ``update(..., replica_weight=w)`` weights the mean by a scalar w ≥ 0 of each replica, 0 if it is
    absent. A replica whose pseudo-gradient is not finite counts as 0, takes the others' step, and
    starts its next round at the common x with a fresh inner state. If the weights sum to 0,
    nobody steps.

    All replicas must start from one x: they take the same steps, so a difference at the start
    stays.

    All other arguments are ``entropic``'s. Each replica may itself be data-parallel, over
    ``batch_axis_name``, over which its weight is averaged.

    Args:
      learning_rate: of the outer step; 0.7 is DiLoCo's. 1.0 without momentum sets x to the mean
        of the x′ (local SGD, federated averaging).
      momentum: of the outer steps, in [0, 1); None for none.
      nesterov: whether that momentum is Nesterov's.
      replica_axis_name: the axis of ``vmap``, ``pmap`` or ``shard_map`` over the replicas; None
        for one worker.
      inner_steps: L, local steps per outer step: tens on one worker, 500 in DiLoCo.
      inner_optimizer: takes the local steps at its own learning rate, ``optax.adamw(4e-4)``; a
        schedule in it counts gradients. Give it, or the next two.
      inner_learning_rate: of the local steps; a number or a schedule of the gradient evaluations.
      inner_transform: D, the direction of the local steps, uphill, without a learning rate. None
        for that of ``optax.adamw``,
        ``optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-4))``.
      fragments: a tree of ints 0 … P − 1 like ``params``, or a function from ``params`` to one;
        streaming mode. Fragment p is synchronised p·L/P gradients before fragment 0, so that one
        all-reduce of a P-th of the parameters goes out every L/P gradients. Each fragment has its
        own inner and outer state, in a state of ``optax.partition``: a norm over all parameters in
        the inner optimizer is one over a fragment.
      offset: the first cycle counts as this many gradients old, below L; streaming mode. No
        schedule is shifted by it. None is 0, here and in the next two, so that
        ``optax.inject_hyperparams`` leaves them alone: they are static.
      delay: τ, below L; streaming mode. The outer step computed at the end of a cycle reaches x′
        τ gradients later, as x′ ← blend · x′ + (1 − blend) · x.
      blend: the share of x′ in it, in [0, 1].
      bits: 8 or 4 to exchange the mean in integers of that many bits with feedback of what
        rounding leaves out, see ``average_over_replicas``; None for the parameters' own dtype.
      top_k: how many of each 4,096 numbers are exchanged, the largest, see there; None for all.
      averaging: weight of the newest x′ in the mean that stands for it; 1 keeps the last.
      reset_inner_state: whether each outer step starts the inner optimizer again.

    Returns:
      A transformation whose state is an ``EntropicState``, with ``fragments`` one for each.
      The replicas' x stay equal.

    Raises:
      ValueError: for an argument out of its range, and as ``entropic`` does.

    >>> import jax, jax.numpy as jnp, optax
    >>> from entropy_sgd_jax import anchor_params, diloco
    >>> rate = optax.cosine_decay_schedule(0.03, 500)
    >>> inner = optax.adamw(rate)
    >>> tx = diloco(
    ...     replica_axis_name="replica", inner_steps=5, inner_optimizer=inner, streaming=True
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
      Douillard et al., "Streaming DiLoCo with overlapping communication", 2025,
      https://arxiv.org/abs/2501.18512, for fragments, delay and blend.
      "SNOO: Step-K Nesterov Outer Optimizer", 2025, https://arxiv.org/abs/2510.15830.
      "MuLoCo: Muon is a practical inner optimizer for DiLoCo", 2025,
      https://arxiv.org/abs/2505.23725.
      Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019,
      https://arxiv.org/abs/1907.08610.
    """
    step = sgd(learning_rate, momentum, nesterov)
    replica_axis_name = _checks.check("replica_axis_name", replica_axis_name)
    inner_learning_rate, inner_transform = _inner_loop(
        inner_optimizer, inner_learning_rate, inner_transform
    )

    offset = 0 if offset is None else offset
    delay = 0 if delay is None else delay
    blend = 0.0 if blend is None else blend

    def one(offset: int, fragment: int = 0) -> EntropicTransformation:
        own: LangevinOptions = {**options}
        if fragment:  # the first draws the noise of an optimizer alone
            with jax.ensure_compile_time_eval():  # kept beyond the trace in which it is made
                own["key"] = jax.random.fold_in(_noise.typed_key(own.get("key", 0)), fragment)
        return build(
            optax.chain(average_over_replicas(replica_axis_name, bits=bits, top_k=top_k), step),
            replica_axis_name=replica_axis_name,
            inner_steps=inner_steps,
            inner_learning_rate=inner_learning_rate,
            inner_transform=inner_transform,
            offset=offset,
            delay=delay,
            blend=blend,
            **own,
        )

    alone = one(offset)
    if fragments is None:
        return alone
    streaming = options.get("streaming", False)
    return in_turn(one, fragments, inner_steps, offset, streaming)


def _inner_loop(
    optimizer: optax.GradientTransformation | None,
    learning_rate: ScalarOrSchedule | None,
    direction: optax.GradientTransformation | None,
) -> tuple[ScalarOrSchedule, optax.GradientTransformation]:
    """The rate and the direction of the inner steps, from either way of giving them."""
    if optimizer is not None and learning_rate is None and direction is None:
        downhill = _checks.check("inner_optimizer", optimizer)
        return 1.0, optax.chain(downhill, optax.scale(-1.0))
    if optimizer is not None or learning_rate is None:
        raise _checks.error(
            "inner_optimizer",
            "given without `inner_learning_rate` and `inner_transform`, or one of the first two",
            f"{optimizer!r}, {learning_rate!r} and {direction!r}",
            "Pass a whole optimizer with its own rate, inner_optimizer=optax.adamw(4e-4); or "
            "inner_learning_rate=4e-4, with a direction as `inner_transform` if it is not AdamW's.",
        )
    if direction is None:
        adamw = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-4))
        return learning_rate, adamw
    return learning_rate, _checks.check("inner_transform", direction)
