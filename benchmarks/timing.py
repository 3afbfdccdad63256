"""Fair timing: programs in turn in one process, in a new order each round; medians of pairs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.progress


class Program(NamedTuple):
    """Something to time: each call evaluates `gradients` gradients and waits for the last."""

    name: str
    call: Callable[[], None]
    gradients: int
    trace_seconds: float = 0.0
    compile_seconds: float = 0.0
    temporary_bytes: int = 0


class Measurement(NamedTuple):
    """Microseconds per gradient, and the ratio to the first program, round by round."""

    name: str
    median: float
    low: float  # 10th percentile
    high: float  # 90th percentile
    ratio: float  # median of the paired ratios
    ratio_low: float  # quartiles of the paired ratios
    ratio_high: float
    rounds: int
    trace_seconds: float  # medians
    compile_seconds: float
    start_ratio: float  # of tracing and compiling, likewise paired
    temporary_bytes: int


def compile_program(
    name: str, function: Callable[..., Any], carry: Any, inputs: Any, gradients: int
) -> Program:
    """Compiles `carry = function(*carry, inputs)`, whose carry is donated from call to call."""
    arguments = tuple(range(len(carry)))
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=arguments).lower(*carry, inputs)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    holder = [carry]

    def call() -> None:
        holder[0] = jax.block_until_ready(compiled(*holder[0], inputs))

    memory = compiled.memory_analysis()
    temporary = getattr(memory, "temp_size_in_bytes", 0)
    return Program(name, call, gradients, traced - start, done - traced, temporary)


Maker = Callable[[], Program]  # traces and compiles


def interleave(
    makers: Sequence[Maker], seconds: float, label: str = "", compilations: int = 1
) -> list[Measurement]:
    """Times all programs in turn for about `seconds`; ratios are to the first of them.

    Before that each is traced and compiled this many times, in turn too.
    """
    makers[0]()  # what JAX does once, it does here
    starts = np.empty((compilations, len(makers), 2))
    for row in starts:
        programs = []
        for index, make in enumerate(makers):
            jax.clear_caches()
            programs.append(make())
            row[index] = programs[-1].trace_seconds, programs[-1].compile_seconds
    for program in programs:
        program.call()
    start = time.perf_counter()
    for program in programs:
        program.call()
    rounds = max(7, round(seconds / (time.perf_counter() - start)))
    times = np.empty((rounds, len(programs)))
    order = np.random.default_rng(0)
    for row in rich.progress.track(times, description=label or "timing", transient=True):
        for index in order.permutation(len(programs)):
            start = time.perf_counter()
            programs[index].call()
            row[index] = (time.perf_counter() - start) / programs[index].gradients * 1e6
    return [
        _summary(program, times[:, i], times[:, 0], starts[:, i], starts[:, 0])
        for i, program in enumerate(programs)
    ]


def _summary(
    program: Program,
    times: np.ndarray,
    reference: np.ndarray,
    starts: np.ndarray,
    reference_starts: np.ndarray,
) -> Measurement:
    ratios = times / reference
    start_ratios = starts.sum(-1) / reference_starts.sum(-1)
    return Measurement(
        name=program.name,
        median=float(np.median(times)),
        low=float(np.quantile(times, 0.1)),
        high=float(np.quantile(times, 0.9)),
        ratio=float(np.median(ratios)),
        ratio_low=float(np.quantile(ratios, 0.25)),
        ratio_high=float(np.quantile(ratios, 0.75)),
        rounds=len(times),
        trace_seconds=float(np.median(starts[:, 0])),
        compile_seconds=float(np.median(starts[:, 1])),
        start_ratio=float(np.median(start_ratios)),
        temporary_bytes=program.temporary_bytes,
    )


def environment() -> dict[str, Any]:
    """The machine and the versions that a result belongs to."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "backend": device.platform,
        "processor": _processor(),
        "cores": len(jax.devices()) if device.platform != "cpu" else _cores(),
        "python": platform.python_version(),
        **_versions("jax", "jaxlib", "optax", "entropy-sgd-jax", "torch"),
    }


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
