"""Entropy-SGD and Entropy-Adam beside SGD and Adam, at the same number of gradient evaluations.

    python examples/digits.py
    python examples/digits.py --dataset mnist --data-dir DIR

The first trains on scikit-learn's 8×8 digits in about a minute on two CPU cores, the second on
MNIST. To use the library in your own loop, compare `optax_round` with `entropy_round` in
`contestants.py`, then `sgd` with `entropic_sgd`. `train.py` trains larger networks.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any, NamedTuple

from experiments.io.errors import InputError, OneLineParser, one_line_errors

with one_line_errors("digits.py"):
    from flax import nnx
    from rich.console import Console

    import report
    from contestants import RECIPES
    from evaluation import Model
    from experiments.data.images import load_digits, load_mnist
    from experiments.io.dataset import Dataset
    from networks import pure
    from settings import Settings, positive
    from training import Budget, Contestant, make_budget

INNER_STEPS = 20  # L: gradient evaluations per update of Entropy-SGD and Entropy-Adam

# Learning rates fall along a cosine from their peak to zero: where there are two loops, the inner
# one's. Keeping the inner momentum between updates trains faster.
ONE_LOOP = {"schedule": "cosine"}
TWO_LOOPS = {"inner_schedule": "cosine", "reset_inner_state": False}

# Each is a recipe in `contestants.py`, and what is not tuned.
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


# Chosen by tune_digits.py on parts of the training set, from the same 12 settings of each optimizer
# for both data sets.
SETTINGS = {
    "digits": Task(
        hidden=(64, 64),
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


def make_model(widths: tuple[int, ...]) -> Model:
    """The network as pure functions of its parameters, which are all that an optimizer sees."""
    return pure(lambda rngs: Network(widths, rngs))


def make_contestant(name: str, budget: Budget, arguments: dict[str, float]) -> Contestant:
    """One of OPTIMIZERS with its own arguments."""
    recipe, fixed = OPTIMIZERS[name]
    return RECIPES[recipe](Settings(inner_steps=budget.inner_steps, **fixed, **arguments), budget)


def parse_arguments(program: str = "digits.py") -> argparse.Namespace:
    parser = OneLineParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=SETTINGS, default="digits")
    parser.add_argument("--data-dir", help="folder of the four MNIST files, plain or .gz")
    parser.add_argument("--seeds", type=positive, default=10, help="trained together (default 10)")
    parser.add_argument(
        "--effective-epochs",
        type=positive,
        help="gradient evaluations times batch size over training images, the same for all four "
        "(default 100 for digits, 10 for mnist)",
    )
    parser.add_argument("--batch-size", type=positive, help="default 64 for digits, 128 for mnist")
    parser.add_argument("--out", help="the figure (default digits.png or mnist.png)")
    return parser.parse_args()


def load(options: argparse.Namespace) -> Dataset:
    if options.dataset == "digits":
        return load_digits()
    if options.data_dir is None:
        raise InputError("--dataset mnist needs --data-dir, the folder of the four MNIST files")
    return load_mnist(options.data_dir)


def prepare(options: argparse.Namespace, dataset: Dataset) -> tuple[Budget, Model]:
    """What every optimizer may spend, and the network it trains."""
    settings = SETTINGS[options.dataset]
    budget = make_budget(
        examples=len(dataset.train_labels),
        effective_epochs=options.effective_epochs or settings.effective_epochs,
        batch_size=options.batch_size or settings.batch_size,
        inner_steps=INNER_STEPS,
    )
    return budget, make_model((dataset.train_inputs[0].size, *settings.hidden, 10))


def main() -> None:
    options = parse_arguments()
    figure = report.figure_path(options.out or f"{options.dataset}.png")
    dataset = load(options)
    budget, model = prepare(options, dataset)
    arguments = SETTINGS[options.dataset].arguments
    contestants = {name: make_contestant(name, budget, arguments[name]) for name in OPTIMIZERS}

    console = Console()
    curves = report.train_all(contestants, model, dataset, budget, options.seeds, console)
    title = f"{options.dataset}, {budget.gradient_evaluations:,} gradient evaluations per seed"
    console.print(report.results_table(curves, title))
    report.save_figure(curves, title, figure)
    console.print(f"Curves: {figure}", soft_wrap=True)


if __name__ == "__main__":
    with one_line_errors("digits.py"):
        main()
