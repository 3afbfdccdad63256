"""Entropy-SGD and Entropy-Adam against SGD and Adam, at the same number of gradient evaluations.

    python examples/digits.py
    python examples/digits.py --dataset mnist --data-dir DIR

The first trains on scikit-learn's 8×8 digits in about a minute on two CPU cores, the second on
MNIST. Networks and settings are in `experiments/workloads/digits.py`. For a loop to copy see
`minimal.py`; `python -m experiments.train` trains larger networks.
"""

from __future__ import annotations

import argparse

from experiments.io.errors import OneLineParser, one_line_errors

with one_line_errors("digits.py"):
    from rich.console import Console

    from experiments.harness import report
    from experiments.harness.settings import positive
    from experiments.workloads import digits


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(prog="digits.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=digits.SETTINGS, default="digits")
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


def main() -> None:
    options = parse_arguments()
    figure = report.figure_path(options.out or f"{options.dataset}.png")
    dataset = digits.load_set(options.dataset, options.data_dir)
    budget, model = digits.prepare(
        options.dataset, dataset, options.effective_epochs, options.batch_size
    )
    contestants = {
        name: digits.make_contestant(name, budget, arguments)
        for name, arguments in digits.SETTINGS[options.dataset].arguments.items()
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
