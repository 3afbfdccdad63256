"""How wide the valleys are in which SGD, Adam, SAM, Entropy-SGD and Parle end, side by side.

    python -m experiments.studies.flatness_table

Each trains a network of 8,970 weights on scikit-learn's 8×8 digits, from the same starts and with
the same number of gradient evaluations. A table compares the ends: the training loss, the Hessian's
largest eigenvalue, its trace, and its share of eigenvalues within 1e-4 of zero; how much the
training loss rises within a ball of radius 0.1, and the training error, in percentage points, at
noise of σ = 0.3; the test error. A figure has that rise of the error at every σ. The numbers of
every seed are kept beside them. Minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import functools
import json
from typing import Any

from experiments.io.errors import OneLineParser, one_line_errors

with one_line_errors("flatness_table.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from matplotlib.figure import Figure
    from rich.progress import track

    from entropy_sgd_jax import flatness
    from experiments.data.images import load_digits
    from experiments.harness import contestants
    from experiments.harness.evaluation import Model
    from experiments.harness.logs import versions
    from experiments.harness.report import figure_path, markdown, mean_and_spread, standard_error
    from experiments.harness.settings import Settings, positive
    from experiments.harness.training import Measurement
    from experiments.io import files
    from experiments.io.dataset import Dataset
    from experiments.studies import RESULTS
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


# Of the table: its heading, the factor by which a value is shown, the format.
COLUMNS = {
    "training loss": ("training loss, × 10⁻⁴", 1e4, ".2f"),
    "largest eigenvalue": ("λ max", 1, ".3f"),
    "trace": ("trace", 1, ".2f"),
    "share near zero": ("within 1e-4 of zero, %", 1, ".1f"),
    "sharpness": ("sharpness, × 10⁻³", 1e3, ".2f"),
    "local energy": ("local energy, %", 1, ".2f"),
    "test error": ("test error, %", 1, ".2f"),
}


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row for each optimizer; mean and standard error over the seeds."""
    rows = [
        [optimizer, *(shown(values[name], *column) for name, (_, *column) in COLUMNS.items())]
        for optimizer, values in results.items()
    ]
    return markdown(["optimizer", *(heading for heading, *_ in COLUMNS.values())], rows)


def shown(values: list[float], factor: float, digits: str) -> str:
    return mean_and_spread(factor * np.array(values), digits)


def draw(results: dict[str, dict[str, Any]], seeds: int) -> Figure:
    """How the training error grows as the weights are perturbed."""
    profiles = {}
    for name, values in results.items():
        each = np.array(values["profile"])
        profiles[name] = STRENGTHS, flatness.Estimate(each.mean(axis=0), standard_error(each.T))
    return flatness.plots.energy_profiles(
        profiles,
        ylabel="rise of the training error (percentage points)",
        title=f"Local energy at solutions on digits (seeds: {seeds})",
    )


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(prog="flatness_table.py", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=positive, default=5, help="of each optimizer (default 5)")
    default = str(RESULTS / "flatness_table")
    parser.add_argument("--out", default=default, help="the files, without their endings")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    figure, dataset = figure_path(f"{options.out}.png"), load_digits()
    model, batches = digits.make_network((64, 64, 64, 10)), stacked_batches(dataset, EXAMPLES)
    results = {}
    for name in track(OPTIMIZERS, "measuring"):
        params, measurement = train(name, model, dataset, options.seeds)
        each = [
            jax.device_get(measure(model, jax.tree.map(lambda x: x[seed], params), batches))  # noqa: B023
            for seed in range(options.seeds)
        ]
        results[name] = {key: np.array([one[key] for one in each]).tolist() for key in each[0]}
        results[name] |= {
            "training loss": measurement.train_loss.tolist(),
            "test error": measurement.test_error.tolist(),
            "local energy": [profile[SHOWN] for profile in results[name]["profile"]],
        }
    found = {"seeds": options.seeds, "versions": versions(), "optimizers": results}
    files.write_whole(figure.with_suffix(".json"), json.dumps(found, indent=1))
    files.write_whole(figure.with_suffix(".md"), table(results))
    draw(results, options.seeds).savefig(figure, dpi=150)
    print(table(results))
    print(f"{options.out}.json, .md and .png")


if __name__ == "__main__":
    with one_line_errors("flatness_table.py"):
        main()
