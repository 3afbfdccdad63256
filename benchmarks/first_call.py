"""Seconds of the first call of each measure of flatness, compilation included, and of a warm one.

    python benchmarks/first_call.py                      # all, on a network of 2,410 parameters
    python benchmarks/first_call.py top_eigenvalues

Each is timed in a process of its own without a compilation cache, importing and data not counted.
The warm call is of the same function under `jax.jit`, whose own first call stands between the two.
Only ratios of one run on an idle machine mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

MEASURES = ["top_eigenvalues", "hessian_trace", "spectral_density", "local_learning_coefficient"]
OPTIONS: dict[str, dict[str, Any]] = {
    "top_eigenvalues": {"k": 5},
    "local_learning_coefficient": {"scope": 100.0, "num_steps": 100},
}


def time_one(name: str) -> dict[str, Any]:
    """In this process, once."""
    import jax
    import jax.numpy as jnp
    import optax
    from sklearn.datasets import load_digits

    from entropy_sgd_jax import flatness

    inputs, labels = load_digits(return_X_y=True)
    batches = (
        jnp.asarray(inputs[:1536] / 16, jnp.float32).reshape(6, 256, 64),
        jnp.asarray(labels[:1536]).reshape(6, 256),
    )
    keys = jax.random.split(jax.random.key(0))
    params = {
        "first": jax.random.normal(keys[0], (64, 32)) / 8,
        "first_bias": jnp.zeros(32),
        "second": jax.random.normal(keys[1], (32, 10)) / 6,
        "second_bias": jnp.zeros(10),
    }

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden = jnp.tanh(batch[0] @ params["first"] + params["first_bias"])
        logits = hidden @ params["second"] + params["second_bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def measure(params: Any, batches: Any) -> Any:
        return getattr(flatness, name)(loss, params, batches, **OPTIONS.get(name, {}))

    def seconds(function: Callable[..., Any]) -> float:
        began = time.perf_counter()
        jax.block_until_ready(tuple(function(params, batches)))
        return time.perf_counter() - began

    jax.block_until_ready(batches)
    first, compiled = seconds(measure), jax.jit(measure)
    under_jit = seconds(compiled)
    return {
        "measure": name,
        "first_call": round(first, 2),
        "first_call_under_jit": round(under_jit, 2),
        "warm": round(min(seconds(compiled) for _ in range(3)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("measures", nargs="*", default=MEASURES, metavar="measure")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.measures:
        if options.here:
            print(json.dumps(time_one(name)), flush=True)
            continue
        command = [sys.executable, __file__, "--here", name]
        environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
