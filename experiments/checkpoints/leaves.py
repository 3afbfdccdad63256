"""The leaves of a tree as they are written: named, plain arrays, with a checksum of each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax import lax

from experiments.checkpoints.mishaps import CheckpointError

Leaf = jax.Array | np.ndarray


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves by the path to them, which a message can name; keys as their data.

    Raises CheckpointError with the name of a leaf that cannot be written. Leaves without elements
    are left out: there is nothing to write.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    plain = {name: _plain(name, leaf) for name, leaf in named.items()}
    return {name: leaf for name, leaf in plain.items() if leaf.size}


def to_write(tree: Any) -> dict[str, Leaf]:
    """`by_name(tree)`, with copies of what the program could change during writing."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
            raise _refusal(jax.tree_util.keystr(path), leaf, "it has no values yet")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise _refusal(jax.tree_util.keystr(path), leaf, "it was donated or deleted")
    leaves = by_name(tree)
    return {n: np.array(a) if isinstance(a, np.ndarray) else a for n, a in leaves.items()}


def put_back(leaves: dict[str, Leaf], like: Any) -> Any:
    """The tree of `like` with these leaves."""

    def one(path: Any, like: Any) -> Any:
        leaf = leaves.get(jax.tree_util.keystr(path), like)
        if leaf is like or isinstance(like, np.ndarray):
            return leaf
        if _is_key(like):
            return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))
        is_array = isinstance(like, jax.Array | jax.ShapeDtypeStruct)
        return leaf if is_array else type(like)(leaf[()])  # a number

    return jax.tree_util.tree_map_with_path(one, like)


def abstract(leaf: Any) -> Any:
    """What Orbax needs to know to read the leaf."""
    if isinstance(leaf, np.ndarray):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def kind(leaf: Any) -> str:
    """Type and shape of a leaf, or of what is known of it; of None, "nothing"."""
    return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def checksums(step: int, leaves: dict[str, Leaf]) -> np.ndarray:
    """The step, and a number for each leaf in the order of names, which any flipped bit changes.

    What Orbax writes next to the arrays has checksums of its own; the arrays themselves do not.
    """
    sums = [int(_checksum(leaves[name])) for name in sorted(leaves)]
    return np.array([step % 2**32, *sums], np.uint32)


def _plain(name: str, leaf: Any) -> Any:
    if _is_key(leaf):
        data = jax.random.key_data
        return data(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(data, leaf)
    array = leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf)
    try:
        tensorstore.dtype(array.dtype)
    except (TypeError, ValueError):
        raise _refusal(name, leaf, "only arrays of numbers can be") from None
    return array


def _refusal(name: str, leaf: Any, reason: str) -> CheckpointError:
    what = kind(leaf) if hasattr(leaf, "dtype") else type(leaf).__name__
    return CheckpointError(
        f"cannot save the leaf {name or 'that is the tree'} ({what}): {reason}. Convert it, or "
        "take it out of the tree"
    )


def _is_key(leaf: Any) -> bool:
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    return is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _checksum(leaf: Leaf) -> jax.Array:
    if isinstance(leaf, np.ndarray):  # as bytes: 64 bits would not survive the way to a device
        leaf = np.ascontiguousarray(_whole_bytes(leaf))[..., None].view(np.uint8)
    return _sum_of_bytes(leaf)


@jax.jit
def _sum_of_bytes(leaf: jax.Array) -> jax.Array:
    """The sum of all bytes, each times an odd number of its own, modulo 2³²."""
    leaf = _whole_bytes(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], -1)
        octets = lax.bitcast_convert_type(leaf, jnp.uint8).reshape(*leaf.shape[:-1], -1)
    else:
        octets = lax.bitcast_convert_type(leaf, jnp.uint8)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis, length in enumerate(octets.shape):
        count = lax.broadcasted_iota(jnp.uint32, octets.shape, axis)
        place += np.uint32(stride % 2**32) * count
        stride *= length
    return jnp.sum(octets.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


def _whole_bytes(leaf: Any) -> Any:
    """The same numbers, none of them in a part of a byte."""
    if leaf.dtype == bool:
        return leaf.astype(np.uint8)
    if jnp.issubdtype(leaf.dtype, jnp.integer) and jnp.iinfo(leaf.dtype).bits < 8:
        return leaf.astype(np.int8)
    if jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 8:
        return leaf.astype(np.float32)
    return leaf
