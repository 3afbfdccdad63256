"""How complex are the solutions of SGD, Adam, SAM, Entropy-SGD and Parle at equal training loss?

    python -m experiments.studies.complexity
    python -m experiments.studies.complexity --dataset mnist --data-dir DIR

Each trains the same network from the same starts until the loss of all training images is below the
same value. A table has the local learning coefficient there, beside the curvature, the local energy
and the test error, and a figure the coefficients. MNIST is 2,048 images of 7×7 pixels. Minutes on a
CPU core for each data set; --out keeps the numbers of both, and the figure is drawn next to it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
import warnings
from typing import Any

from experiments.io.errors import OneLineParser, one_line_errors

with one_line_errors("complexity.py"):
    import jax
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from entropy_sgd_jax import flatness
    from experiments.harness import contestants
    from experiments.harness.evaluation import Model
    from experiments.harness.logs import versions
    from experiments.harness.report import mean_and_spread, standard_error
    from experiments.harness.settings import Settings, above_zero, positive
    from experiments.io import files
    from experiments.io.dataset import Dataset
    from experiments.studies import RESULTS, certificate, flatness_table, paired
    from experiments.studies.solutions import loss_of, stacked_batches, train_until
    from experiments.workloads import digits

# Until the loss is reached, so that no schedule is cut short.
CONSTANT = {"schedule": "constant", "inner_schedule": "constant"}
EXAMPLES = {"digits": 1280, "mnist": 2048}
NAMES = {"digits": "digits", "mnist": "MNIST"}
ROWS = {
    "largest eigenvalue": ("λ max", ".3f"),
    "trace": ("trace", ".2f"),
    "local energy": ("local energy", ".2f"),
    "norm": ("‖w‖", ".1f"),
    "gradients": ("gradients", ",.0f"),
    "test error": ("test error, %", ".2f"),
}


def load(name: str, directory: str | None) -> Dataset:
    if name == "digits" or directory is None:
        return digits.load_set(name, directory)
    train, test = certificate.data(directory, 10, random=False, count=EXAMPLES[name], seed=0)
    return Dataset(*map(np.asarray, (*train, *test)))


def solutions(
    options: argparse.Namespace, name: str, model: Model, dataset: Dataset
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The parameters of every seed, and what training says of them."""
    recipe, arguments = flatness_table.OPTIMIZERS[name]
    common = vars(flatness_table.COMMON) | {"effective_epochs": options.effective_epochs}
    settings = Settings(**{**common, **arguments, **CONSTANT})
    contestant, budget = contestants.prepare(
        recipe, settings, len(dataset.train_labels), measurements=10**9
    )
    params, ends = train_until(
        lambda now: now.train_loss < options.target,
        *(contestant, model, dataset, budget, options.seeds),
    )
    return params, {
        "training loss": np.array([one.train_loss for one in ends]),
        "test error": np.array([one.test_error for one in ends]),
        "gradients": np.array([one.gradient_evaluations for one in ends]),
        "norm": np.array([np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(p))) for p in params]),
    }


def measure(options: argparse.Namespace, name: str, model: Model, dataset: Dataset) -> dict:
    """Of every seed, all that the table shows; the coefficient by the scope."""
    batches = stacked_batches(dataset, EXAMPLES[options.dataset])
    found, values = solutions(options, name, model, dataset)
    each = []
    for params in found:
        valley = jax.device_get(flatness_table.measure(model, params, batches))
        energy = valley["profile"][flatness_table.SHOWN]
        each.append({key: valley[key] for key in ("largest eigenvalue", "trace")})
        each[-1]["local energy"] = energy
    values |= {key: np.array([one[key] for one in each], np.float64) for key in each[0]}
    return {key: value.tolist() for key, value in values.items()} | {
        "coefficients": {
            f"{scope:g}": coefficients(options, model, found, batches, scope)
            for scope in options.scopes
        }
    }


def coefficients(
    options: argparse.Namespace, model: Model, found: list[Any], batches: Any, scope: float
) -> dict[str, list]:
    """At the solution of every seed, with what speaks against it."""
    whole = jax.tree.map(lambda leaf: leaf.reshape(1, -1, *leaf.shape[2:]), batches)

    @jax.jit
    def estimate(params: Any, key: Any) -> flatness.LearningCoefficient:
        return flatness.local_learning_coefficient(
            *(loss_of(model), params, whole),
            scope=scope,
            num_chains=options.chains,
            num_steps=options.steps,
            key=key,
        )

    estimates, doubts = [estimate(params, seed) for seed, params in enumerate(found)], []
    for one in estimates:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            one.check()
        doubts.append([str(warning.message) for warning in caught])
    names = ("value", "standard_error", "r_hat", "departure")
    numbers = {name: [float(getattr(one, name)) for one in estimates] for name in names}
    return numbers | {"doubts": doubts}


def table_of(results: dict[str, dict[str, Any]], study: str) -> Table:
    caption = (
        "Mean, and standard error over the seeds; differences seed by seed, with the 95 % "
        "interval. Local energy: rise of the training error, in percentage points, at σ = "
        f"{flatness_table.STRENGTHS[flatness_table.SHOWN]:.1f}."
    )
    table = Table(title=f"Solutions at equal training loss: {study}", caption=caption, box=SIMPLE)
    table.add_column("")
    for optimizer in results:
        table.add_column(optimizer, justify="right")
    for scope, rival in results["SGD"]["coefficients"].items():
        own = [np.array(values["coefficients"][scope]["value"]) for values in results.values()]
        table.add_row(f"λ̂, γ = {scope}", *(mean_and_spread(each, ".2f") for each in own))
        less = (paired.difference(each, rival["value"], ".2f") for each in own)
        table.add_row("less SGD's", *less)
    for name, (heading, style) in ROWS.items():
        row = (mean_and_spread(np.array(values[name]), style) for values in results.values())
        table.add_row(heading, *row)
    return table


def draw(found: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """λ̂ of every seed, and the mean with its standard error; a panel for each data set and γ."""
    scopes = [list(map("{:g}".format, study["settings"]["scopes"])) for study in found.values()]
    size = (max(map(len, scopes)), len(found))
    figure = Figure(figsize=(3.6 * size[1] + 1.4, 2.2 * size[0] + 0.5), layout="constrained")
    panels = figure.subplots(*size, sharey=True, squeeze=False)
    for column, (dataset, study) in enumerate(found.items()):
        for axes, scope in zip(panels[:, column], scopes[column], strict=False):
            _draw_one(axes, study["optimizers"], scope)
            target = study["settings"]["target"]
            axes.set_title(f"{NAMES[dataset]}, loss {target:g} nats, γ = {scope}", fontsize=10)
        panels[-1, column].set_xlabel("local learning coefficient λ̂   (← simpler)")
    figure.savefig(path, dpi=150)


def _draw_one(axes: Axes, results: dict[str, Any], scope: str) -> None:
    for row, values in enumerate(results.values()):
        each = np.array(values["coefficients"][scope]["value"])
        axes.plot(each, np.full(len(each), row), "o", color="#0072b2", alpha=0.4, mew=0, ms=4)
        axes.errorbar(
            each.mean(), row, xerr=standard_error(each), fmt="|", color="#222222", ms=9, capsize=3
        )
    axes.set_yticks(range(len(results)), list(results))
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(prog="complexity.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=EXAMPLES, default="digits")
    parser.add_argument("--data-dir", help="of MNIST's four files")
    parser.add_argument("--seeds", type=positive, default=5, help="of each optimizer (default 5)")
    parser.add_argument("--target", type=above_zero, default=5e-4, help="training loss, in nats")
    parser.add_argument("--effective-epochs", type=above_zero, default=400, help="at most")
    parser.add_argument(
        "--scopes", type=above_zero, nargs="+", default=[100.0, 10.0], help="γ of the coefficient"
    )
    parser.add_argument("--chains", type=positive, default=4)
    parser.add_argument("--steps", type=positive, default=2000, help="of each chain")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "complexity.json")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    console, dataset = Console(), load(options.dataset, options.data_dir)
    model = digits.make_network((dataset.train_inputs[0].size, 32, 10))
    began = time.process_time()
    results = {
        name: measure(options, name, model, dataset)
        for name in track(flatness_table.OPTIMIZERS, "measuring", console=console)
    }
    settings = {
        key: value for key, value in vars(options).items() if key not in ("out", "data_dir")
    }
    found = files.kept(options.out, {})
    found[options.dataset] = {
        "settings": settings,
        "versions": versions(),
        "cpu_seconds": round(time.process_time() - began),
        "optimizers": results,
    }
    files.write_whole(options.out, json.dumps(found, indent=1))
    draw(found, options.out.with_suffix(".png"))
    study = f"{NAMES[options.dataset]}, {options.target:g} nats"
    Console(width=max(console.width, 110)).print(table_of(results, study))
    console.print(f"{options.out}, {options.out.with_suffix('.png')}", soft_wrap=True)


if __name__ == "__main__":
    with one_line_errors("complexity.py"):
        main()
