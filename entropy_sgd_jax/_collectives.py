"""Means over a named axis that are right under `pmap`, `vmap` and both kinds of `shard_map`."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax


def mean(tree: Any, axis_name: Any) -> Any:
    """The mean of `tree` over the axis; what is equal everywhere already stays as it is."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def varying(tree: Any, axis_name: Any) -> Any:
    """Marks `tree` as device-dependent, so that its gradient is not summed over the axis.

    Under `shard_map(check_vma=True)` the gradient with respect to a replicated value is summed
    over the devices behind the user's back: a mean of it would be n times too large.
    """
    if axis_name is None or not hasattr(lax, "pcast"):
        return tree
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)

    def mark(leaf: jax.Array) -> jax.Array:
        missing = tuple(name for name in names if name not in jax.typeof(leaf).vma)
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)
