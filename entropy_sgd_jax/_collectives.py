"""Means over a named axis that are right under `pmap`, `vmap` and both kinds of `shard_map`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def mean(tree: Any, axis_name: Any) -> Any:
    """The mean of `tree` over the axis; what is equal everywhere already stays as it is."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def wide_mean(tree: Any, axis_name: Any) -> Any:
    """The mean of `tree` over the axis in at least float32, in which it is returned."""

    def widen(leaf: Any) -> jax.Array:
        return jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))

    return mean(jax.tree.map(widen, tree), axis_name)


def varying(tree: Any, *like: Any) -> Any:
    """Marks `tree` as device-dependent over every axis over which an array of `like` is.

    Under `shard_map(check_vma=True)` what depends on the device has another type than what does
    not, and a loop wants one type all the way. A select is as device-dependent as its condition,
    and XLA drops it, since both its sides are the same.
    """
    if not _inside_shard_map():
        return tree
    condition = jnp.zeros((), bool)
    for array in like:
        condition |= jnp.any(array != array)
    return jax.tree.map(lambda leaf: lax.select_n(condition, leaf, leaf), tree)


def _inside_shard_map() -> bool:
    """Whether arrays may differ by device; a JAX that cannot tell does not check it either."""
    mesh = getattr(jax.sharding, "get_abstract_mesh", None)
    return mesh is not None and bool(mesh().manual_axes)
