"""Chooses the settings of `examples/digits.py`: 12 for each optimizer, without the test set.

    python -m experiments.studies.tune_digits --seeds 5
    python -m experiments.studies.tune_digits --seeds 1 --effective-epochs 5 --dataset mnist

These two commands, the second with --data-dir, chose them. Each setting trains on four fifths of
the training set. The lowest mean error on the last fifth wins, and the lower training loss among
equals; for digits, each fifth is the last one in turn. Two earlier rounds of the same number of
settings of each optimizer, on digits, set the ranges below. MNIST was given the same grids: there
every winner has its learning rate at an edge, so that none of them is tuned to its best.
"""

from __future__ import annotations

import argparse
import itertools

from experiments.io.errors import OneLineParser, one_line_errors

with one_line_errors("tune_digits.py"):
    import numpy as np

    from experiments.harness import report
    from experiments.harness.settings import positive
    from experiments.harness.training import Measurement, train
    from experiments.io.dataset import Dataset, hold_out
    from experiments.workloads import digits

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


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(prog="tune_digits.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=digits.SETTINGS, default="digits")
    parser.add_argument("--data-dir", help="folder of the four MNIST files, plain or .gz")
    parser.add_argument("--seeds", type=positive, default=10, help="trained together (default 10)")
    parser.add_argument("--effective-epochs", type=positive, help="default 100, on mnist 10")
    parser.add_argument("--batch-size", type=positive, help="default 64, on mnist 128")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    dataset = digits.load_set(options.dataset, options.data_dir)
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
    budget, model = digits.prepare(
        options.dataset, dataset, options.effective_epochs, options.batch_size
    )
    contestant = digits.make_contestant(name, budget, arguments)
    *_, last = train(contestant, model, dataset, budget, options.seeds)
    return last


if __name__ == "__main__":
    with one_line_errors("tune_digits.py"):
        main()
