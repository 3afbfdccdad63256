"""MNIST or Fashion-MNIST with LeNet and BatchNorm: conv20-conv50-fc500."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from experiments.harness.evaluation import Model
from experiments.harness.networks import Conv, dropout, max_pool, pure, split, torch_uniform
from experiments.harness.settings import Settings
from experiments.io.dataset import Dataset
from experiments.workloads import Workload, for_each_optimizer
from experiments.workloads.mnistfc import ADAM, ENTROPY, PAPER, load

CHUNK = 100  # images evaluated at once; three times as fast on a CPU as 2,000, by its cache
WIDTH = 20  # text: channels of the first convolution; then 50 channels and 500 units


class Network(nnx.Module):
    """Convolution 5×5, pool 3, convolution 5×5, pool 2, 500 units (text); BatchNorm after each."""

    def __init__(self, width: int, classes: int, rate: float, rngs: nnx.Rngs):
        """`width` and its 2½ and 25 fold; `rate` of dropout."""
        second, units = 5 * width // 2, 25 * width
        init = {"kernel_init": torch_uniform, "rngs": rngs}
        self.conv1 = Conv(1, width, (5, 5), padding="VALID", **init)
        self.norm1 = nnx.BatchNorm(width, rngs=rngs)
        self.conv2 = Conv(width, second, (5, 5), padding="VALID", **init)
        self.norm2 = nnx.BatchNorm(second, rngs=rngs)
        self.dense = nnx.Linear(4 * second, units, **init)
        self.norm3 = nnx.BatchNorm(units, rngs=rngs)
        self.last = nnx.Linear(units, classes, **init)
        self.rate = rate

    def __call__(self, images: jax.Array, key: Any = None) -> jax.Array:
        """Logits; with a key, dropout after each pool and the dense layer."""
        keys = split(key, 3)
        hidden = max_pool(self.conv1(images[..., None]), 3)  # 28 → 24 → 8
        hidden = dropout(nnx.relu(self.norm1(hidden)), self.rate, keys[0])
        hidden = max_pool(self.conv2(hidden), 2)  # 8 → 4 → 2
        hidden = dropout(nnx.relu(self.norm2(hidden)), self.rate, keys[1])
        hidden = nnx.relu(self.norm3(self.dense(hidden.reshape(len(hidden), -1))))
        return self.last(dropout(hidden, self.rate, keys[2]))


def make_model(settings: Settings, dataset: Dataset, classes: int) -> Model:
    """131,000 weights at the usual width."""
    width = settings.width or WIDTH
    return pure(lambda rngs: Network(width, classes, settings.dropout, rngs), CHUNK)


WORKLOAD = Workload(
    load,
    make_model,
    for_each_optimizer(
        {**PAPER, "dropout": 0.25},  # text: dropout; all else as for mnistfc
        entropy_sgd=ENTROPY,
        entropy_adam={**ENTROPY, "learning_rate": 0.01},  # ours
        adam=ADAM,
    ),
    source="mnist",
    one_by_one=True,  # 2.6 times as fast on a CPU, whose cache holds the patches of one seed
)
