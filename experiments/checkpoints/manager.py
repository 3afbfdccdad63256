"""Checkpoints of a run that may be killed at any time and resumes with the same command.

Orbax does the work: it writes while the computation goes on, makes a checkpoint visible only when
it is complete, keeps the last few, and puts arrays back onto whatever devices there are now.
"""

from __future__ import annotations

import contextlib
import errno
import pathlib
import shutil
import time
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.checkpoints.leaves import abstract, by_name, checksums, kind, put_back, to_write
from experiments.checkpoints.mishaps import CheckpointError, DiskError, Failed, reason, system_error
from experiments.checkpoints.processes import gather, lockstep, together
from experiments.checkpoints.run_folder import RunFolder

CHECKSUMS = "checksums"  # the name under which they are saved
OF_THE_CHECKPOINT = (CheckpointError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Checkpoints:
    """The checkpoints in a folder, of one configuration; a context manager.

    In a run of several processes each of them makes the same calls, and all see the same folder.
    What goes wrong in one of them is raised in all, as a CheckpointError of one line.
    """

    def __init__(
        self, folder: str | pathlib.Path, configuration: Mapping[str, Any], keep: int = 3
    ) -> None:
        """Opens or makes `folder`, which no other run can use until this is closed.

        Raises CheckpointError if another run uses it or if it is of another configuration.
        """
        if not (isinstance(keep, int) and keep > 0):
            raise CheckpointError(f"`keep` must be an int above 0; got {keep!r}")
        self._folder = RunFolder(folder, configuration)
        self._keep = keep
        self._writer: ocp.CheckpointManager | None = None

    def save(self, step: int, tree: Any) -> None:
        """Starts to write `tree`, and returns before it is written.

        Raises CheckpointError, also for what went wrong with the one before.
        """
        writer = self._finish() or self._open_writer()
        leaves = together(self._to_write, step, tree)
        leaves[CHECKSUMS] = checksums(step, leaves)
        self._write(writer.save, step, args=ocp.args.StandardSave(leaves), force=True)

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest whole checkpoint, with its step, or None if there is none.

        The arrays come back bit for bit, with the shapes, dtypes and shardings of `like`, whatever
        devices they were saved from. A broken checkpoint is set aside with a warning.
        """
        self._finish()
        for step in self._steps():
            try:
                leaves = together(self._read, step, like)
                found = leaves.pop(CHECKSUMS)
                together(_verify, step, found, checksums(step, leaves))
            except Failed as error:
                self._set_aside(step, error)
                continue
            return step, put_back(leaves, like)
        return None

    def close(self) -> None:
        """Waits until everything is written, and lets the next run have the folder."""
        try:
            self._finish()
        finally:
            self._drop_writer()
            self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if error is None:
            return self.close()
        try:  # alone, since the other processes may not come here
            if self._writer is not None:
                self._writer.wait_until_finished()
        except Exception as another:
            warnings.warn(f"the last checkpoint is not written: {reason(another)}", stacklevel=2)
        finally:
            self._drop_writer()
            self._folder.close()

    def _to_write(self, step: int, tree: Any) -> dict[str, Any]:
        """The leaves, after everything that can be refused is."""
        if not hasattr(step, "__index__") or step < 0:
            raise CheckpointError(f"`step` must be an int of at least 0; got {step!r}")
        leaves = to_write(tree)
        if self._writer is not None and step in self._writer.all_steps():
            raise CheckpointError(
                f"checkpoint {step} is in {self._folder.path} already. Save each step once: call "
                "`restore` to go on from the newest, or give another folder"
            )
        return leaves

    def _finish(self) -> ocp.CheckpointManager | None:
        """The writer, if there is one, after it has written everything."""
        if self._writer is not None:
            self._write(self._writer.wait_until_finished)
        return self._writer

    def _open_writer(self) -> ocp.CheckpointManager:
        if self._folder.read_only:
            path = self._folder.path
            raise DiskError(f"cannot write to {path}: it is read-only. Give another folder")
        self._writer = self._write(self._manager, lockstep())
        return self._writer

    def _write(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Does it; an error becomes one line in all processes, and takes the writer with it."""

        def act() -> Any:
            try:
                return action(*arguments, **options)
            except Exception as error:
                what = DiskError if system_error(error) else CheckpointError
                raise what(
                    f"cannot write a checkpoint to {self._folder.path}: {reason(error)}. Mend "
                    "that and give the same command; it goes on from the one before"
                ) from error

        try:
            return together(act)
        except CheckpointError:
            self._drop_writer()
            if jax.process_index() == 0:
                for part in self._folder.path.glob(f"*{ocp.path.step.TMP_DIR_SUFFIX}*"):
                    _remove(part)
            raise

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):  # which it has raised before
                writer.close()

    def _manager(self, barrier: ocp.multihost.BarrierSyncFn | None) -> ocp.CheckpointManager:
        """For all processes, to write; without a barrier for this one alone, to read."""
        alone = barrier is None
        processes = {jax.process_index()} if alone else set(range(jax.process_count()))
        shared = ocp.options.MultiprocessingOptions(min(processes), processes)
        return ocp.CheckpointManager(
            self._folder.path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                create=False,
                save_root_metadata=False,
                cleanup_tmp_directories=not alone,
                multiprocessing_options=shared,
                async_options=ocp.AsyncOptions(barrier_sync_fn=barrier),
            ),
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=shared),
        )

    def _steps(self) -> list[int]:
        """Those of all whole checkpoints, the newest first."""

        def read() -> list[int]:
            with contextlib.closing(self._manager(None)) as reader:
                return sorted(reader.all_steps(), reverse=True)

        steps = together(read)
        if len(seen := {*gather(str(steps))}) > 1:
            raise CheckpointError(
                f"the processes see different checkpoints in {self._folder.path}: "
                f"{' and '.join(sorted(seen))}. Give a folder that all of them share"
            )
        return steps

    def _read(self, step: int, like: Any) -> dict[str, Any]:
        """The leaves; raises CheckpointError if that says nothing about the checkpoint."""
        leaves = by_name(like)
        try:
            with contextlib.closing(self._manager(None)) as reader:
                metadata = reader.item_metadata(step)
                sums = self._same_tree(step, leaves, dict(metadata.items()))
                wanted = {name: abstract(leaf) for name, leaf in leaves.items()}
                wanted[CHECKSUMS] = np.zeros(sums, np.uint32)
                return dict(reader.restore(step, args=ocp.args.StandardRestore(wanted)))
        except OF_THE_CHECKPOINT:
            raise
        except Exception as error:
            if isinstance(error, OSError) or system_error(error) not in (0, errno.ENOENT):
                raise DiskError(
                    f"cannot read checkpoint {step} in {self._folder.path}: {reason(error)}. "
                    "Nothing is changed; mend that and give the same command"
                ) from error
            raise

    def _same_tree(self, step: int, wanted: dict[str, Any], found: dict[str, Any]) -> Any:
        """The shape of the checksums; CheckpointError if other arrays than `wanted` are there."""
        sums = found.pop(CHECKSUMS, None)
        for name in sorted({*found, *wanted}):
            there, asked = kind(found.get(name)), kind(wanted.get(name))
            if there != asked:
                raise CheckpointError(
                    f"checkpoint {step} in {self._folder.path} is of another model or optimizer: "
                    f"{name} is {there} there, {asked} here"
                )
        return sums.shape

    def _set_aside(self, step: int, error: Failed) -> None:
        path = self._folder.path
        aside = self._folder.set_aside(str(step))
        warnings.warn(
            f"checkpoint {step} in {path} is broken ({error}); it is kept as {aside}, and the one "
            "before is tried",
            stacklevel=3,
        )
        self._drop_writer()  # which knows of it


def _remove(folder: pathlib.Path) -> None:
    """Whatever is in it; a thread of Orbax may add to it for a moment more."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)


def _verify(step: int, found: np.ndarray, expected: np.ndarray) -> None:
    if len(found) == len(expected) - 1 and (found == expected[1:]).all():
        warnings.warn(
            f"checkpoint {step} is of an earlier version, which did not write down the step: its "
            "arrays are whole, and the name of its folder is trusted",
            stacklevel=4,
        )
    elif found[0] != expected[0]:
        raise ValueError(f"it holds step {found[0]}")
    elif (found != expected).any():
        raise ValueError("other bits than were written")
