"""The final runs: every workload, optimizer and variant, and the table of them all.

    python benchmarks/experiments/run.py --data-dir DIR --workloads mnistfc lenet
    python benchmarks/experiments/run.py --table

Variants: "paper" takes the settings of the paper, "tuned" those that `tune.py` found. Each run is
one command of `examples/train.py`, which goes on from its checkpoints; finished runs are skipped.
Logs are copied to `logs/`, the table goes to `table.md`, a figure for each workload and variant
beside it. Workloads run in the order given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import tune  # also finds the examples

import logs
import report
import train
import workloads

HERE, SCRIPT = pathlib.Path(__file__).parent, pathlib.Path(train.__file__)
SEEDS = {"mnistfc": 5, "lenet": 5}  # else 3
# Of the paper's variant the effective epochs are the paper's, but for these, the same for all.
TUNED_EPOCHS = {"mnistfc": 100, "lenet": 50, "char_lstm": 25}
HEAD = (
    "| workload | variant | optimizer | {part} score at the end | at its best | training loss "
    "| gradient evaluations | seconds per seed |\n|---|---|---|---|---|---|---|---|\n"
)


def command(workload: str, variant: str, optimizer: str, options: argparse.Namespace) -> list[str]:
    """The flags of train.py; empty where the tuning has not been done."""
    flags = [workload, "--optimizer", optimizer]
    flags += ["--seeds", str(options.seeds or SEEDS.get(workload, 3))]
    flags += ["--data-dir", tune.data_folder(options.data_dir, workload)]
    if variant == "tuned":
        results = json.loads(options.tuning.read_text()) if options.tuning.exists() else []
        best = tune.winner(results, workload, optimizer)
        if best is None:
            return []
        flags += [*best["settings"], "--effective-epochs", str(TUNED_EPOCHS[workload])]
    if options.effective_epochs:
        flags += ["--effective-epochs", str(options.effective_epochs)]
    return flags


def run(name: str, flags: list[str], options: argparse.Namespace) -> None:
    """Trains unless that is done, and keeps a copy of the log."""
    kept, folder = HERE / "logs" / f"{name}.jsonl", options.work / name
    if kept.exists():
        return
    print(f"{name}: {' '.join(flags)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags, "--out", str(folder)], env=environment
    )
    if done.returncode == 0:
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(folder / logs.FILE, kept)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def table() -> str:
    """One row for each log, the score at the end first."""
    rows = [row(path) for path in sorted((HERE / "logs").glob("*.jsonl"))]
    return HEAD.format(part="test") + "".join(rows)


def row(path: pathlib.Path) -> str:
    configuration, measurements, seconds = logs.read(path.parent, path.name)
    score = report.SCORES[workloads.get(configuration["workload"]).score]
    curves = report.collect("", measurements)
    values, seeds = score.of(curves), configuration["seeds"]
    # The best of each seed by itself, as the paper seems to have taken it.
    best, digits = np.nanmin(values, axis=0), score.digits
    cells = [
        configuration["workload"],
        path.stem.split("-")[1],
        train.NAMES[configuration["optimizer"]],
        f"{report.mean_and_spread(values[-1], digits)} {score.unit}",
        report.mean_and_spread(best, digits),
        report.mean_and_spread(curves.train_loss[-1], ".2e"),
        f"{configuration['gradient_evaluations']:,}",
        f"{seconds / seeds:,.0f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def draw() -> None:
    """A figure for each workload and variant."""
    paths = sorted((HERE / "logs").glob("*.jsonl"))
    for key, group in itertools.groupby(paths, key=lambda path: path.stem.rsplit("-", 1)[0]):
        found = [logs.read(path.parent, path.name) for path in group]
        curves = [
            report.collect(train.NAMES[configuration["optimizer"]], measurements)
            for configuration, measurements, _ in found
        ]
        score = report.SCORES[workloads.get(key.split("-")[0]).score]
        report.save_figure(curves, key.replace("-", ", "), HERE / f"{key}.png", score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, help="with mnist/ and text/")
    parser.add_argument("--workloads", nargs="+", default=["mnistfc", "char_lstm", "lenet"])
    parser.add_argument(
        "--optimizers", nargs="+", default=["entropy_sgd", "entropy_adam", "adam", "sgd", "sam"]
    )
    parser.add_argument("--variants", nargs="+", choices=("paper", "tuned"), default=["paper"])
    parser.add_argument("--seeds", type=int, help="default 5 on MNIST, 3 elsewhere")
    parser.add_argument("--effective-epochs", type=float, help="instead of the usual")
    parser.add_argument("--tuning", type=pathlib.Path, default=HERE / "tuning.json")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--table", action="store_true", help="only the table and figures")
    options = parser.parse_args()
    for workload, variant, optimizer in itertools.product(
        options.workloads, options.variants, options.optimizers
    ):
        if options.table:
            break
        if flags := command(workload, variant, optimizer, options):
            run(f"{workload}-{variant}-{optimizer}", flags, options)
        (HERE / "table.md").write_text(table())
    (HERE / "table.md").write_text(table())
    draw()


if __name__ == "__main__":
    main()
