"""What an update may carry on: nothing that is not finite.

x′ is not looked at in each step, because μ remembers: from (1 − α) μ + α x′ no NaN or Inf ever
goes away again. One look at μ and at the states, when a cycle ends, is a look at all its steps.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from entropy_sgd_jax._typing import PyTree

_SMALL = 1 << 16  # elements of a leaf that is looked at together with others


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no leaf has a NaN or Inf in it; shape (), bool."""
    leaves = _floating(tree)
    alone = [_extremes_are_finite(leaf) for leaf in leaves if not _is_small(leaf)]
    together = lax.is_finite(_pool([leaf for leaf in leaves if _is_small(leaf)]))
    return functools.reduce(operator.and_, alone, jnp.all(together))


def stays_finite(state: optax.OptState, initial: optax.OptState) -> jax.Array:
    """Whether each leaf of `state` is finite that was so in `initial`; shape (), bool.

    Some states start with an Inf on purpose, such as the best loss so far.
    """
    pairs = list(zip(_floating(state), _floating(initial), strict=True))
    alone = [
        _extremes_are_finite(leaf) | ~_extremes_are_finite(start)
        for leaf, start in pairs
        if not _is_small(leaf)
    ]
    leaves, starts = (
        lax.is_finite(_pool([pair[i] for pair in pairs if _is_small(pair[0])])) for i in (0, 1)
    )
    return functools.reduce(operator.and_, alone, jnp.all(leaves | ~starts))


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


def _floating(tree: PyTree) -> list[jax.Array]:
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]


def _is_small(leaf: jax.Array) -> bool:
    """Whether to look at a leaf together with others: not at one that is known to be sharded."""
    kind = jax.typeof(leaf) if hasattr(jax, "typeof") else None
    spec = getattr(getattr(kind, "sharding", None), "spec", ())
    return leaf.size <= _SMALL and all(axis is None for axis in spec)


def _pool(leaves: list[jax.Array]) -> jax.Array:
    """Small leaves as one vector: a test of each would cost more than all their arithmetic."""
    wide = jnp.dtype(jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else "f4")
    return jnp.concatenate([jnp.zeros(1, wide), *(leaf.ravel().astype(wide) for leaf in leaves)])


def _extremes_are_finite(leaf: jax.Array) -> jax.Array:
    """Whether a large leaf is finite: NaN and Inf show in its largest or its least element.

    A test of each element would be an array of bools in memory.
    """
    return lax.is_finite(jnp.max(leaf)) & lax.is_finite(jnp.min(leaf))
