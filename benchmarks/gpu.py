"""What a Langevin step costs on a GPU: real networks, and the step alone against the copy ceiling.

    python benchmarks/gpu.py             # ResNet-18 and GPT-2 small in bfloat16, minutes on one GPU
    python benchmarks/gpu.py --tiny      # the same programs, small enough for a CPU

Prints the tables, and writes them to benchmarks/results/BACKEND/networks.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from rich.console import Console

import programs
from entropy_sgd_jax import entropy_sgd
from programs import Task
from speed import ENTROPY, RESULTS, print_table
from timing import environment, interleave

STEPS = 10  # L, and the gradients per program


class Size(NamedTuple):
    """How large the networks, the batches and the arrays are."""

    width: int  # of ResNet's first stage
    images: int  # batch
    pixels: int
    embedding: int
    layers: int
    vocabulary: int
    texts: int  # batch
    tokens: int
    elements: int  # of the arrays of the bandwidth test


FULL = Size(64, 256, 32, 768, 12, 50257, 16, 1024, 2**27)
TINY = Size(8, 4, 16, 32, 2, 100, 2, 16, 2**16)


class Block(nnx.Module):
    """Two 3×3 convolutions with group normalisation, and the shortcut around them."""

    def __init__(self, before: int, after: int, stride: int, *, rngs: nnx.Rngs) -> None:
        conv = dict(kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.first = nnx.Conv(before, after, strides=stride, **conv)
        self.second = nnx.Conv(after, after, **conv)
        self.norms = nnx.List([nnx.GroupNorm(after, num_groups=8, rngs=rngs) for _ in range(2)])
        self.shortcut = nnx.Conv(before, after, (1, 1), strides=stride, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norms[0](self.first(x)))
        return nnx.relu(self.shortcut(x) + self.norms[1](self.second(y)))


class ResNet(nnx.Module):
    """ResNet-18's stages for small images, 11 million parameters at width 64."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs) -> None:
        widths = [size.width * 2**stage for stage in (0, 0, 0, 1, 1, 2, 2, 3, 3)]
        self.stem = nnx.Conv(3, size.width, (3, 3), use_bias=False, rngs=rngs)
        pairs = itertools.pairwise(widths)
        self.blocks = nnx.List([Block(a, b, 1 if a == b else 2, rngs=rngs) for a, b in pairs])
        self.head = nnx.Linear(widths[-1], 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Layer(nnx.Module):
    """A pre-normalised transformer layer with causal attention."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs) -> None:
        n = size.embedding
        self.norms = nnx.List([nnx.LayerNorm(n, rngs=rngs) for _ in range(2)])
        self.attention_in = nnx.Linear(n, 3 * n, rngs=rngs)
        self.attention_out = nnx.Linear(n, n, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(n, 4 * n, rngs=rngs), nnx.Linear(4 * n, n, rngs=rngs)
        self.heads = max(1, n // 64)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, n = x.shape
        parts = self.attention_in(self.norms[0](x)).reshape(batch, length, 3, self.heads, -1)
        mixed = jax.nn.dot_product_attention(
            parts[:, :, 0], parts[:, :, 1], parts[:, :, 2], is_causal=True
        )
        x = x + self.attention_out(mixed.reshape(batch, length, n))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class GPT(nnx.Module):
    """GPT-2 small: 124 million parameters, its output tied to its embedding."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(size.vocabulary, size.embedding, rngs=rngs)
        self.positions = nnx.Embed(size.tokens, size.embedding, rngs=rngs)
        self.layers = nnx.List([Layer(size, rngs=rngs) for _ in range(size.layers)])
        self.norm = nnx.LayerNorm(size.embedding, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        x = self.tokens(text) + self.positions(jnp.arange(text.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.tokens.attend(self.norm(x))


def network_task(network: nnx.Module, inputs: jax.Array, labels: jax.Array) -> Task:
    """The network in bfloat16 on stacked batches, cross-entropy in float32."""
    graphdef, params = nnx.split(network)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = nnx.merge(graphdef, params)(batch[0]).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return Task(jax.grad(loss), params, (inputs[None], labels[None]), 1, STEPS)


def resnet_task(size: Size) -> Task:
    key = jax.random.key(0)
    shape = (STEPS, size.images, size.pixels, size.pixels, 3)
    images = jax.random.normal(key, shape, jnp.bfloat16)
    labels = jax.random.randint(key, shape[:2], 0, 10)
    return network_task(ResNet(size, rngs=nnx.Rngs(0)), images, labels)


def gpt_task(size: Size) -> Task:
    shape = (STEPS, size.texts, size.tokens)
    text = jax.random.randint(jax.random.key(0), shape, 0, size.vocabulary)
    return network_task(GPT(size, rngs=nnx.Rngs(0)), text, jnp.roll(text, -1, axis=-1))


def sgd_with_wide_accumulator(task: Task) -> programs.Program:
    """SGD with Nesterov momentum kept in float32, as the Langevin loop keeps its own."""
    rate = optax.scale_by_learning_rate(programs.LEARNING_RATE)
    trace = optax.trace(programs.MOMENTUM, nesterov=True, accumulator_dtype=jnp.float32)
    return programs.optax_scan("SGD", optax.chain(trace, rate), task)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument("--seconds", type=float, default=60, help="per network (default 60)")
    options = parser.parse_args()
    size = TINY if options.tiny else FULL
    console = Console(width=170)
    console.print(environment())

    ceiling = copy_bandwidth(size.elements)
    console.print(f"copy: {ceiling / 1e9:.1f} GB/s")
    bandwidth = {"copy": ceiling}
    for name, chosen in ENTROPY.items():
        bandwidth[name] = step_bandwidth(size.elements, **chosen)
        share = bandwidth[name] / ceiling
        console.print(f"{name}: {bandwidth[name] / 1e9:.1f} GB/s, {share:.0%} of the copy's")

    results = {}
    for name, make_task in {"ResNet-18": resnet_task, "GPT-2 small": gpt_task}.items():
        task = make_task(size)
        count = sum(leaf.size for leaf in jax.tree.leaves(task.params))
        timed = [partial(sgd_with_wide_accumulator, task)]
        timed += [partial(programs.entropy, n, task, **chosen) for n, chosen in ENTROPY.items()]
        results[name] = interleave(timed, options.seconds, name)
        print_table(f"{name}, {count / 1e6:.1f} M parameters, bfloat16", results[name], console)
    save(results, bandwidth, options.tiny)


def save(results: dict[str, Any], bandwidth: dict[str, float], tiny: bool) -> None:
    folder: pathlib.Path = RESULTS / jax.default_backend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("networks_tiny.json" if tiny else "networks.json")
    rows = {name: [m._asdict() for m in measured] for name, measured in results.items()}
    content = {"environment": environment(), "bytes_per_second": bandwidth, "results": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"data: {path}")


if __name__ == "__main__":
    main()
