"""Means over a named axis that are right under `pmap`, `vmap` and both kinds of `shard_map`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import AxisName, PyTree


def mean(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """The mean of `tree` over the axis; what is equal everywhere already stays as it is."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def wide_mean(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """The mean of `tree` over the axis in at least float32, in which it is returned."""

    def widen(leaf: Any) -> jax.Array:
        return jnp.asarray(leaf, _trees.wide_dtype(leaf))

    return mean(jax.tree.map(widen, tree), axis_name)


def weighted_mean(tree: PyTree, weight: ArrayLike, axis_name: AxisName) -> PyTree:
    """The mean over the axis, weighted by a scalar of each member, in the dtypes of `tree`.

    A member of weight 0 may hold anything; if all weights are 0, the mean is NaN. One exchange.
    """
    weight = jnp.asarray(weight, jnp.float32)

    def share(leaf: jax.Array) -> jax.Array:
        return jnp.where(weight == 0, jnp.zeros_like(leaf), leaf * weight.astype(leaf.dtype))

    shares, total = lax.psum((jax.tree.map(share, tree), weight), axis_name)
    return jax.tree.map(lambda leaf: leaf / total.astype(leaf.dtype), shares)


def varying(tree: PyTree, *like: Any) -> PyTree:
    """Marks `tree` as device-dependent over every axis over which an array of `like` is.

    Under `shard_map(check_vma=True)` what depends on the device has a different type from what does
    not, and a loop needs one type throughout. A select is as device-dependent as its condition,
    and XLA drops it, since both its sides are the same.
    """
    if not inside_shard_map():
        return tree
    condition = jnp.zeros((), bool)
    for array in like:
        if not jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
            condition |= jnp.any(array != array)
    return jax.tree.map(lambda leaf: lax.select_n(condition, leaf, leaf), tree)


def own(tree: PyTree, *axis_names: AxisName | None) -> PyTree:
    """Marks `tree` as each device's own over those of the axes that are bound.

    Under `shard_map(check_vma=True)` the gradient at a replicated point is summed over the
    devices behind the user's back: a mean of it would be n times too large.
    """
    bound = [name for name in axis_names if name is not None and is_bound(name)]
    return varying(tree, *map(lax.axis_index, bound))


def is_bound(axis_name: AxisName) -> bool:
    """Whether a `vmap`, `pmap` or `shard_map` around this call has the axis."""
    try:
        lax.axis_index(axis_name)
    except NameError:
        return False
    return True


def gather(array: jax.Array, axis_name: AxisName) -> jax.Array:
    """What each member has, along a new leading axis, marked as equal on all devices."""
    to: dict[str, Any] = {"to": "invarying"} if axes_checked(axis_name) else {}
    names = _one_by_one(axis_name)
    if not names:
        return lax.all_gather(array, axis_name, **to)
    for name in reversed(names):
        array = lax.all_gather(array, name)
    return array.reshape(-1, *array.shape[len(names) :])


def deal(array: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sends row i of `array` to member i; returns the rows that this one is sent, by sender."""
    names = _one_by_one(axis_name)
    if not names:
        return lax.all_to_all(array, axis_name, 0, 0)
    rows = array.reshape(*(lax.psum(1, name) for name in names), *array.shape[1:])
    for place, name in enumerate(names):
        rows = lax.all_to_all(rows, name, place, place)
    return rows.reshape(array.shape)


def _one_by_one(axis_name: AxisName) -> tuple[Any, ...]:
    """The axes, if some are of `vmap`, over which these collectives go one at a time; else none."""
    return axis_name if isinstance(axis_name, tuple) and not _manual_axes() >= {*axis_name} else ()


def is_equal_on_all(tree: PyTree, axis_name: AxisName) -> bool:
    """Whether JAX knows that a leaf of `tree` is equal on all devices along the axis."""
    names = axes_checked(axis_name)
    return any(not names <= _varies_over(leaf) for leaf in jax.tree.leaves(tree))


def axes_checked(axis_name: AxisName) -> set[Any]:
    """The axes over which JAX keeps track of what varies: none without `check_vma`."""
    return _varies_over(lax.axis_index(axis_name)) if inside_shard_map() else set()


def _varies_over(array: Any) -> set[Any]:
    """The axes over which JAX knows that it varies; the attribute's name depends on the version."""
    kind = _trees.kind_of(array)
    manual = getattr(kind, "manual_axis_type", None)
    return set(getattr(kind, "vma", ()) if manual is None else manual.varying)


def inside_shard_map() -> bool:
    """Whether arrays may differ by device; a JAX that cannot tell does not check it either."""
    return bool(_manual_axes())


def _manual_axes() -> set[Any]:
    """The axes of the `shard_map`s around this call, `pmap`'s among them."""
    mesh = getattr(jax.sharding, "get_abstract_mesh", None)
    return set() if mesh is None else {*mesh().manual_axes}
