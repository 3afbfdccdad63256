"""Any text by characters, Tiny Shakespeare as a rule, with a small GPT. Not in the paper: all ours.

Pre-norm blocks with learned positions, and no biases in the attention; 4.8 million weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.data.text import ALL, load_characters, windows
from experiments.harness.evaluation import Model
from experiments.harness.networks import dropout, pure, split
from experiments.harness.settings import Settings
from experiments.io.dataset import Dataset
from experiments.io.errors import InputError
from experiments.workloads import Request, Workload, for_each_optimizer

WIDTH, LAYERS, LENGTH, HEAD = 256, 6, 128, 32
CHUNK = 200  # windows evaluated at once
normal = nnx.initializers.normal(0.02)

COMMON = {
    "effective_epochs": 10.0,
    "batch_size": 64,
    "dropout": 0.1,
    "clip_norm": 1.0,
    "warmup": 0.1,
}
ENTROPY = {"inner_steps": 5, "inner_learning_rate": 0.1, "schedule": "cosine"}


def load(request: Request) -> tuple[Dataset, int]:
    """Of Tiny Shakespeare, a million characters to train on and 56,000 to test on."""
    characters = load_characters(request.directory, request.text, request.held_out(ALL))
    length, context = request.settings.length or LENGTH, request.settings.context
    return windows(characters, length, context, length, context), characters.symbols


class Block(nnx.Module):
    """Attention to what comes before, then two layers for each position by itself."""

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        """Heads of 32, or one where that is too much."""
        init = {"kernel_init": normal, "rngs": rngs}
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.project = nnx.Linear(width, 3 * width, use_bias=False, **init)
        self.combine = nnx.Linear(width, width, use_bias=False, **init)
        self.expand = nnx.Linear(width, 4 * width, **init)
        self.contract = nnx.Linear(4 * width, width, **init)
        self.heads, self.rate = max(1, width // HEAD), rate

    def __call__(self, hidden: jax.Array, key: Any) -> jax.Array:
        """Adds both parts to `hidden`."""
        keys = split(key, 2)
        shape = (*hidden.shape[:2], self.heads, -1)
        parts = jnp.split(self.project(self.norms[0](hidden)), 3, axis=-1)
        seen = jax.nn.dot_product_attention(*(x.reshape(shape) for x in parts), is_causal=True)
        hidden += dropout(self.combine(seen.reshape(hidden.shape)), self.rate, keys[0])
        own = self.contract(nnx.gelu(self.expand(self.norms[1](hidden))))
        return hidden + dropout(own, self.rate, keys[1])


class Network(nnx.Module):
    """Vectors of symbols and positions, blocks, logits."""

    def __init__(
        self, symbols: int, length: int, width: int, layers: int, rate: float, rngs: nnx.Rngs
    ):
        """`length` is the longest input."""
        self.symbols = nnx.Embed(symbols, width, embedding_init=normal, rngs=rngs)
        self.positions = nnx.Embed(length, width, embedding_init=normal, rngs=rngs)
        self.blocks = nnx.List(Block(width, rate, rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, symbols, kernel_init=normal, rngs=rngs)
        self.rate = rate

    def __call__(self, symbols: jax.Array, key: Any = None) -> jax.Array:
        """Logits of the next symbol at each position; with a key, dropout."""
        keys = split(key, len(self.blocks) + 1)
        hidden = self.symbols(symbols) + self.positions(jnp.arange(symbols.shape[1]))
        hidden = dropout(hidden, self.rate, keys[0])
        for block, key in zip(self.blocks, keys[1:], strict=True):
            hidden = block(hidden, key)
        return self.last(self.norm(hidden))


def make_model(settings: Settings, dataset: Dataset, classes: int) -> Model:
    """Six blocks of 256, unless `--layers` and `--width` say otherwise."""
    longest, width = dataset.train_inputs.shape[1], settings.width or WIDTH
    layers = settings.layers or LAYERS
    if width > HEAD and width % HEAD:
        raise InputError(f"--width {width}: up to {HEAD}, or a multiple of it, for heads of {HEAD}")
    return pure(
        lambda rngs: Network(classes, longest, width, layers, settings.dropout, rngs), CHUNK
    )


WORKLOAD = Workload(
    load,
    make_model,
    for_each_optimizer(
        COMMON,
        entropy_sgd={**ENTROPY, "learning_rate": 1.0},
        entropy_adam={**ENTROPY, "learning_rate": 3e-3, "b1": 0.9},
    ),
    source="shakespeare",
    score="nats",
)
