"""Means over replicas: of their updates, whole, in integers or in part, and of their parameters."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from entropy_sgd_jax import (
    _checks,
    _collectives,
    _guard,
    _protocol,
    _quantisation,
    _sparsification,
    _trees,
)
from entropy_sgd_jax._typing import AxisName, PyTree, Scalar, Tree


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
