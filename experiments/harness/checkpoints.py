"""Checkpoints of a run that may be killed at any moment and goes on by the same command.

Orbax does the work: it writes beside the computation, makes a checkpoint visible only when it is
whole, keeps the last few, and puts arrays back onto whatever devices there are now.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import types
import warnings
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.experimental import multihost_utils

from experiments.io.errors import InputError
from experiments.io.files import write_whole

CONFIGURATION = "configuration.json"  # beside the checkpoints, what they belong to
CHECKSUMS = "checksums"  # the name under which they are saved


class Checkpoints:
    """The checkpoints in a folder, of one configuration; a context manager.

    In a run of several processes each of them makes the same calls, and all see the same folder.
    """

    def __init__(
        self, folder: str | pathlib.Path, configuration: Mapping[str, Any], keep: int = 3
    ) -> None:
        """Opens or makes `folder`; raises InputError if it belongs to another configuration."""
        self._folder = pathlib.Path(folder).absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
        self._belong_to(configuration)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def save(self, step: int, tree: Any) -> None:
        """Starts to write `tree`, and returns before it is written."""
        leaves = _by_name(tree)
        leaves[CHECKSUMS] = _checksums(leaves)
        self._manager.save(step, args=ocp.args.StandardSave(leaves), force=True)

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest whole checkpoint, with its step, or None if there is none.

        The arrays come back bit for bit, with the shapes, dtypes and shardings of `like`, whatever
        devices they were saved from. A broken checkpoint is set aside with a warning.
        """
        leaves = _by_name(like)
        wanted = {name: _abstract(leaf) for name, leaf in leaves.items()}
        wanted[CHECKSUMS] = jax.ShapeDtypeStruct((len(leaves),), jnp.uint32)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                self._same_tree(step, wanted)
                arguments = ocp.args.StandardRestore(wanted)
                leaves = dict(self._manager.restore(step, args=arguments))
                if (leaves.pop(CHECKSUMS) != _checksums(leaves)).any():
                    raise ValueError("other bits than were written")
            except InputError:
                raise
            except Exception as error:  # of a broken file nobody knows what it raises
                self._set_aside(step, error)
                continue
            ordered = [leaves[name] for name in _by_name(like)]
            restored = jax.tree.unflatten(jax.tree.structure(like), ordered)
            return step, jax.tree.map(_like, restored, like)
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    def _belong_to(self, configuration: Mapping[str, Any]) -> None:
        """Raises InputError where the folder has another configuration; a new one gets this."""
        path = self._folder / CONFIGURATION
        known = json.loads(path.read_text()) if path.is_file() else configuration
        if different := differences(known, configuration):
            raise InputError(
                f"the checkpoints in {self._folder} are of other settings: {different}. Give the "
                "same settings to go on, or another folder to start anew"
            )
        if jax.process_index() == 0:
            write_whole(path, json.dumps(dict(configuration), indent=1) + "\n")
        multihost_utils.sync_global_devices("the configuration is written")

    def _same_tree(self, step: int, wanted: dict[str, Any]) -> None:
        """Raises InputError where the checkpoint holds other arrays than `wanted`."""
        found = dict(self._manager.item_metadata(step).items())
        for name in sorted({*found, *wanted}):
            there, asked = (
                "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
                for leaf in (found.get(name), wanted.get(name))
            )
            if there != asked:
                raise InputError(
                    f"checkpoint {step} in {self._folder} is of another model or optimizer: "
                    f"{name} is {there} there, {asked} here"
                )

    def _set_aside(self, step: int, error: Exception) -> None:
        place = self._folder / str(step)
        again = (f"broken_{step}_{number}" for number in itertools.count(2))
        names = map(place.with_name, itertools.chain([f"broken_{step}"], again))
        aside = next(path for path in names if not path.exists())
        warnings.warn(
            f"checkpoint {step} in {self._folder} is broken ({type(error).__name__}); it is "
            f"kept as {aside.name}, and the one before is tried",
            stacklevel=3,
        )
        if jax.process_index() == 0:
            place.rename(aside)
        multihost_utils.sync_global_devices(f"checkpoint {step} is set aside")
        self._manager.reload()


def differences(known: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Where two configurations differ, in words; empty where they do not."""
    known, given = (json.loads(json.dumps(dict(one))) for one in (known, given))  # as read back
    return "; ".join(
        f"{name} {known.get(name)!r} there, {given.get(name)!r} given"
        for name in sorted({*known, *given})
        if known.get(name) != given.get(name)
    )


def _by_name(tree: Any) -> dict[str, jax.Array]:
    """The leaves of `tree` by the path to them, which a message can name; keys as their data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for path, leaf in leaves
    }


def _checksums(leaves: dict[str, jax.Array]) -> np.ndarray:
    """One number for each leaf, in the order of names, which any flipped bit changes.

    What is written beside the arrays carries checksums of its own; the arrays themselves do not.
    """
    return np.array([int(_checksum(leaves[name])) for name in sorted(leaves)], np.uint32)


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    """The sum of all bytes, each times an odd number of its own, modulo 2³²."""
    numbers = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    octets = lax.bitcast_convert_type(numbers, jnp.uint8)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis, length in enumerate(octets.shape):
        place += stride * lax.broadcasted_iota(jnp.uint32, octets.shape, axis)
        stride *= length
    return jnp.sum(octets * (2 * place + 1), dtype=jnp.uint32)


def _like(restored: jax.Array, like: jax.Array) -> jax.Array:
    if not _is_key(like):
        return restored
    return jax.random.wrap_key_data(restored, impl=jax.random.key_impl(like))


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _abstract(leaf: jax.Array) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
