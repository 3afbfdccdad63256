"""What a Langevin step costs on a GPU: real networks, and the step alone against the copy ceiling.

    python benchmarks/gpu.py             # in bfloat16, about seven minutes on one GPU
    python benchmarks/gpu.py --tiny      # the same programs, small enough for a CPU
    python benchmarks/gpu.py --report    # the tables again, from the log

Keeps a log, benchmarks/results/BACKEND/gpu.json, as `speed.py` does: an interrupted command can be
repeated.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import networks
import report
import timing
from entropy_sgd_jax import entropy_sgd
from speed import RESULTS

STEPS = 10  # copies in a row; a fourth of the Langevin steps
KINDS: dict[str, dict[str, Any]] = {
    "no noise": {"noise_scale": 0},
    "Rademacher": {"noise": "rademacher"},
    "Gaussian": {},
}


def seconds_per_call(function: Callable[..., Any], *arguments: Any) -> float:
    """Median of 20 timed calls of a compiled function."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def copy_bandwidth(elements: int) -> float:
    """Bytes per second of reading one float32 array and writing another: the ceiling."""
    array = jnp.zeros(elements, jnp.float32)

    @jax.jit
    def copies(array: jax.Array) -> jax.Array:
        return lax.fori_loop(0, STEPS, lambda _, x: lax.optimization_barrier(x + 1), array)

    return 2 * array.nbytes * STEPS / seconds_per_call(copies, array)


def step_bandwidth(elements: int, **options: Any) -> float:
    """Bytes per second of the elementwise part of Langevin steps, counted as the floor has it.

    One step reads the gradient, the momentum, x′, x and μ, and writes the momentum, x′ and μ: eight
    arrays. The gradient here is a ready array, so that nothing but the step is timed.
    """
    optimizer = entropy_sgd(1.0, inner_steps=4 * STEPS, **options)
    gradient = params = jnp.zeros(elements, jnp.float32)

    @jax.jit
    def update(params: Any, state: Any, gradient: Any) -> Any:
        return optimizer.update(None, state, params, grad_fn=lambda p, call: gradient)

    seconds = seconds_per_call(update, params, optimizer.init(params), gradient)
    return 8 * params.nbytes * 4 * STEPS / seconds


def bandwidths(elements: int) -> dict[str, float]:
    """Bytes per second."""
    steps = {name: step_bandwidth(elements, **chosen) for name, chosen in KINDS.items()}
    return {"copy": copy_bandwidth(elements), **steps}


def show(results: dict[str, Any], folder: pathlib.Path) -> str:
    found = results.pop("bandwidth")
    rows = [[name, f"{x / 1e9:.1f}", f"{x / found['copy']:.0%}"] for name, x in found.items()]
    table = report.markdown(["", "GB/s", "of the copy's"], rows)
    return f"{table}\n\n{report.programs(results, folder)}"


def main() -> None:
    usage = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usage.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    usage.add_argument("--seconds", type=float, default=30, help="per network (default 30)")
    usage.add_argument("--again", action="store_true", help="even what the log has already")
    usage.add_argument("--report", action="store_true", help="show the log, measure nothing")
    usage.add_argument("--out", type=pathlib.Path, default=RESULTS / jax.default_backend())
    options = usage.parse_args()
    size, elements = (networks.TINY, 2**16) if options.tiny else (networks.GPU, 2**27)
    log = options.out / ("gpu_tiny.json" if options.tiny else "gpu.json")
    if not options.report:
        comparisons = {
            "bandwidth": partial(bandwidths, elements),
            **networks.comparisons(size, options.seconds),
        }
        how = {"seconds": options.seconds, "size": size._asdict()}
        timing.measure(log, comparisons, options.again, **how)
    report.write(log, show)


if __name__ == "__main__":
    main()
