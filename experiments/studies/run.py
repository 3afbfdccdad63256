"""The final runs: every workload, optimizer and variant, and the table of them all.

    python -m experiments.studies.run --data-dir DIR --workloads mnistfc lenet
    python -m experiments.studies.run --table

Variants: "paper" takes the settings and the length of the paper, "short" its settings at the length
of "tuned", which takes those that `tune.py` found. Each run is one command of `experiments.train`,
which goes on from its checkpoints; finished runs are skipped.
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
from typing import Any, NamedTuple

import numpy as np

from experiments import train, workloads
from experiments.harness import logs, report
from experiments.io import files
from experiments.studies import RESULTS, paired, tune

VARIANTS = ("paper", "short", "tuned")
SEEDS = {"mnistfc": 5, "lenet": 5}  # else 3
# Effective ones, where not the paper's.
EPOCHS = {"mnistfc": 10, "lenet": 5, "char_lstm": 1, "char_gpt": 1}
COLUMNS = (
    *("workload", "variant", "optimizer", "test score at the end", "less the best baseline's"),
    *("at its best", "training loss", "gradient evaluations", "seconds per seed"),
)


def command(workload: str, variant: str, optimizer: str, options: argparse.Namespace) -> list[str]:
    """The flags of train.py; empty where the tuning has not been done."""
    flags = [workload, "--optimizer", optimizer]
    flags += ["--seeds", str(options.seeds or SEEDS.get(workload, 3))]
    flags += ["--data-dir", tune.data_folder(options.data_dir, workload)]
    if variant == "tuned":
        results = json.loads(options.tuning.read_text()) if options.tuning.exists() else []
        ranked = tune.ranking(results, workload, optimizer)
        if not ranked:
            return []
        flags += ranked[0]["settings"]
    if variant != "paper":
        flags += ["--effective-epochs", str(EPOCHS[workload])]
    return tune.own(flags)


def run(name: str, flags: list[str], options: argparse.Namespace) -> None:
    """Trains unless that is done, and keeps a copy of the log."""
    kept, folder = RESULTS / "logs" / f"{name}.jsonl", options.work / name
    if kept.exists():
        print(f"{name}: kept in {kept.parent}, not run again", flush=True)
        return
    print(f"{name}: {' '.join(flags)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(RESULTS.parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *flags, "--out", str(folder)], env=environment
    )
    if done.returncode == 0:
        kept.parent.mkdir(exist_ok=True)
        files.write_whole(kept, (folder / logs.FILE).read_text())
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


class Finished(NamedTuple):
    """A run, read from its log."""

    configuration: dict[str, Any]
    variant: str
    curves: report.Curves
    score: report.Score
    seconds: float

    @property
    def scores(self) -> np.ndarray:
        """Of shape (measurements, seeds)."""
        return self.score.of(self.curves)

    @property
    def ours(self) -> bool:
        return self.curves.name in report.TWO_LOOPS


def finished() -> list[list[Finished]]:
    """All runs, those of one workload and variant together."""
    paths = sorted((RESULTS / "logs").glob("*.jsonl"))
    groups = itertools.groupby(paths, key=lambda path: path.stem.rsplit("-", 1)[0])
    return [[read(path) for path in group] for _, group in groups]


def read(path: pathlib.Path) -> Finished:
    configuration, measurements, seconds = logs.read(path.parent, path.name)
    curves = report.collect(train.NAMES[configuration["optimizer"]], measurements)
    score = report.SCORES[workloads.get(configuration["workload"]).score]
    return Finished(configuration, path.stem.split("-")[1], curves, score, seconds)


def table(groups: list[list[Finished]]) -> str:
    """One row for each run, the score at the end first."""
    rows = []
    for group in groups:
        baselines = [run for run in group if not run.ours]
        best = min(baselines, key=lambda run: run.scores[-1].mean(), default=None)
        rows += [row(run, best if run.ours else None) for run in group]
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n" + "".join(rows)


def row(run: Finished, baseline: Finished | None) -> str:
    configuration, digits = run.configuration, run.score.digits
    cells = [
        configuration["workload"],
        run.variant,
        run.curves.name,
        f"{report.mean_and_spread(run.scores[-1], digits)} {run.score.unit}",
        paired.difference(run.scores[-1], baseline.scores[-1], digits) if baseline else "",
        # The best of each seed by itself, as the paper seems to have taken it.
        report.mean_and_spread(np.nanmin(run.scores, axis=0), digits),
        report.mean_and_spread(run.curves.train_loss[-1], ".2e"),
        f"{configuration['gradient_evaluations']:,}",
        f"{run.seconds / configuration['seeds']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def draw(groups: list[list[Finished]]) -> None:
    """A figure for each workload and variant."""
    for group in groups:
        workload, variant = group[0].configuration["workload"], group[0].variant
        path = RESULTS / f"{workload}-{variant}.png"
        curves = [run.curves for run in group]
        report.save_figure(curves, f"{workload}, {variant}", path, group[0].score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, help="with mnist/ and text/")
    parser.add_argument("--workloads", nargs="+", default=["mnistfc", "char_lstm", "lenet"])
    parser.add_argument("--optimizers", nargs="+", choices=tune.OPTIMIZERS, default=tune.OPTIMIZERS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["paper"])
    parser.add_argument("--seeds", type=int, help="default 5 on MNIST, 3 elsewhere")
    parser.add_argument("--tuning", type=pathlib.Path, default=RESULTS / "tuning.json")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--table", action="store_true", help="only the table and figures")
    options = parser.parse_args()
    if options.data_dir is None and not options.table:
        parser.error("--data-dir DIR is needed, the folder that has mnist/ and text/; or --table")
    for workload, variant, optimizer in itertools.product(
        options.workloads, options.variants, options.optimizers
    ):
        if options.table:
            break
        if flags := command(workload, variant, optimizer, options):
            run(f"{workload}-{variant}-{optimizer}", flags, options)
    groups = finished()
    files.write_whole(RESULTS / "table.md", table(groups))
    draw(groups)


if __name__ == "__main__":
    main()
