"""Scikit-learn's 8×8 digits with a network 64-64-64-10, and the same on MNIST with 256 units.

The settings are those of `examples/digits.py`. `python -m experiments.train digits` has the digits.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from flax import nnx

from experiments.data.images import load_digits, load_mnist
from experiments.harness.contestants import RECIPES
from experiments.harness.evaluation import Model
from experiments.harness.networks import pure
from experiments.harness.settings import Settings
from experiments.harness.training import Budget, Contestant, make_budget
from experiments.io.dataset import Dataset, split_end
from experiments.io.errors import InputError
from experiments.workloads import Request, Workload, for_each_optimizer

WIDTH = 64  # ours
VALIDATION = 256  # ours
INNER_STEPS = 20  # L: gradient evaluations per update of Entropy-SGD and Entropy-Adam

# Learning rates fall along a cosine from their peak to zero: if there are two loops, the inner
# one's. Keeping the inner momentum between updates trains faster.
ONE_LOOP = {"schedule": "cosine"}
TWO_LOOPS = {"inner_schedule": "cosine", "reset_inner_state": False}

# Each is a recipe in `harness.contestants`, and what is not tuned.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Nesterov SGD": ("sgd", ONE_LOOP),
    "Adam": ("adam", ONE_LOOP),
    "Entropy-SGD": ("entropy_sgd", TWO_LOOPS),
    "Entropy-Adam": ("entropy_adam", TWO_LOOPS),
}


class Task(NamedTuple):
    """What differs between the data sets."""

    hidden: tuple[int, ...]  # widths of the hidden layers
    batch_size: int
    effective_epochs: int
    arguments: dict[str, dict[str, float]]  # of `settings.Settings`


# Chosen by studies/tune_digits.py on parts of the training set, from the same 12 settings of each
# optimizer for both data sets.
SETTINGS = {
    "digits": Task(
        hidden=(WIDTH, WIDTH),
        batch_size=64,
        effective_epochs=100,
        arguments={
            "Nesterov SGD": {"learning_rate": 0.2, "momentum": 0.8},
            "Adam": {"learning_rate": 0.01, "b1": 0.5},
            "Entropy-SGD": {"learning_rate": 1.0, "inner_learning_rate": 0.2, "scope": 0.3},
            "Entropy-Adam": {"learning_rate": 3e-3, "inner_learning_rate": 0.2, "scope": 0.3},
        },
    ),
    "mnist": Task(
        hidden=(256, 256),
        batch_size=128,
        effective_epochs=10,
        arguments={
            "Nesterov SGD": {"learning_rate": 0.05, "momentum": 0.95},
            "Adam": {"learning_rate": 5e-3, "b1": 0.5},
            "Entropy-SGD": {"learning_rate": 1.0, "inner_learning_rate": 0.1, "scope": 0.3},
            "Entropy-Adam": {"learning_rate": 3e-3, "inner_learning_rate": 0.1, "scope": 0.3},
        },
    ),
}


class Network(nnx.Module):
    """Fully connected layers with ReLU between them."""

    def __init__(self, widths: tuple[int, ...], rngs: nnx.Rngs):
        """From the number of inputs to that of classes."""
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List(nnx.Linear(before, after, rngs=rngs) for before, after in pairs)

    def __call__(self, images: Any, key: Any = None) -> Any:
        """Logits; without dropout there is no use for the key."""
        hidden = images.reshape(len(images), -1)
        for layer in self.layers[:-1]:
            hidden = nnx.relu(layer(hidden))
        return self.layers[-1](hidden)


def make_network(widths: tuple[int, ...]) -> Model:
    """The network as pure functions of its parameters, which are all that an optimizer sees."""
    return pure(lambda rngs: Network(widths, rngs))


def make_contestant(name: str, budget: Budget, arguments: dict[str, float]) -> Contestant:
    """One of OPTIMIZERS with its own arguments."""
    recipe, fixed = OPTIMIZERS[name]
    return RECIPES[recipe](Settings(inner_steps=budget.inner_steps, **fixed, **arguments), budget)


def load_set(name: str, directory: str | None) -> Dataset:
    """One of SETTINGS; `directory` has the files of MNIST."""
    if name == "digits":
        return load_digits()
    if directory is None:
        raise InputError("--dataset mnist needs --data-dir, the folder of the four MNIST files")
    return load_mnist(directory)


def prepare(
    name: str,
    dataset: Dataset,
    effective_epochs: int | None = None,
    batch_size: int | None = None,
) -> tuple[Budget, Model]:
    """What every optimizer may spend, and the network it trains."""
    task = SETTINGS[name]
    budget = make_budget(
        examples=len(dataset.train_labels),
        effective_epochs=effective_epochs or task.effective_epochs,
        batch_size=batch_size or task.batch_size,
        inner_steps=INNER_STEPS,
    )
    return budget, make_network((dataset.train_inputs[0].size, *task.hidden, 10))


def load(request: Request) -> tuple[Dataset, int]:
    """1,280 images to train on and 517 to test on."""
    dataset = load_digits()
    if validation := request.held_out(VALIDATION):
        dataset = split_end(dataset.train_inputs, dataset.train_labels, validation)
    return dataset, 10


def make_model(settings: Settings, dataset: Dataset, classes: int) -> Model:
    """Two hidden layers."""
    width = settings.width or WIDTH
    return make_network((dataset.train_inputs[0].size, width, width, classes))


usual = SETTINGS["digits"]
WORKLOAD = Workload(
    load,
    make_model,
    for_each_optimizer(
        TWO_LOOPS | {"effective_epochs": usual.effective_epochs, "batch_size": usual.batch_size},
        sgld={"inner_schedule": "constant"},  # it has one loop
        **{recipe: usual.arguments[name] for name, (recipe, _) in OPTIMIZERS.items()},
    ),
)
