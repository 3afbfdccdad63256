"""The folder of a run: of one configuration, and written by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

from experiments.checkpoints.mishaps import CheckpointError, DiskError
from experiments.checkpoints.processes import first, together
from experiments.io.errors import InputError
from experiments.io.files import write_whole

try:
    import fcntl
except ImportError as error:  # on Windows
    raise InputError("experiments.checkpoints needs Linux or macOS: it locks by fcntl") from error

CONFIGURATION = "configuration.json"  # next to the checkpoints: what they belong to
LOCK = "lock"  # the kernel releases it when the process ends, however it ends
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class RunFolder:
    """Made or found, locked, and checked to be of this configuration; close it to unlock it.

    Every process of the run holds a shared lock, so that none that outlives the others is
    overlooked; to start, the first one needs an exclusive lock for a moment.
    """

    def __init__(self, path: str | pathlib.Path, configuration: Mapping[str, Any]) -> None:
        """Raises CheckpointError, and leaves no new folder, if this run cannot have it."""
        self.path = pathlib.Path(path).absolute()
        self._lock: int | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            together(_as_read_back, configuration)
            first(self._make, undo)
            self.read_only = first(self._take_lock) == "read only"
            together(self._share_lock)
            together(self._check, configuration)
            first(self._write, configuration)
            undo.pop_all()

    def close(self) -> None:
        """Lets the next run have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def set_aside(self, name: str) -> str:
        """The name under which a broken checkpoint is kept from now on, the same everywhere."""
        return first(self._rename, self.path / name)

    def _make(self, undo: contextlib.ExitStack) -> str:
        try:
            new = [path for path in (self.path, *self.path.parents) if not path.exists()]
            undo.callback(_remove, new)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"cannot make the folder {self.path}: {error.strerror}") from error
        return ""

    def _take_lock(self) -> str:
        try:
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in FORBIDDEN:
                return "read only"
            raise DiskError(
                f"cannot write to {self.path}: {error.strerror}. Give another folder"
            ) from error
        self._flock(fcntl.LOCK_EX)
        self._flock(fcntl.LOCK_SH)
        return ""

    def _share_lock(self) -> None:
        if self.read_only or self._lock is not None:
            return
        try:
            self._lock = os.open(self.path / LOCK, os.O_RDWR)
        except OSError as error:
            raise DiskError(
                f"cannot open {self.path / LOCK}, which the first process has made: "
                f"{error.strerror}. Give a folder that all processes share"
            ) from error
        self._flock(fcntl.LOCK_SH)

    def _flock(self, kind: int) -> None:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another run is using {self.path}: wait until it ends, stop it, or give another "
                "folder"
            ) from error
        except OSError as error:
            warnings.warn(
                f"cannot lock {self.path} ({error.strerror}): see to it that no other run uses it",
                stacklevel=2,
            )

    def _check(self, configuration: Mapping[str, Any]) -> None:
        path = self.path / CONFIGURATION
        try:
            known = json.loads(path.read_text()) if path.exists() else configuration
        except OSError as error:
            raise DiskError(
                f"cannot read {path}: {error.strerror}. Make it readable, or give another folder"
            ) from error
        except (ValueError, RecursionError):
            known = None
        if not isinstance(known, Mapping):
            raise CheckpointError(
                f"{path} is damaged. Delete it if the checkpoints beside it are of the settings "
                "given, or give another folder"
            )
        if different := differences(known, configuration):
            raise CheckpointError(
                f"the checkpoints in {self.path} are of other settings: {different}. Give the "
                "same settings to go on, or another folder to start again"
            )

    def _write(self, configuration: Mapping[str, Any]) -> str:
        path = self.path / CONFIGURATION
        if not self.read_only and not path.exists():
            try:
                write_whole(path, json.dumps(dict(configuration), indent=1) + "\n")
            except OSError as error:
                raise DiskError(
                    f"cannot write {path}: {error.strerror}. Make room, or give another folder"
                ) from error
        return ""

    def _rename(self, path: pathlib.Path) -> str:
        if self.read_only:
            return path.name
        again = (f"broken_{path.name}_{number}" for number in itertools.count(2))
        names = map(path.with_name, itertools.chain([f"broken_{path.name}"], again))
        aside = next(name for name in names if not name.exists())
        try:
            path.rename(aside)
        except OSError as error:
            raise DiskError(
                f"cannot rename {path}, which is broken: {error.strerror}. Move it away by hand"
            ) from error
        return aside.name


def differences(known: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Where two configurations differ, in words; empty if they do not."""
    known, given = _as_read_back(known), _as_read_back(given)
    return "; ".join(
        f"{name} {known.get(name)!r} there, {given.get(name)!r} given"
        for name in sorted({*known, *given})
        if known.get(name) != given.get(name)
    )


def _as_read_back(configuration: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(configuration)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"`configuration` must be a mapping that JSON can write; got {configuration!r:.200}. "
            "Give names with numbers, texts and lists"
        ) from error


def _remove(new: list[pathlib.Path]) -> None:
    """The folders that were made in vain, the innermost first."""
    for number, path in enumerate(new):
        if number == 0:
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.rmdir()
