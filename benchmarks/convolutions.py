"""What a loop costs a convolutional network on this machine: XLA's convolutions, and patches.

    python benchmarks/convolutions.py

On CPUs XLA turns a convolution's gradient into a fast one only outside loops
(https://github.com/jax-ml/jax/issues/12868), so that whatever runs under `lax.scan` is slow, SGD
too. Prints the table, and writes it to benchmarks/results/BACKEND/convolutions.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jax import lax

import programs
import report
from experiments.harness.networks import patch_convolution
from programs import Task
from speed import RESULTS
from timing import Maker, interleave, measure

STEPS, BATCH, CHANNELS = 20, 32, 16
Convolution = Callable[[jax.Array, jax.Array], jax.Array]  # of images and a 3×3 kernel


def usual(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's own."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=layout)


def by_patches(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """That of the examples."""
    return patch_convolution(images, kernel, (1, 1), "SAME")


def task(convolve: Convolution, steps: int) -> Task:
    """Two convolutions of 16 channels and a dense layer, on images of 28 × 28, batches of 32."""
    key = jax.random.key(0)
    shapes = {"first": (3, 3, 1, CHANNELS), "second": (3, 3, CHANNELS, CHANNELS)}
    shapes["last"] = (7 * 7 * CHANNELS, 10)
    params = {name: 0.1 * jax.random.normal(key, shape) for name, shape in shapes.items()}
    images = jax.random.normal(key, (1, steps, BATCH, 28, 28, 1))
    labels = jax.random.randint(key, (1, steps, BATCH), 0, 10)

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden, labels = batch
        for name in ("first", "second"):
            hidden = jax.nn.relu(convolve(hidden, params[name]))
            hidden = hidden[:, ::2, ::2]
        logits = hidden.reshape(BATCH, -1) @ params["last"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Task(jax.grad(loss), params, (images, labels), 1, steps)


def makers() -> list[Maker]:
    """The first is what the others are divided by."""
    one, loop, patches = task(usual, 1), task(usual, STEPS), task(by_patches, STEPS)
    sgd, entropic = programs.sgd(), programs.entropy(loop)
    streaming = programs.entropy(loop, streaming=True)
    return [
        partial(programs.scan, "SGD, a call for each gradient", sgd, one),
        partial(programs.scan, "Entropy-SGD, streaming, likewise", streaming, one),
        partial(programs.scan, "SGD, scanned", sgd, loop),
        partial(programs.loops, "Entropy-SGD, scan mode", entropic, loop),
        partial(programs.scan, "SGD, scanned, by patches", sgd, patches),
        partial(programs.loops, "Entropy-SGD, scan mode, by patches", entropic, patches),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="of timing (default 30)")
    seconds = parser.parse_args().seconds
    title = f"two convolutions of {CHANNELS} channels, batch {BATCH}"
    log = RESULTS / jax.default_backend() / "convolutions.json"
    measure(log, {title: lambda: interleave(makers(), seconds, title)}, again=True)
    report.write(log, report.programs)


if __name__ == "__main__":
    main()
