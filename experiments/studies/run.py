"""The final runs: every workload, optimizer and variant, and the table of them all.

    python -m experiments.studies.run --data-dir DIR --workloads mnistfc lenet
    python -m experiments.studies.run --table

Variants: "paper" takes the settings and the length of the paper, "published" those of its authors'
code instead where they differ, "short" the paper's at the length of "tuned", which takes those that
`tune.py` found. Each seed is one command of `experiments.train`, which goes on from its
checkpoints; finished seeds are skipped. `--jobs 2` trains two at a time, each on a core of its own.
Logs are copied to `logs/`, the table goes to `table.md`, a figure for each workload and variant
beside it. All first seeds come first, in the order in which the workloads are given.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
import queue
import shutil
import subprocess
import sys
from typing import Any

from experiments import train, workloads
from experiments.checkpoints import differences
from experiments.harness import contestants, cores, logs, report, settings
from experiments.io import files
from experiments.studies import RESULTS, finished, paired, tune
from experiments.studies.finished import Finished

VARIANTS = ("paper", "published", "short", "tuned")
SEEDS = {"mnistfc": 5, "lenet": 5, "char_lstm": 4}  # the paper's; else 3
# Effective ones, where not the paper's.
EPOCHS = {"mnistfc": 10, "lenet": 5, "char_lstm": 1, "char_gpt": 1}
MEASUREMENTS = {"char_lstm": 4}  # then: each takes as long as 200 gradients
COLUMNS = (
    *("workload", "variant", "optimizer", "seeds", "test score at the end", "95 % interval"),
    *("less the best baseline's", "at its best", "validation at the end", "training loss"),
    *("gradient evaluations", "to the baseline's best (its own)", "seconds per seed"),
)


def command(workload: str, variant: str, optimizer: str, options: argparse.Namespace) -> list[str]:
    """The flags of train.py; empty if there is no such variant, or it has not been tuned."""
    flags = [workload, "--optimizer", optimizer]
    flags += ["--data-dir", tune.data_folder(options.data_dir, workload)]
    if variant == "tuned":
        ranked = tune.ranking(files.kept(options.tuning, []), workload, optimizer)
        if not ranked:
            return []
        flags += ranked[0]["settings"]
    if variant == "published":
        return [*flags, "--as-published"] if settings.PUBLISHED.is_of(workload, optimizer) else []
    if variant != "paper":
        flags += ["--effective-epochs", str(EPOCHS[workload])]
        if workload in MEASUREMENTS:
            flags += ["--measurements", str(MEASUREMENTS[workload])]
    return tune.own(flags)


def changed(known: dict[str, Any], flags: list[str]) -> str:
    """The settings of a log that are not what these flags ask for now."""
    options = train.parse_arguments(flags)
    workload, optimizer = options.workload, options.optimizer
    chosen = settings.override(workloads.get(workload).settings[optimizer], options)
    asked = {
        name: value
        for name, value in dataclasses.asdict(chosen).items()
        if settings.PARTS[name].is_of(workload, optimizer) and name in known
    }
    return differences({name: known[name] for name in asked}, asked)


def run(name: str, flags: list[str], free: queue.SimpleQueue, options: argparse.Namespace) -> bool:
    """Trains on the next free core unless that is done, and keeps a copy of the log.

    Returns whether there is one.
    """
    kept, folder = RESULTS / "logs" / f"{name}.jsonl", options.work / name
    if kept.exists():
        different = changed(logs.read(kept.parent, kept.name)[0], flags)
        advice = f"with other settings ({different}): move it away first" if different else ""
        print(f"{name}: kept in {kept.parent}, {advice or 'not run again'}", flush=True)
        return not different
    core = free.get()
    print(f"{name}: {' '.join(flags)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *flags, "--out", str(folder)],
        env={**os.environ, "PYTHONPATH": str(RESULTS.parents[1])},
        preexec_fn=functools.partial(cores.pin, core),
    )
    free.put(core)
    if done.returncode == 0:
        kept.parent.mkdir(exist_ok=True)
        files.write_whole(kept, (folder / logs.FILE).read_text())
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done.returncode == 0


def run_all(options: argparse.Namespace) -> list[str]:
    """All seeds of all that is asked for, `--jobs` at a time; returns which failed."""
    free: queue.SimpleQueue = queue.SimpleQueue()
    for core in cores.for_jobs(options.jobs) if options.jobs > 1 else [None]:
        free.put(core)
    most = options.seeds or max(SEEDS.values())
    asked = itertools.product(range(most), options.workloads, options.variants, options.optimizers)
    started = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for seed, workload, variant, optimizer in asked:
            flags = command(workload, variant, optimizer, options)
            if flags and seed < (options.seeds or SEEDS.get(workload, 3)):
                name = f"{workload}-{variant}-{optimizer}-{seed}"
                flags += ["--first-seed", str(seed)]
                started[name] = pool.submit(run, name, flags, free, options)
    return [name for name, done in started.items() if not done.result()]


def table(groups: list[list[Finished]]) -> str:
    """One row for each run, the score at the end first."""
    rows = []
    for group in groups:
        baselines = [run for run in group if not run.ours]
        rival = finished.best(baselines) if baselines else None
        rows += [row(run, rival if run.ours else None) for run in group]
    return report.markdown(COLUMNS, rows)


def row(run: Finished, baseline: Finished | None) -> list[str]:
    configuration, digits = run.configuration, run.score.digits
    sound = run.sound()
    return [
        configuration["workload"],
        run.variant,
        run.curves.name,
        run.noting_lost(str(configuration["seeds"])),
        f"{run.end()} {run.score.unit}",
        paired.ends(sound.scores[-1], digits),
        run.less(baseline) if baseline else "",
        report.mean_and_spread(sound.best(sound.scores), digits),
        validation(sound),
        report.mean_and_spread(sound.curves.train_loss[-1], ".2e"),
        f"{configuration['gradient_evaluations']:,}",
        reached(run, baseline) if baseline else "",
        f"{run.seconds / configuration['seeds']:,.0f}",
    ]


def validation(run: Finished) -> str:
    """At the end, and of how many seeds if some logs have none."""
    if run.validation is None:
        return ""
    seeds = run.validation.shape[1]
    shown = report.mean_and_spread(run.validation[-1], run.score.digits)
    return shown if seeds == run.scores.shape[1] else f"{shown} (of {seeds})"


def reached(run: Finished, baseline: Finished) -> str:
    """Gradients to the baseline's best, and in parentheses its own."""
    return f"{run.gradients_to_best_of(baseline)} ({baseline.gradients_to_best_of(baseline)})"


def draw(groups: list[list[Finished]]) -> None:
    """A figure for each workload and variant."""
    for group in groups:
        workload, variant = group[0].configuration["workload"], group[0].length
        path = RESULTS / f"{workload}-{variant}.png"
        curves = [run.sound().curves for run in group]
        report.save_figure(curves, f"{workload}, {variant}", path, group[0].score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, help="with mnist/ and text/")
    parser.add_argument("--workloads", nargs="+", default=["mnistfc", "char_lstm", "lenet"])
    parser.add_argument(
        "--optimizers", nargs="+", choices=contestants.RECIPES, default=tune.OPTIMIZERS
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["paper"])
    number = {"type": settings.positive}
    parser.add_argument("--seeds", **number, help="default 5 on MNIST, 4 of char_lstm, else 3")
    parser.add_argument("--jobs", **number, default=1, help="seeds at a time (default 1)")
    parser.add_argument("--tuning", type=pathlib.Path, default=RESULTS / "tuning.json")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--table", action="store_true", help="only the table and figures")
    options = parser.parse_args()
    if options.data_dir is None and not options.table:
        parser.error("--data-dir DIR is needed, the folder that has mnist/ and text/; or --table")
    failed = [] if options.table else run_all(options)
    groups = finished.groups()
    files.write_whole(RESULTS / "table.md", table(groups))
    draw(groups)
    if failed:
        parser.exit(1, f"failed: {', '.join(failed)}\n")


if __name__ == "__main__":
    main()
