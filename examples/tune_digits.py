"""Chooses the settings in digits.py: 12 per optimizer, judged on a part of the training set.

    python examples/tune_digits.py
    python examples/tune_digits.py --dataset mnist --data-dir DIR

Each setting trains for the default budget on the first four fifths of the training set. The
lowest error on the last fifth wins, and the lower training loss among equals. The test set takes
no part.
"""

from __future__ import annotations

import itertools

from errors import one_line_errors

with one_line_errors("tune_digits.py"):
    import digits
    import report
    from datasets import hold_out
    from training import make_budget, train

GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "Nesterov SGD": {"learning_rate": (0.01, 0.02, 0.05, 0.1), "momentum": (0.9, 0.95, 0.98)},
    "Adam": {"learning_rate": (3e-3, 0.01, 0.02, 0.03), "b1": (0.8, 0.9, 0.95)},
    "Entropy-SGD": {
        "learning_rate": (1.0,),
        "inner_learning_rate": (0.1, 0.2, 0.3, 0.5),
        "scope": (0.3, 1.0, 3.0),
    },
    "Entropy-Adam": {
        "learning_rate": (3e-3, 0.01, 0.03),
        "inner_learning_rate": (0.1, 0.3),
        "scope": (0.3, 1.0),
    },
}


def main() -> None:
    options = digits.parse_arguments("tune_digits.py")
    settings = digits.SETTINGS[options.dataset]
    dataset = hold_out(digits.load(options))
    budget = make_budget(
        examples=len(dataset.train_labels),
        effective_epochs=options.effective_epochs or settings.effective_epochs,
        batch_size=options.batch_size or settings.batch_size,
        inner_steps=digits.INNER_STEPS,
    )
    model = digits.make_model((dataset.train_images[0].size, *settings.hidden, 10))
    for name, grid in GRIDS.items():
        for values in itertools.product(*grid.values()):
            arguments = dict(zip(grid, values, strict=True))
            contestant = digits.OPTIMIZERS[name](budget, **arguments)
            curves = report.collect(name, train(contestant, model, dataset, budget, options.seeds))
            error, loss = curves.test_error[-1], curves.train_loss[-1]
            spread = report.standard_error(error)
            print(f"{name} {arguments}: {error.mean():.2f} ± {spread:.2f} %, {loss.mean():.2e}")


if __name__ == "__main__":
    with one_line_errors("tune_digits.py"):
        main()
