"""Fair timing: programs in turn in one process, in a new order each round, every time kept."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.progress

import entropy_sgd_jax

FEWEST_ROUNDS = 5
# Before anything is compiled, after which JAX no longer asks.
jax.config.update("jax_enable_compilation_cache", False)


class Program(NamedTuple):
    """Something to time: each call evaluates `gradients` gradients and waits for the last."""

    name: str
    call: Callable[[], None]
    gradients: int
    trace_seconds: float = 0.0
    compile_seconds: float = 0.0
    temporary_bytes: int = 0
    peak_bytes: int = 0  # parameters, state and temporaries; without the batches


@dataclasses.dataclass(frozen=True)
class Timed:
    """What was measured of one program."""

    name: str
    times: list[float]  # µs per gradient, a round each
    trace_seconds: list[float]  # a compilation each
    compile_seconds: list[float]
    temporary_bytes: int
    peak_bytes: int

    @property
    def starts(self) -> np.ndarray:
        """Seconds to trace and compile."""
        return np.add(self.trace_seconds, self.compile_seconds)


class Quartiles(NamedTuple):
    """Of the same quantity in every round."""

    low: float
    median: float
    high: float


def quartiles(values: Any) -> Quartiles:
    return Quartiles(*map(float, np.quantile(values, (0.25, 0.5, 0.75))))


def compile_program(
    name: str, function: Callable[..., Any], carry: Any, calls: Sequence[Any], gradients: int
) -> Program:
    """Compiles `carry = function(*carry, inputs)`, whose carry is donated from call to call.

    The program makes a call from Python for each inputs in `calls`, and waits for the last.
    """
    jitted = jax.jit(function, donate_argnums=tuple(range(len(carry))))
    start = time.perf_counter()
    lowered = jitted.lower(*carry, calls[0])
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    holder = [carry]
    # A training loop calls the jitted function, which is dispatched faster than a compiled one.
    run = jitted if len(calls) > 1 else compiled

    def call() -> None:
        carry = holder.pop()
        for inputs in calls:
            carry = run(*carry, inputs)
        holder.append(jax.block_until_ready(carry))

    memory = compiled.memory_analysis()
    temporary = getattr(memory, "temp_size_in_bytes", 0)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    return Program(
        name, call, gradients, traced - start, done - traced, temporary, held + temporary
    )


Maker = Callable[[], Program]  # traces and compiles


def interleave(
    makers: Sequence[Maker], seconds: float, label: str = "", compilations: int = 1
) -> list[Timed]:
    """Times all programs in turn for about `seconds`, each at least FEWEST_ROUNDS times.

    Before that each is traced and compiled this many times, in turn too.
    """
    makers[0]()  # what JAX does once, it does here
    starts = np.empty((compilations, len(makers), 2))
    for row in starts:
        programs: list[Program] = []
        for index, make in enumerate(makers):
            jax.clear_caches()
            programs.append(make())
            row[index] = programs[-1].trace_seconds, programs[-1].compile_seconds
    for program in programs:
        program.call()
    order, times = np.random.default_rng(0), []

    def take_round() -> None:
        row = np.empty(len(programs))
        for index in order.permutation(len(programs)):
            start = time.perf_counter()
            programs[index].call()
            row[index] = (time.perf_counter() - start) / programs[index].gradients * 1e6
        times.append(row)

    start = time.perf_counter()
    take_round()
    rounds = max(FEWEST_ROUNDS, round(seconds / (time.perf_counter() - start)))
    for _ in rich.progress.track(range(1, rounds), label or "timing", transient=True):
        take_round()
    return [
        Timed(
            program.name,
            _rounded(np.array(times)[:, index]),
            _rounded(starts[:, index, 0]),
            _rounded(starts[:, index, 1]),
            program.temporary_bytes,
            program.peak_bytes,
        )
        for index, program in enumerate(programs)
    ]


def _rounded(values: np.ndarray) -> list[float]:
    """To five digits, to keep logs short."""
    return [float(f"{value:.5g}") for value in values]


def measure(
    path: pathlib.Path, comparisons: Mapping[str, Callable[[], Any]], again: bool, **how: Any
) -> None:
    """Makes the comparisons that the log at `path` lacks, and writes it after each.

    What was measured in another environment, with another library or another `how` does not count,
    and nothing does if it is to be measured again.
    """
    header = {"environment": environment(), **how}
    log = json.loads(path.read_text()) if path.exists() and not again else {}
    if log != log | header:
        log = {**header, "results": {}}
    for name, compare in comparisons.items():
        if name not in log["results"]:
            log["results"][name] = compare()
            _write(path, log)
        print(f"{path.stem}, {name}: measured", flush=True)


def read(path: pathlib.Path) -> dict[str, Any]:
    """A log, with its rows as they were measured."""
    log = json.loads(path.read_text())
    for name, rows in log["results"].items():
        if isinstance(rows, list):
            log["results"][name] = [Timed(**row) for row in rows]
    return log


def _write(path: pathlib.Path, log: dict[str, Any]) -> None:
    """In one go, so that no half of a log is ever read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps(log, default=vars) + "\n")
    whole.replace(path)


def environment() -> dict[str, Any]:
    """The machine, the versions and the library's source that a result belongs to."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "backend": device.platform,
        "processor": _processor(),
        "cores": len(jax.devices()) if device.platform != "cpu" else _cores(),
        "python": platform.python_version(),
        **_versions("jax", "jaxlib", "optax", "entropy-sgd-jax", "torch"),
        "source": _source(),
    }


def _source() -> str:
    """A checksum of the library, which changes between two versions."""
    found, folder = 0, pathlib.Path(entropy_sgd_jax.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        found = zlib.crc32(file.read_bytes(), found)
    return f"{found:08x}"


def _versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {package: list(metadata.distributions(name=package)) for package in packages}
    return {package: own[0].version for package, own in found.items() if own}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
