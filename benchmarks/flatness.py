"""What products with the Hessian cost, against gradients, from 10³ to 10⁷ parameters.

    python benchmarks/flatness.py

For a network of two square layers on a batch of 64: seconds of a gradient and of a Hessian-vector
product, their ratio, and seconds and peak temporary memory of ten Lanczos steps. Minutes on two
CPU cores; `--largest 6` stops at 10⁶ parameters.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from entropy_sgd_jax import flatness

BATCH = 64
STEPS = 10  # of Lanczos


def loss(params: Any, batch: jax.Array) -> jax.Array:
    hidden = jnp.tanh(batch @ params["first"])
    return jnp.mean((hidden @ params["second"]) ** 2)


def seconds(function: Callable, *args: Any, rounds: int) -> float:
    """The median of several runs, without compilation."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(exponent: int) -> dict[str, Any]:
    """One row of the table."""
    width = round(math.sqrt(10**exponent / 2))
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        name: jax.random.normal(key, (width, width)) / math.sqrt(width)
        for name, key in zip(("first", "second"), keys, strict=False)
    }
    batches = jax.random.normal(keys[2], (1, BATCH, width))
    rounds = 30 if exponent < 6 else 7

    gradient = jax.jit(lambda params, batches: jax.grad(loss)(params, batches[0]))
    product = jax.jit(
        lambda params, batches: flatness.hessian_vector_product(loss, params, params, batches)
    )
    lanczos = jax.jit(
        lambda params, batches: flatness.spectral_density(
            loss, params, batches, num_probes=1, num_steps=STEPS
        )
    )
    memory = lanczos.lower(params, batches).compile().memory_analysis()
    of_gradient, of_product = (
        seconds(function, params, batches, rounds=rounds) for function in (gradient, product)
    )
    return {
        "parameters": 2 * width**2,
        "gradient_seconds": of_gradient,
        "product_seconds": of_product,
        "ratio": of_product / of_gradient,
        "lanczos_seconds": seconds(lanczos, params, batches, rounds=3),
        "lanczos_temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=7, help="exponent of 10 (default 7)")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    rows = [measure(exponent) for exponent in range(3, options.largest + 1)]
    table = Table(title=f"Curvature on {jax.devices()[0].device_kind}, batch {BATCH}")
    headings = ("parameters", "gradient, ms", "product, ms", "ratio", f"{STEPS} Lanczos steps, ms")
    for heading in (*headings, "their memory, vectors"):
        table.add_column(heading, justify="right")
    for row in rows:
        vectors = (row["lanczos_temporary_bytes"] or math.nan) / (4 * row["parameters"])
        times = [row[f"{name}_seconds"] * 1e3 for name in ("gradient", "product", "lanczos")]
        shown = [f"{times[0]:.3g}", f"{times[1]:.3g}", f"{row['ratio']:.2f}", f"{times[2]:.3g}"]
        table.add_row(f"{row['parameters']:,}", *shown, f"{vectors:.1f}")
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
