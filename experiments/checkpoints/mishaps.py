"""What can go wrong with checkpoints, in one line that says what to do."""

from __future__ import annotations

import logging
import os
import re

from experiments.io.errors import InputError


class CheckpointError(InputError, ValueError):
    """What is wrong with a folder, a tree or a checkpoint."""


class DiskError(CheckpointError, OSError):
    """What the file system refused."""


class Failed(Exception):
    """Any other error, by its name and first line."""


def system_error(error: BaseException | None) -> int:
    """The system's number of the error behind `error`, or 0; TensorStore has it in its text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return 0


def reason(error: BaseException) -> str:
    """Why, in a few words: the system's, if the error comes from there."""
    if number := system_error(error):
        return os.strerror(number)
    line, _, _ = str(error).strip().partition("\n")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__


def _is_raised_too(record: logging.LogRecord) -> bool:
    return record.exc_info is not None and "orbax" in record.pathname


logging.getLogger("absl").addFilter(lambda record: not _is_raised_too(record))
