"""Seconds from `import` to the first finished update, each in a fresh process.

    python benchmarks/speed.py --only start

Digits: the network, batch size and L of `examples/digits.py`, SGD and Entropy-SGD. Character GPT:
that of `networks.py` on 2 windows, AdamW and `diloco`. An update of plain Optax and of streaming
mode is one gradient, in scan mode L. There is no compilation cache, and making the network and the
batches is not counted.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

MLP, GPT = "digits", "character GPT"
PLAIN, SCAN, STREAMING = "plain Optax", "scan mode", "streaming mode"
PARTS = ("import", "init", "trace", "compile", "first update")
REPEATS = 5


def comparisons() -> dict[str, Callable[[], Any]]:
    """For `timing.measure`."""
    return {job: partial(compare, job) for job in (MLP, GPT)}


def compare(job: str) -> dict[str, list[dict[str, float]]]:
    """The seconds of each part, for each way to train, once in each of REPEATS rounds."""
    found: dict[str, list[dict[str, float]]] = {PLAIN: [], SCAN: [], STREAMING: []}
    for _ in range(REPEATS):
        for way, seconds in found.items():
            command = [sys.executable, __file__, job, way]
            own = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
            run = subprocess.run(command, check=True, env=own, stdout=subprocess.PIPE, text=True)
            seconds.append(json.loads(run.stdout))
    return found


def show(results: dict[str, Any], folder: pathlib.Path) -> str:
    """Medians, and the ratio of the sums to plain Optax's."""
    import report  # it imports JAX, which a fresh process must not have done

    tables = []
    for job, found in results.items():
        sums = {way: [sum(run.values()) for run in runs] for way, runs in found.items()}
        rows = []
        for way, runs in found.items():
            medians = [statistics.median(run[part] for run in runs) for part in PARTS]
            medians.append(statistics.median(sums[way]))
            ratios = [own / plain for own, plain in zip(sums[way], sums[PLAIN], strict=True)]
            spread = report.spread(report.quartiles(ratios))
            rows.append([way, *(f"{value:.2f}" for value in medians), spread])
        headings = [job, *(f"{part}, s" for part in PARTS), "together, s", f"/ {PLAIN}"]
        tables.append(report.markdown(headings, rows))
    return "\n\n".join(tables)


def once(job: str, way: str) -> dict[str, float]:
    """In this process, which has imported neither JAX nor the library."""
    began = time.perf_counter()
    for package in ("jax", "optax", *([] if way == PLAIN else ["entropy_sgd_jax"])):
        importlib.import_module(package)
    imported = time.perf_counter() - began

    task, plain, ours = make_job(job)
    began = time.perf_counter()
    program = make_program(task, way, plain, ours)
    made = time.perf_counter()
    program.call()
    first = time.perf_counter() - made
    trace, compilation = program.trace_seconds, program.compile_seconds
    init = made - began - trace - compilation
    return dict(zip(PARTS, (imported, init, trace, compilation, first), strict=True))


def make_job(job: str) -> tuple[Any, Callable[[], Any], Callable[..., Any]]:
    """A task, and how to make the plain optimizer and ours."""
    import programs

    if job == MLP:
        task = programs.mlp_task((64, 64, 64, 10), 64)
        return task, programs.sgd, partial(programs.entropy, task)

    import networks

    task = networks.gpt(networks.CPU._replace(texts=2))
    return task, programs.adamw, partial(programs.diloco, task)


def make_program(task: Any, way: str, plain: Callable[[], Any], ours: Callable[..., Any]) -> Any:
    import jax

    import programs

    if way == SCAN:
        return programs.loops(way, ours(), task)
    first = jax.tree.map(lambda leaf: leaf[:, :1], task.batches)
    one = task._replace(batches=first, inner_steps=1)
    return programs.scan(way, plain() if way == PLAIN else ours(streaming=True), one)


if __name__ == "__main__":
    print(json.dumps(once(*sys.argv[1:])))
