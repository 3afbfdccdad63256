"""Nothing that is not finite is carried on from update to update.

x′ is not tested in each step, because μ remembers: a NaN or Inf in (1 − α) μ + α x′ never leaves
it again. One test of μ and of the states, when a cycle ends, is a test of all its steps. Where α is
1, there is no μ, and x′ itself remembers.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import PyTree

_SMALL = 1 << 16  # elements of a leaf that is looked at together with others


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no leaf has a NaN or Inf in it; shape (), bool."""
    leaves = _floating(tree)
    return _all(_verdicts(leaves, [_is_small(leaf) for leaf in leaves]))


def stays_finite(state: optax.OptState, initial: optax.OptState) -> jax.Array:
    """Whether each leaf of `state` is finite that was so in `initial`; shape (), bool.

    Some states start with an Inf on purpose, such as the best loss so far.
    """
    leaves = _floating(state)
    small = [_is_small(leaf) for leaf in leaves]
    pairs = zip(_verdicts(leaves, small), _verdicts(_floating(initial), small), strict=True)
    return _all([now | ~before for now, before in pairs])


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
    """The state of a new start at `params`, in which schedules and noise go on."""
    return _keep_schedules(transform.init(params), state)


def _keep_schedules(fresh: Any, state: Any) -> Any:
    def counts(node: Any) -> bool:
        """Whether it holds nothing that learns from gradients, as of a schedule or of noise."""
        fields = getattr(node, "_fields", ())
        return "count" in fields and {*fields} <= {"count", "rng_key"}

    def wraps(node: Any) -> bool:
        """Whether it counts for another: `optax.inject_hyperparams`, `conditionally_mask`."""
        fields = getattr(node, "_fields", ())
        return hasattr(node, "hyperparams") or {*fields} == {"step", "inner_state"}

    def is_scheduled(node: Any) -> bool:
        return counts(node) or wraps(node)

    def keep(new: Any, old: Any) -> Any:
        if counts(new):
            return old
        if wraps(new):
            return old._replace(inner_state=_keep_schedules(new.inner_state, old.inner_state))
        return new

    return jax.tree.map(keep, fresh, state, is_leaf=is_scheduled)


def _floating(tree: PyTree) -> list[jax.Array]:
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]


def _verdicts(leaves: list[jax.Array], small: list[bool]) -> list[jax.Array]:
    """What is finite: each element of all small leaves, and each other leaf as a whole."""
    pool = _pool([leaf for leaf, is_small in zip(leaves, small, strict=True) if is_small])
    alone = [leaf for leaf, is_small in zip(leaves, small, strict=True) if not is_small]
    return [lax.is_finite(pool), *map(_is_finite, alone)]


def _all(verdicts: list[jax.Array]) -> jax.Array:
    return functools.reduce(operator.and_, map(jnp.all, verdicts))


def _is_small(leaf: jax.Array) -> bool:
    """Whether a leaf is tested together with others; one that is known to be sharded is not."""
    kind = _trees.kind_of(leaf)
    spec = getattr(getattr(kind, "sharding", None), "spec", ())
    return leaf.size <= _SMALL and all(axis is None for axis in spec)


def _pool(leaves: list[jax.Array]) -> jax.Array:
    """Small leaves as one vector: a test of each would cost more than all their arithmetic."""
    wide = jnp.dtype(jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else "f4")
    return jnp.concatenate([jnp.zeros(1, wide), *(leaf.ravel().astype(wide) for leaf in leaves)])


def _is_finite(leaf: jax.Array) -> jax.Array:
    """Whether a large leaf is finite, by the sums along its last axis, in which a NaN or Inf stays.

    Numbers so large that their sum overflows count as not finite. A test of each element takes
    three times as long on a CPU. The largest element does not tell: there XLA's maximum of many
    float32 numbers passes over NaN (JAX 0.10.2).
    """
    return jnp.all(lax.is_finite(jnp.sum(leaf, axis=-1, dtype=_trees.wide_dtype(leaf))))
