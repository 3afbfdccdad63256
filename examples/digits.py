"""Entropy-SGD and Entropy-Adam beside SGD and Adam, at the same number of gradient evaluations.

    python examples/digits.py
    python examples/digits.py --dataset mnist --data-dir DIR

The first trains on scikit-learn's 8×8 digits in about a minute on two CPU cores, the second on
MNIST. To use the library in your own loop, compare `optax_round` with `entropy_round`, then
`sgd` with `entropic`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from errors import InputError, OneLineParser, one_line_errors

with one_line_errors("digits.py"):
    import jax
    import optax
    from flax import nnx
    from rich.console import Console

    import report
    from datasets import Dataset, load_digits, load_mnist
    from entropy_sgd_jax import entropy_adam, entropy_sgd
    from training import Budget, Contestant, Model, make_budget

INNER_STEPS = 20  # L: gradient evaluations per update of Entropy-SGD and Entropy-Adam


# Two ways to spend the same L gradient evaluations, one on each of L mini-batches.


def optax_round(optimizer: Any, grad_fn: Any, params: Any, state: Any, batches: Any) -> Any:
    """L updates, one after each gradient."""

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        grads = grad_fn(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), batches)
    return params, state


def entropy_round(optimizer: Any, grad_fn: Any, params: Any, state: Any, batches: Any) -> Any:
    """One update, which evaluates all L gradients inside."""
    updates, state = optimizer.update(None, state, params, grad_fn=grad_fn, batches=batches)
    return optax.apply_updates(params, updates), state


# The four optimizers. Every learning rate falls along a cosine from its peak to zero.


def sgd(budget: Budget, learning_rate: float, momentum: float) -> Contestant:
    schedule = optax.cosine_decay_schedule(learning_rate, budget.gradient_evaluations)
    return Contestant(optax.sgd(schedule, momentum, nesterov=True), optax_round)


def adam(budget: Budget, learning_rate: float, b1: float) -> Contestant:
    schedule = optax.cosine_decay_schedule(learning_rate, budget.gradient_evaluations)
    return Contestant(optax.adam(schedule, b1), optax_round)


def entropic(
    make_optimizer: Callable[..., optax.GradientTransformationExtraArgs],
    budget: Budget,
    learning_rate: float,
    inner_learning_rate: float,
    scope: float,
) -> Contestant:
    optimizer = make_optimizer(
        # The outer schedule counts updates, the inner one gradient evaluations.
        learning_rate=optax.cosine_decay_schedule(learning_rate, budget.rounds),
        inner_learning_rate=optax.cosine_decay_schedule(
            inner_learning_rate, budget.gradient_evaluations
        ),
        inner_steps=budget.inner_steps,
        scope=scope,
        reset_inner_state=False,  # keeps the inner momentum between updates: trains faster
    )
    return Contestant(optimizer, entropy_round)


OPTIMIZERS: dict[str, Callable[..., Contestant]] = {
    "Nesterov SGD": sgd,
    "Adam": adam,
    "Entropy-SGD": functools.partial(entropic, entropy_sgd),
    "Entropy-Adam": functools.partial(entropic, entropy_adam),
}


class Settings(NamedTuple):
    """What differs between the data sets."""

    hidden: tuple[int, ...]  # widths of the hidden layers
    batch_size: int
    effective_epochs: int
    arguments: dict[str, dict[str, float]]  # of the functions in OPTIMIZERS


# Chosen by tune_digits.py on parts of the training set, from 12 settings of each optimizer; the 12
# are the same for both data sets.
SETTINGS = {
    "digits": Settings(
        hidden=(64, 64),
        batch_size=64,
        effective_epochs=100,
        arguments={
            "Nesterov SGD": {"learning_rate": 0.1, "momentum": 0.9},
            "Adam": {"learning_rate": 0.01, "b1": 0.8},
            "Entropy-SGD": {"learning_rate": 1.0, "inner_learning_rate": 0.2, "scope": 0.3},
            "Entropy-Adam": {"learning_rate": 0.01, "inner_learning_rate": 0.3, "scope": 1.0},
        },
    ),
    "mnist": Settings(
        hidden=(256, 256),
        batch_size=128,
        effective_epochs=10,
        arguments={
            "Nesterov SGD": {"learning_rate": 0.05, "momentum": 0.95},
            "Adam": {"learning_rate": 3e-3, "b1": 0.9},
            "Entropy-SGD": {"learning_rate": 1.0, "inner_learning_rate": 0.1, "scope": 0.3},
            "Entropy-Adam": {"learning_rate": 0.01, "inner_learning_rate": 0.1, "scope": 1.0},
        },
    ),
}


def make_network(widths: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
    """Fully connected layers with ReLU between them."""
    layers: list[Any] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nnx.Linear(inputs, outputs, rngs=rngs), nnx.relu]
    return nnx.Sequential(*layers[:-1])


def make_model(widths: tuple[int, ...]) -> Model:
    """The network as pure functions of its parameters, which are all that an optimizer sees."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_network(widths, nnx.Rngs(0))))

    def logits(params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(images.reshape(len(images), -1))

    return Model(init=lambda key: nnx.state(make_network(widths, nnx.Rngs(key))), logits=logits)


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


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given, a whole number of at least 1 expected")
    return int(text)


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
    return budget, make_model((dataset.train_images[0].size, *settings.hidden, 10))


def main() -> None:
    options = parse_arguments()
    figure = report.figure_path(options.out or f"{options.dataset}.png")
    dataset = load(options)
    budget, model = prepare(options, dataset)
    contestants = {
        name: make_contestant(budget, **SETTINGS[options.dataset].arguments[name])
        for name, make_contestant in OPTIMIZERS.items()
    }

    console = Console()
    curves = report.train_all(contestants, model, dataset, budget, options.seeds, console)
    title = f"{options.dataset}, {budget.gradient_evaluations:,} gradient evaluations per seed"
    console.print(report.results_table(curves, title))
    report.save_figure(curves, title, figure)
    console.print(f"Curves: {figure}", soft_wrap=True)


if __name__ == "__main__":
    with one_line_errors("digits.py"):
        main()
