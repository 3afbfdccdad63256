"""MNIST or Fashion-MNIST with a fully connected network, 784-1024-1024-10 (the paper's mnistfc)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.data.images import read_mnist
from experiments.harness.evaluation import Model
from experiments.harness.networks import dropout, pure, split, torch_uniform
from experiments.harness.settings import Settings
from experiments.io.dataset import Dataset
from experiments.workloads import Request, Workload, for_each_optimizer

WIDTH = 1024  # text
VALIDATION = 10_000  # ours: the last images of the training set
GREY = 126  # text: pixels become (x − 126) / 126

PAPER = {
    "effective_epochs": 100.0,  # text: 5 epochs of L = 20; its table says 120
    "batch_size": 128,  # code, of Entropy-SGD; its Adam has 256
    "dropout": 0.15,  # text; code 0.5
}
ENTROPY = {
    "inner_steps": 20,  # text: L
    "learning_rate": 1.0,  # text: η
    "momentum": 0.0,  # code; text has Nesterov's outside too
    "schedule": "step",
    "drop_at": (0.4,),  # text: after epoch 2 of 5
    "drop_by": 10.0,  # text
    "inner_learning_rate": 0.1,  # text: η′
    "inner_momentum": 0.9,  # text
    "scope": 1e-4,  # text: γ₀
    "scope_growth": 1e-3,  # text: γ₁
    "noise_scale": 1e-3,  # text: ε; the authors' mail and code 1e-4
    "averaging": 0.75,  # text: α; code 0.25
}
ADAM = {
    "learning_rate": 1e-3,  # text
    "schedule": "step",
    "drop_at": (0.3, 0.6, 0.9),  # text: every 30 of 100 epochs
    "drop_by": 5.0,  # text
    "dropout": 0.5,  # text
}


def load(request: Request) -> tuple[Dataset, int]:
    """60,000 images to train on and 10,000 to test on; neither shuffled nor augmented."""
    validation = 0 if request.validation is None else request.validation or VALIDATION
    dataset = read_mnist(request.directory or ".", validation)

    def scale(images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) - GREY) / GREY

    return Dataset(
        scale(dataset.train_inputs),
        dataset.train_labels.astype(np.int32),
        scale(dataset.test_inputs),
        dataset.test_labels.astype(np.int32),
    ), 10


class Network(nnx.Module):
    """Two hidden layers with ReLU, and dropout after each."""

    def __init__(self, inputs: int, width: int, classes: int, rate: float, rngs: nnx.Rngs):
        """Torch's initial weights, since the authors' code is in Torch."""
        init = {"kernel_init": torch_uniform, "rngs": rngs}
        self.first = nnx.Linear(inputs, width, **init)
        self.second = nnx.Linear(width, width, **init)
        self.last = nnx.Linear(width, classes, **init)
        self.rate = rate

    def __call__(self, images: jax.Array, key: Any = None) -> jax.Array:
        """Logits; with a key, dropout."""
        first, second = split(key, 2)
        hidden = nnx.relu(self.first(images.reshape(len(images), -1)))
        hidden = nnx.relu(self.second(dropout(hidden, self.rate, first)))
        return self.last(dropout(hidden, self.rate, second))


def make_model(settings: Settings, dataset: Dataset, classes: int) -> Model:
    """784-1024-1024-10, unless `--width` says otherwise."""
    inputs, width = dataset.train_inputs[0].size, settings.width or WIDTH
    return pure(lambda rngs: Network(inputs, width, classes, settings.dropout, rngs))


WORKLOAD = Workload(
    load,
    make_model,
    for_each_optimizer(
        PAPER,
        entropy_sgd=ENTROPY,
        entropy_adam={**ENTROPY, "learning_rate": 0.01},  # ours
        adam=ADAM,
        # Ours: the best of 24 at 10 effective epochs.
        sgd={"learning_rate": 0.02, "momentum": 0.98},
        sam={"learning_rate": 0.05, "momentum": 0.93, "rho": 0.01},
    ),
    source="mnist",
)
