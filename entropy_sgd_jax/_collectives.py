"""Means over a named axis that are right under `pmap`, `vmap` and both kinds of `shard_map`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def mean(tree: Any, axis_name: Any) -> Any:
    """The mean of `tree` over the axis; what is equal everywhere already stays as it is."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def varying(tree: Any, axis_name: Any) -> Any:
    """Marks `tree` as device-dependent, so that its gradient is not summed over the axis.

    Under `shard_map(check_vma=True)` the gradient with respect to a replicated value is summed
    over the devices behind the user's back: a mean of it would be n times too large. A select by
    the device's number is device-dependent, and XLA drops it as both its sides are the same.
    """
    if axis_name is None:
        return tree
    always = lax.axis_index(axis_name) >= 0
    return jax.tree.map(lambda leaf: jnp.where(always, leaf, leaf), tree)
