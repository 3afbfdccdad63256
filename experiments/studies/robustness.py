"""What width should buy: solutions under noise, pruning and rounding, agreement, calibration.

    python -m experiments.studies.robustness --data-dir DIR --workloads lenet mnistfc

Trains each optimizer as `run.py` does for its variant "tuned", from the same seeds, and damages the
weights of the solutions: all matrices and kernels, not biases and norms. BatchNorm's statistics are
taken again after each damage. What is finished is kept in `robustness.json`, and the same command
goes on. Writes `robustness.md`, and a figure for each workload.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.progress import track

from experiments import train
from experiments.harness import evaluation, report
from experiments.harness.evaluation import Model
from experiments.io import files
from experiments.io.dataset import Dataset
from experiments.io.errors import one_line_errors
from experiments.studies import RESULTS, paired, tune
from experiments.studies import run as runs
from experiments.studies.solutions import train_to_the_end

DRAWS = 3  # of the noise, for each strength and seed
OPTIMIZERS = list(tune.GRIDS["lenet"])
BINS = 15  # of the calibration error
CHUNK = 2_000  # test examples at once


def noisy(weights: list[jax.Array], strength: Any, key: jax.Array) -> list[jax.Array]:
    """Each weight times 1 + `strength` ξ, ξ standard normal."""
    keys = jax.random.split(key, len(weights))
    return [
        w * (1 + strength * jax.random.normal(k, w.shape))
        for w, k in zip(weights, keys, strict=True)
    ]


def pruned(weights: list[jax.Array], percent: Any, key: jax.Array) -> list[jax.Array]:
    """The smallest weights of the network, this many percent of all, are zero."""
    return evaluation.prune(weights, percent / 100)


def rounded(weights: list[jax.Array], bits: Any, key: jax.Array) -> list[jax.Array]:
    """Each to the nearest of 2^bits − 1 numbers, equally apart, up to the array's largest size."""
    levels = 2.0 ** (bits - 1) - 1
    units = [jnp.max(jnp.abs(w)) / levels for w in weights]
    return [jnp.round(w / unit) * unit for w, unit in zip(weights, units, strict=True)]


class Damage(NamedTuple):
    """A way to damage weights, and how much."""

    label: str
    of: Callable[[list[jax.Array], Any, jax.Array], list[jax.Array]]
    values: tuple[float, ...]
    shown: float  # in the table
    draws: int = 1


DAMAGES = {
    "noise": Damage("noise σ", noisy, (0.1, 0.2, 0.3, 0.5), 0.3, DRAWS),
    "pruning": Damage("pruned, %", pruned, (50, 80, 90, 95), 90),
    "rounding": Damage("bits", rounded, (6, 4, 3, 2), 3),
}


def damaged(damage: Damage, params: Any, value: Any, key: jax.Array) -> Any:
    """`params` with all of its matrices and kernels damaged."""
    leaves, treedef = jax.tree.flatten(params)
    places = [place for place, leaf in enumerate(leaves) if leaf.ndim > 1]
    damaged = damage.of([leaves[place] for place in places], value, key)
    for place, weights in zip(places, damaged, strict=True):
        leaves[place] = weights
    return jax.tree.unflatten(treedef, leaves)


def logits_of(model: Model, params: Any, statistics: Any, inputs: jax.Array) -> jax.Array:
    """For each example, a chunk at a time; `evaluation.judge` gives sums only."""
    chunks = inputs.reshape(-1, CHUNK, *inputs.shape[1:])
    logits = lax.map(lambda chunk: model.logits(params, statistics, chunk), chunks)
    return logits.reshape(len(inputs), -1)


def calibration_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean gap between confidence and accuracy over bins of equal confidence, in percent."""
    probabilities = jax.nn.softmax(logits)
    confidence, right = probabilities.max(-1), logits.argmax(-1) == labels
    bins = jnp.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = jnp.zeros(BINS).at[bins].add(confidence - right)
    return 100 * jnp.abs(gaps).sum() / len(labels)


@functools.partial(jax.jit, static_argnums=0)
def measure(model: Model, params: Any, data: Dataset) -> dict[str, Any]:
    """How one solution stands up to damage: errors in percent, one for each strength."""
    labels, batches = data.test_labels, evaluation.statistics_batches(data.train_inputs)

    def error(damage: Damage, value: Any) -> jax.Array:
        def of_draw(key: jax.Array) -> jax.Array:
            worse = damaged(damage, params, value, key)
            statistics = model.statistics(worse, batches)
            return 100 * evaluation.judge(model, worse, statistics, data.test_inputs, labels)[1]

        return lax.map(of_draw, jax.random.split(jax.random.key(0), damage.draws)).mean()

    logits = logits_of(model, params, model.statistics(params, batches), data.test_inputs)
    return {
        "test error": 100 * (logits.argmax(-1) != labels).mean(),
        "test loss": evaluation.cross_entropies(logits, labels).mean(),
        "calibration error": calibration_error(logits, labels),
        "answers": logits.argmax(-1),
    } | {
        name: lax.map(functools.partial(error, damage), jnp.array(damage.values, jnp.float32))
        for name, damage in DAMAGES.items()
    }


def agreement(answers: np.ndarray) -> np.ndarray:
    """Share of test examples on which a seed agrees with the others, on average, in percent."""
    same = (answers[:, None] == answers[None]).mean(-1)
    return 100 * (same.sum(1) - 1) / (len(answers) - 1)


def compete(flags: list[str]) -> dict[str, Any]:
    """Trains all seeds, and measures each."""
    options = train.parse_arguments(flags)
    run = train.prepare(options)
    params, last = train_to_the_end(
        run.contestant, run.model, run.dataset, run.budget, options.seeds,
        map_seeds=train.map_seeds(options, run),
    )  # fmt: skip
    data = jax.device_put(run.dataset)
    each = [
        jax.device_get(measure(run.model, jax.tree.map(lambda x: x[seed], params), data))  # noqa: B023
        for seed in range(options.seeds)
    ]
    results = {name: np.array([one[name] for one in each]) for name in each[0]}
    results["agreement"] = agreement(results.pop("answers"))
    results["training loss"] = np.asarray(last.train_loss)
    return {name: values.tolist() for name, values in results.items()}


COLUMNS = {
    "training loss": ".1e",
    "test error": ".2f",
    "test loss": ".4f",
    "calibration error": ".2f",
}


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row for each optimizer."""
    shown = {f"error, {d.label} {d.shown:g}": name for name, d in DAMAGES.items()}
    headings = ["optimizer", *COLUMNS, *shown]
    rows = []
    for optimizer, values in results.items():
        cells = [
            report.mean_and_spread(np.array(values[n]), digits) for n, digits in COLUMNS.items()
        ]
        for name in shown.values():
            index = DAMAGES[name].values.index(DAMAGES[name].shown)
            cells.append(report.mean_and_spread(np.array(values[name])[:, index], ".2f"))
        rows.append([train.NAMES[optimizer], *cells])
    return report.markdown(headings, rows)


def agreements(results: dict[str, dict[str, Any]]) -> str:
    """Means without error bars: the values of two seeds share pairs."""
    means = (f"{train.NAMES[o]} {np.mean(v['agreement']):.2f}" for o, v in results.items())
    return f"Agreement of two seeds, in percent: {', '.join(means)}\n"


def errors_by_damage(values: dict[str, Any]) -> dict[str, np.ndarray]:
    """Errors of each seed, undamaged and with each damage."""
    found = {"undamaged": np.array(values["test error"])}
    for name, damage in DAMAGES.items():
        for value, column in zip(damage.values, np.array(values[name]).T, strict=True):
            found[f"{damage.label} {value:g}"] = column
    return found


def comparison(results: dict[str, dict[str, Any]]) -> str:
    """Entropy-SGD's errors less the others', seed by seed, one row for each damage."""
    others = [optimizer for optimizer in results if optimizer != "entropy_sgd"]
    headings = ["Entropy-SGD's error less that of", *(train.NAMES[other] for other in others)]
    rows = []
    theirs = [errors_by_damage(results[other]) for other in others]
    for label, ours in errors_by_damage(results["entropy_sgd"]).items():
        cells = [paired.difference(ours, their[label], ".2f") for their in theirs]
        rows.append([label, *cells])
    return report.markdown(headings, rows)


def draw(results: dict[str, dict[str, Any]], title: str, path: pathlib.Path) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (name, damage) in zip(figure.subplots(1, 3), DAMAGES.items(), strict=True):
        for optimizer, values in results.items():
            errors = np.array(values[name]).T
            report.draw_band(axes, train.NAMES[optimizer], damage.values, errors)
        axes.set(xlabel=damage.label, ylabel="test error (%)")
        if name != "noise":  # under which errors grow by half or double
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.25)
        if name == "rounding":
            axes.invert_xaxis()
    axes.legend(frameon=False)
    figure.suptitle(f"{title}; lower is better")
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, help="has mnist/")
    parser.add_argument("--workloads", nargs="+", choices=("mnistfc", "lenet"), default=["lenet"])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--seeds", type=int, default=5, help="default 5")
    parser.add_argument("--tuning", type=pathlib.Path, default=RESULTS / "tuning.json")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "robustness.json")
    parser.add_argument("--table", action="store_true", help="only the tables and figures")
    parser.add_argument("--skip", type=int, default=0, help="leave out this many first seeds")
    options = parser.parse_args()
    if options.data_dir is None and not options.table:
        parser.error("--data-dir DIR is needed, the folder that has mnist/; or --table")
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: at least 2, whose answers are compared")
    path = options.out
    options.known = files.kept(path, {})
    every = (own for results in options.known.values() for own in results.values())
    kept = {len(own["test error"]) for own in every}
    wanted = kept if options.table else {options.seeds}
    if kept - wanted:
        parser.error(f"--seeds {min(wanted)}: {path} has {min(kept)}; give that, or another --out")
    if wanted and not 0 <= options.skip <= min(wanted) - 2:
        parser.error(f"--skip {options.skip}: 0 to {min(wanted) - 2} allowed, to leave two seeds")
    return options


def train_all(options: argparse.Namespace) -> None:
    """Measures what is missing, and writes down each result at once."""
    todo = list(itertools.product(options.workloads, options.optimizers))
    for workload, optimizer in track(todo, "training"):
        done = options.known.setdefault(workload, {})
        if optimizer not in done:
            flags = runs.command(workload, "tuned", optimizer, options)
            flags += ["--seeds", str(options.seeds), "--measurements", "1"]
            done[optimizer] = compete(flags)
            files.write_whole(options.out, json.dumps(options.known, indent=1) + "\n")


def tell(workload: str, everything: dict[str, Any], skip: int, path: pathlib.Path) -> list[str]:
    """The tables of a workload; its figure goes next to `path`."""
    results = {
        optimizer: {name: seeds[skip:] for name, seeds in values.items()}
        for optimizer, values in everything.items()
    }
    seeds = len(next(iter(results.values()))["test error"])
    title = f"{workload}, mean and standard error over {seeds} seeds"
    draw(results, title, path.with_name(f"{workload}-{path.stem}.png"))
    parts = [title, table(results)]
    if not skip:  # each value is of one seed with all others, the first ones too
        parts.append(agreements(results))
    if "entropy_sgd" in results:
        parts += ["Differences with their 95 % intervals", comparison(results)]
    return parts


def main() -> None:
    options = parse_arguments()
    if not options.table:
        train_all(options)
    told = [tell(name, own, options.skip, options.out) for name, own in options.known.items()]
    parts = list(itertools.chain(*told))
    files.write_whole(options.out.with_suffix(".md"), "\n\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    with one_line_errors("robustness.py"):
        main()
