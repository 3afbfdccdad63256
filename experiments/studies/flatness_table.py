"""How wide the valleys are in which SGD, Adam, SAM, Entropy-SGD and Parle end, side by side.

    python -m experiments.studies.flatness_table

Each trains a network of 8,970 weights on scikit-learn's 8×8 digits, from the same starts and with
the same number of gradient evaluations. A table compares the Hessians at the ends, and a figure how
the training error grows as the weights are perturbed. Minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

from experiments.io.errors import OneLineParser, one_line_errors

with one_line_errors("flatness_table.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from entropy_sgd_jax import flatness
    from experiments.data.images import load_digits
    from experiments.harness import contestants
    from experiments.harness.evaluation import Model
    from experiments.harness.report import figure_path, mean_and_spread
    from experiments.harness.settings import Settings, positive
    from experiments.harness.training import Measurement
    from experiments.io.dataset import Dataset
    from experiments.studies.solutions import logits_of, loss_of, stacked_batches, train_to_the_end
    from experiments.workloads import digits

COMMON = Settings(
    effective_epochs=100, batch_size=64, schedule="cosine", inner_schedule="cosine", momentum=0.9
)
# Learning rates of an earlier round of tune_digits.py; SAM has SGD's, and the radius of its paper,
# Parle Entropy-SGD's. Parle's gradients are those of all replicas together.
OPTIMIZERS = {
    "SGD": ("sgd", {"learning_rate": 0.1}),
    "Adam": ("adam", {"learning_rate": 0.01, "b1": 0.8}),
    "SAM": ("sam", {"learning_rate": 0.1, "rho": 0.05}),
    "Entropy-SGD": (
        "entropy_sgd",
        {
            "learning_rate": 1.0,
            "momentum": 0.0,
            "inner_learning_rate": 0.2,
            "scope": 0.3,
            "reset_inner_state": False,
        },
    ),
    "Parle, 3 replicas": (
        "parle",
        {
            "learning_rate": 1.0,
            "momentum": 0.0,
            "inner_learning_rate": 0.2,
            "scope": 0.3,
            "reset_inner_state": False,
            "replicas": 3,
            "coupling": 0.1,
        },
    ),
}
STRENGTHS = np.linspace(0, 0.6, 13)
SHOWN = 6  # the strength in the table: 0.3
EXAMPLES = 1280  # all training images


def train(name: str, model: Model, dataset: Dataset, seeds: int) -> tuple[Any, Measurement]:
    """Parameters and what was measured at the end, of every seed."""
    recipe, arguments = OPTIMIZERS[name]
    settings = Settings(**{**vars(COMMON), **arguments})
    contestant, budget = contestants.prepare(
        recipe, settings, len(dataset.train_labels), measurements=1
    )
    return train_to_the_end(contestant, model, dataset, budget, seeds)


@functools.partial(jax.jit, static_argnums=0)
def measure(model: Model, params: Any, batches: Any) -> dict[str, Any]:
    """The valley around one solution, in numbers."""
    loss = loss_of(model)

    def wrong(params: Any, batch: Any) -> Any:
        return 100 * (logits_of(model, params, batch).argmax(-1) != batch[1]).mean()

    density = flatness.spectral_density(loss, params, batches, num_probes=4, num_steps=60)
    return {
        "largest eigenvalue": flatness.top_eigenvalues(loss, params, batches, 1)[0],
        "trace": flatness.hessian_trace(loss, params, batches).value,
        "share near zero": density.expectation(lambda x: 100 * (jnp.abs(x) < 1e-4)).value,
        "sharpness": flatness.sharpness(loss, params, batches, 0.1),
        "profile": flatness.local_energy(wrong, params, batches, STRENGTHS).value,
    }


CAPTION = (
    "Mean, and standard error if there are several seeds. Near 0: within 1e-4. Sharpness: rise "
    "of the training loss within a ball of radius 0.1. Local energy: rise of the training error, "
    f"in percentage points, at σ = {STRENGTHS[SHOWN]:.1f}."
)


def table_of(results: dict[str, dict[str, np.ndarray]]) -> Table:
    """One row for each optimizer; mean and standard error over the seeds."""
    title = "The valleys in which optimizers end (digits)"
    table = Table(title=title, caption=CAPTION, box=SIMPLE, padding=(0, 1, 0, 0))
    columns = {
        "training loss": ("training loss", ".1e"),
        "largest eigenvalue": ("λ max", ".3f"),
        "trace": ("trace", ".2f"),
        "share near zero": ("near 0, %", ".1f"),
        "sharpness": ("sharpness", ".1e"),
        "local energy": ("local energy", ".2f"),
        "test error": ("test error, %", ".2f"),
    }
    table.add_column("optimizer", overflow="fold")
    for heading, _ in columns.values():
        table.add_column(heading, justify="right")
    for optimizer, values in results.items():
        row = [mean_and_spread(values[name], digits) for name, (_, digits) in columns.items()]
        table.add_row(optimizer, *row)
    return table


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(prog="flatness_table.py", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=positive, default=5, help="of each optimizer (default 5)")
    parser.add_argument("--out", default="flatness_table.png", help="the figure")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    figure, dataset, console = figure_path(options.out), load_digits(), Console()
    model, batches = digits.make_network((64, 64, 64, 10)), stacked_batches(dataset, EXAMPLES)
    results = {}
    for name in track(OPTIMIZERS, "measuring", console=console):
        params, measurement = train(name, model, dataset, options.seeds)
        each = [
            jax.device_get(measure(model, jax.tree.map(lambda x: x[seed], params), batches))  # noqa: B023
            for seed in range(options.seeds)
        ]
        results[name] = {key: np.array([one[key] for one in each]) for key in each[0]}
        results[name] |= {
            "training loss": np.asarray(measurement.train_loss),
            "test error": np.asarray(measurement.test_error),
            "local energy": results[name]["profile"][:, SHOWN],
        }
    console.print(table_of(results))
    profiles = {
        name: (STRENGTHS, flatness.Estimate(*mean_and_error(values["profile"])))
        for name, values in results.items()
    }
    picture = flatness.plots.energy_profiles(
        profiles,
        ylabel="rise of the training error (percentage points)",
        title=f"Local energy at solutions on digits (seeds: {options.seeds})",
    )
    picture.savefig(figure, dpi=150)
    console.print(f"Local energy: {figure}", soft_wrap=True)


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the seeds, the first axis."""
    return values.mean(0), values.std(0, ddof=min(1, len(values) - 1)) / np.sqrt(len(values))


if __name__ == "__main__":
    with one_line_errors("flatness_table.py"):
        main()
