"""What an update may carry on: nothing that is not finite.

x′ is not looked at in each step, because μ remembers: from (1 − α) μ + α x′ no NaN or Inf ever
goes away again. One look at μ and at the states, when a cycle ends, is a look at all its steps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from entropy_sgd_jax._typing import PyTree


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no leaf has a NaN or Inf in it; shape (), bool."""
    return _all(lax.is_finite(jnp.asarray(leaf)) for leaf in _floating(tree))


def stays_finite(state: optax.OptState, initial: optax.OptState) -> jax.Array:
    """Whether `state` is finite wherever `initial` was; shape (), bool.

    Some states start with an Inf on purpose, such as the best loss so far.
    """
    pairs = zip(_floating(state), _floating(initial), strict=True)
    return _all(
        lax.is_finite(jnp.asarray(leaf)) | ~lax.is_finite(jnp.asarray(start))
        for leaf, start in pairs
    )


def remember_overflow(average: PyTree, iterate: PyTree, params: PyTree) -> PyTree:
    """μ, spoiled where x′ is beyond what the parameters' narrower dtype can hold."""

    def leaf(mean: jax.Array, x: jax.Array, param: jax.Array) -> jax.Array:
        dtype = jnp.result_type(param)
        if jnp.finfo(dtype).max >= jnp.finfo(x.dtype).max:
            return mean
        return jnp.where(lax.is_finite(x.astype(dtype)), mean, jnp.asarray(jnp.nan, mean.dtype))

    return jax.tree.map(leaf, average, iterate, params)


def restarted(
    transform: optax.GradientTransformation, state: optax.OptState, params: PyTree
) -> optax.OptState:
    """The state of a new start at `params`, in which schedules go on counting."""
    return _keep_schedules(transform.init(params), state)


def _keep_schedules(fresh: Any, state: Any) -> Any:
    def is_scheduled(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState) or hasattr(node, "hyperparams")

    def keep(new: Any, old: Any) -> Any:
        if isinstance(new, optax.ScaleByScheduleState):
            return old
        if is_scheduled(new):  # of optax.inject_hyperparams
            return old._replace(inner_state=_keep_schedules(new.inner_state, old.inner_state))
        return new

    return jax.tree.map(keep, fresh, state, is_leaf=is_scheduled)


def _floating(tree: PyTree) -> list[Any]:
    return [
        leaf
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and jnp.size(leaf)
    ]


def _all(conditions: Any) -> jax.Array:
    """Whether all arrays of bools are true.

    One by one, each with the result so far, so that XLA compiles equal leaves once.
    """
    result = jnp.array(True)
    for condition in conditions:
        result = jnp.all(condition & result)
    return result
