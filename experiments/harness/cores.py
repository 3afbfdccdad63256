"""A core of its own for each of several trainings, where the system offers that: on Linux."""

from __future__ import annotations

import itertools
import os


def for_jobs(jobs: int) -> list[int | None]:
    """One for each job; jobs share them if there are too few. None leaves it to the system."""
    own: list[int | None] = [None]
    if hasattr(os, "sched_getaffinity"):
        own = sorted(os.sched_getaffinity(0))
    return list(itertools.islice(itertools.cycle(own), jobs))


def pin(core: int | None) -> None:
    """Keeps this process, and those that it starts, on a core."""
    if core is not None:
        os.sched_setaffinity(0, [core])
