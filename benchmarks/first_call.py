"""Seconds of the first call of each measure of flatness, compilation included, and of a warm one.

    python benchmarks/first_call.py                      # all, on a network of 2,410 parameters
    python benchmarks/first_call.py top_eigenvalues
    python benchmarks/first_call.py --peer PYTHON        # an interpreter with PyHessian

Each is timed in a process of its own without a compilation cache, importing and data not counted.
The warm call is of the same function under `jax.jit`, whose own first call stands between the two.
With --peer, PyHessian 0.1 measures a network of the same shape on the same batches, in turn with
ours, at its own tolerances: five eigenvalues, the trace, and a density of 8 probes of 80 steps.
`pip install torch pyhessian`; where PyTorch has lost `torch.eig`, its successor takes its place.
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
PEER: dict[str, Callable[[Any], Any]] = {
    "top_eigenvalues": lambda hessian: hessian.eigenvalues(top_n=5),
    "hessian_trace": lambda hessian: hessian.trace(),
    "spectral_density": lambda hessian: hessian.density(iter=80, n_v=8),
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
        jax.block_until_ready(function(params, batches))
        return time.perf_counter() - began

    jax.block_until_ready((params, batches))
    first, compiled = seconds(measure), jax.jit(measure)
    under_jit = seconds(compiled)
    return {
        "measure": name,
        "first_call": round(first, 2),
        "first_call_under_jit": round(under_jit, 2),
        "warm": round(min(seconds(compiled) for _ in range(3)), 4),
    }


def time_peer(name: str) -> dict[str, Any]:
    """Likewise, by PyHessian."""
    import warnings

    warnings.simplefilter("ignore")
    import numpy as np
    import pyhessian
    import torch
    from sklearn.datasets import load_digits

    torch.eig = lambda matrix, eigenvectors: (
        lambda values, vectors: (values[:, None], vectors)
    )(*torch.linalg.eigh(matrix))  # fmt: skip
    torch.manual_seed(0)
    inputs, labels = load_digits(return_X_y=True)
    pair = torch.tensor(inputs[:1536] / 16, dtype=torch.float32), torch.tensor(labels[:1536])
    batches = list(zip(*(leaf.split(256) for leaf in pair), strict=True))
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    with torch.no_grad():
        for layer, deviation in ((network[0], 1 / 8), (network[2], 1 / 6)):
            torch.nn.init.normal_(layer.weight, std=deviation)
            layer.bias.zero_()

    def seconds() -> float:
        began = time.perf_counter()
        loss = torch.nn.functional.cross_entropy
        hessian = pyhessian.hessian(network, loss, dataloader=batches, cuda=False)
        np.asarray(PEER[name](hessian)[0])
        return time.perf_counter() - began

    first = seconds()
    warm = min(seconds() for _ in range(2))
    return {"measure": f"PyHessian, {name}", "first_call": round(first, 2), "warm": round(warm, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("measures", nargs="*", default=MEASURES, metavar="measure")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter with PyHessian")
    parser.add_argument("--here", choices=["ours", "peer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    for name in options.measures:
        if options.here:
            found = time_peer(name) if options.here == "peer" else time_one(name)
            print(json.dumps(found), flush=True)
            continue
        programs = {"ours": sys.executable}
        if options.peer and name in PEER:
            programs["peer"] = options.peer
        for program, python in programs.items():
            command = [python, __file__, "--here", program, name]
            subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
