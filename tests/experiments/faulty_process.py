"""One of two processes, of which the second has bad luck: FOLDER ADDRESS COUNT RANK.

Prints for every kind of it, as JSON, what it came to in this process: the error or the step that
came back, and what was warned of. Each kind has a folder of its own, with checkpoints 1 and 2.
"""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
import resource
import sys
import unittest.mock
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.checkpoints import Checkpoints


@contextlib.contextmanager
def restore_raises(error: Exception) -> Iterator[None]:
    whole = ocp.CheckpointManager.restore

    def restore(self: Any, step: int, **options: Any) -> Any:
        if step == 2:
            raise error
        return whole(self, step, **options)

    with unittest.mock.patch.object(ocp.CheckpointManager, "restore", restore):
        yield


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tree() -> Any:
    mesh = Mesh(np.array(jax.devices()), "d")
    split = NamedSharding(mesh, PartitionSpec("d"))
    return {"w": jax.make_array_from_callback((64,), split, lambda place: np.arange(64.0)[place])}


def use(name: str, configuration: Any, folder: pathlib.Path, unlucky: bool) -> Any:
    with Checkpoints(folder, configuration) as checkpoints:
        if name == "save":
            checkpoints.save(3, {"w": tree()["w"], "f": print} if unlucky else tree())
            return None
        if name == "write":
            with full_disk() if unlucky else contextlib.nullcontext():
                checkpoints.save(3, tree())
                checkpoints.close()
            return None
        found = checkpoints.restore(tree())
        return found and found[0]


BAD_LUCK: dict[str, Any] = {
    "none": contextlib.nullcontext(),
    "read": restore_raises(OSError(errno.EIO, "Input/output error")),
    "restore": restore_raises(RuntimeError("out of luck")),
    "configuration": contextlib.nullcontext(),
    "folder": contextlib.nullcontext(),
    "save": contextlib.nullcontext(),
    "write": contextlib.nullcontext(),
}


def try_out(name: str, folder: pathlib.Path, unlucky: bool) -> dict[str, Any]:
    configuration = {"width": 5 if unlucky and name == "configuration" else 4}
    own = folder / ("elsewhere" if unlucky and name == "folder" else name)
    result: dict[str, Any] = {"name": name}
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        try:
            with BAD_LUCK[name] if unlucky else contextlib.nullcontext():
                result["step"] = use(name, configuration, own, unlucky)
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}"
    result["warned"] = [str(one.message) for one in given if "checkpoint" in str(one.message)]
    return result


def main(folder: str, address: str, count: str, rank: str) -> None:
    jax.distributed.initialize(address, int(count), int(rank))
    for name in BAD_LUCK:
        with Checkpoints(pathlib.Path(folder) / name, {"width": 4}) as checkpoints:
            checkpoints.save(1, tree())
            checkpoints.save(2, tree())
        print(json.dumps(try_out(name, pathlib.Path(folder), rank == "1")), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
