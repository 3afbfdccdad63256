"""Chooses the settings in digits.py: 12 of each optimizer, judged on parts of the training set.

    python examples/tune_digits.py --seeds 5
    python examples/tune_digits.py --seeds 1 --effective-epochs 5 --dataset mnist --data-dir DIR

These two commands chose them. Each setting trains on four fifths of the training set. The lowest
mean error on the last fifth wins, and the lower training loss among equals; for digits, each fifth
is the last one in turn. The test set takes no part. Two earlier rounds of as many settings of each
optimizer, on digits, set the ranges below. MNIST was given the same grids: there every winner has
its learning rate at an edge, so that none of them is tuned to its best.
"""

from __future__ import annotations

import argparse
import itertools

from experiments.io.errors import one_line_errors

with one_line_errors("tune_digits.py"):
    import numpy as np

    import digits
    import report
    from experiments.io.dataset import Dataset, hold_out
    from training import Measurement, train

GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "Nesterov SGD": {"learning_rate": (0.05, 0.1, 0.2, 0.4), "momentum": (0.8, 0.9, 0.95)},
    "Adam": {"learning_rate": (5e-3, 0.01, 0.02), "b1": (0.5, 0.7, 0.8, 0.9)},
    "Entropy-SGD": {
        "learning_rate": (1.0,),
        "momentum": (0.0, 0.5),
        "inner_learning_rate": (0.1, 0.2, 0.3),
        "scope": (0.3, 1.0),
    },
    "Entropy-Adam": {
        "learning_rate": (3e-3, 0.01),
        "inner_learning_rate": (0.1, 0.2, 0.4),
        "scope": (0.3, 1.0),
    },
}
FOLDS = {"digits": range(5), "mnist": range(1)}


def main() -> None:
    options = digits.parse_arguments("tune_digits.py")
    dataset = digits.load(options)
    folds = [hold_out(dataset, fold) for fold in FOLDS[options.dataset]]
    for name, grid in GRIDS.items():
        for values in itertools.product(*grid.values()):
            arguments = dict(zip(grid, values, strict=True))
            ends = [final_measurement(name, arguments, fold, options) for fold in folds]
            error = np.mean([end.test_error for end in ends], axis=0)
            loss = np.mean([end.train_loss for end in ends])
            print(f"{name} {arguments}: {report.mean_and_spread(error, '.3f')} %, {loss:.2e}")


def final_measurement(
    name: str, arguments: dict[str, float], dataset: Dataset, options: argparse.Namespace
) -> Measurement:
    budget, model = digits.prepare(options, dataset)
    contestant = digits.make_contestant(name, budget, arguments)
    *_, last = train(contestant, model, dataset, budget, options.seeds)
    return last


if __name__ == "__main__":
    with one_line_errors("tune_digits.py"):
        main()
