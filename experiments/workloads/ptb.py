"""The Penn Treebank by words, with two LSTM layers of 1,500 units: about 66 million weights.

The authors carry the LSTM's state from one batch to the next; here a window starts from zeros,
after `--context` words that bring no loss. Test windows are longer, so that few words lack context.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import nnx

from experiments.data.text import load_ptb, windows
from experiments.harness.evaluation import Model
from experiments.harness.networks import LSTM, dropout, pure, split
from experiments.harness.settings import Settings
from experiments.io.dataset import Dataset
from experiments.workloads import Request, Workload, for_each_optimizer

WIDTH, LAYERS = 1500, 2  # text
LENGTH = 35  # text: words per training window
TEST_LENGTH, TEST_CONTEXT = 100, 100  # ours
ALL_WORDS = 1 << 30
CHUNK = 20  # windows evaluated at once: 100 words with 10,000 logits each
uniform = functools.partial(jax.random.uniform, minval=-0.04, maxval=0.04)  # code: ±0.04

PAPER = {
    "effective_epochs": 25.0,  # text: 5 epochs of L = 5
    "batch_size": 20,  # code
    "dropout": 0.65,  # code
    "clip_norm": 5.0,  # code
}
ENTROPY = {
    "inner_steps": 5,  # text: L
    "learning_rate": 1.0,  # text: η
    "momentum": 0.0,  # code; text has Nesterov's outside too
    "schedule": "step",
    "drop_at": (0.6, 0.8),  # text: after each epoch from the third of 5
    "drop_by": 10.0,  # text
    "inner_learning_rate": 1.0,  # text: η′
    "inner_momentum": 0.5,  # text
    "scope": 1e-3,  # text: γ, without growth
    "noise_scale": 1e-4,  # text: ε
    "averaging": 0.75,  # text: α; code 0.25
}
SGD = {
    "effective_epochs": 55.0,  # text
    "learning_rate": 1.0,  # text: Zaremba's recipe
    "momentum": 0.0,  # text
    "schedule": "step",
    "drop_at": tuple(epoch / 55 for epoch in range(14, 55)),  # text: each epoch from the 14th
    "drop_by": 1.15,  # text
}


def load(request: Request) -> tuple[Dataset, int]:
    """930,000 words to train on and 82,000 to test on; the validation file has 74,000."""
    validation = 0 if request.validation is None else request.validation or ALL_WORDS
    words = load_ptb(request.directory or ".", validation)
    length, context = request.settings.length or LENGTH, request.settings.context
    return windows(words, length, context, TEST_LENGTH, TEST_CONTEXT), words.symbols


class Network(nnx.Module):
    """Word vectors, LSTM layers, logits; dropout between them all."""

    def __init__(
        self, symbols: int, width: int, layers: int, rate: float, init: Any, rngs: nnx.Rngs
    ):
        """All weights are drawn from `init`; biases start at zero, which is ours."""
        self.embedding = nnx.Embed(symbols, width, embedding_init=init, rngs=rngs)
        self.layers = nnx.List(LSTM(width, width, init, rngs) for _ in range(layers))
        self.last = nnx.Linear(width, symbols, kernel_init=init, rngs=rngs)
        self.rate = rate

    def __call__(self, symbols: jax.Array, key: Any = None) -> jax.Array:
        """Logits of the next symbol at each position; with a key, dropout."""
        keys = split(key, len(self.layers) + 1)
        hidden = dropout(self.embedding(symbols), self.rate, keys[0])
        for layer, key in zip(self.layers, keys[1:], strict=True):
            hidden = dropout(layer(hidden), self.rate, key)
        return self.last(hidden)


def make_model(settings: Settings, dataset: Dataset, classes: int) -> Model:
    """Two layers of 1,500, unless `--layers` and `--width` say otherwise."""
    width, layers = settings.width or WIDTH, settings.layers or LAYERS
    return pure(
        lambda rngs: Network(classes, width, layers, settings.dropout, uniform, rngs), CHUNK
    )


WORKLOAD = Workload(
    load,
    make_model,
    for_each_optimizer(
        PAPER,
        entropy_sgd=ENTROPY,
        entropy_adam={**ENTROPY, "learning_rate": 0.01},  # ours
        sgd=SGD,
        sam={"learning_rate": 1.0, "momentum": 0.0},  # ours
        parle={"inner_learning_rate": 1.0},  # ours
    ),
    source="ptb",
    score="perplexity",
    one_by_one=True,
)
