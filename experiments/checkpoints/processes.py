"""Several processes that act as one: what fails in one of them fails in all, in the same words."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from experiments.checkpoints.mishaps import CheckpointError, DiskError, Failed, reason

T = TypeVar("T")
KINDS = {kind.__name__: kind for kind in (DiskError, CheckpointError, Failed)}  # first things first
LENGTH = 1024  # bytes of a message, so that one compiled program carries them all
MEETING = 20_000  # ms from the first to the last process at a barrier that all have reached


def gather(text: str) -> list[str]:
    """The `text` of every process, in all of them; of each the first 1,024 bytes."""
    if jax.process_count() == 1:
        return [text]
    padded = text.encode()[:LENGTH].ljust(LENGTH, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def together(action: Callable[..., T], *arguments: object) -> T:
    """What `action` returns, once it has in all processes; else the same error in all of them.

    An error that tells the user what to do comes before others. The action must not wait for other
    processes: one that has failed would not come.
    """
    problem: Exception | None = None
    try:
        result = action(*arguments)
    except Exception as error:
        problem = error
    told = gather(_describe(problem))
    for name, kind in KINDS.items():
        for process, text in enumerate(told):
            if text.startswith(f"{name}\n"):
                where = f"in process {process}: " if process else ""
                raise kind(where + text.partition("\n")[2]) from problem
    return result


def first(action: Callable[..., str], *arguments: object) -> str:
    """The text that `action` returns in the first process, which alone runs it, in all of them."""
    text = together(lambda: action(*arguments) if jax.process_index() == 0 else "")
    return gather(text)[0]


def lockstep() -> ocp.multihost.BarrierSyncFn:
    """A barrier for `ocp.AsyncOptions` that fails in all processes if they meet at two places.

    A process in which writing failed goes on to a later barrier than the others. Orbax would let
    all of them wait there for 20 minutes.
    """
    meet = ocp.multihost.get_barrier_sync_fn()
    numbers = itertools.count()
    name, broken = first(lambda: uuid.uuid4().hex), False

    def wait(*, key: str, timeout_ms: int) -> None:
        nonlocal broken
        if broken:
            raise TimeoutError("the processes are no longer in step")
        place = f"{name}.{next(numbers)}"
        try:
            meet(key=place, timeout_ms=timeout_ms)
            meet(key=f"{place} {key}", timeout_ms=MEETING)
        except Exception:
            broken = True
            raise

    return wait


def _describe(problem: Exception | None) -> str:
    if problem is None:
        return ""
    if isinstance(problem, CheckpointError):
        return f"{type(problem).__name__}\n{problem}"
    return f"{Failed.__name__}\n{reason(problem)}"
