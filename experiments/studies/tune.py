"""Chooses settings on a validation split: equally many for each optimizer, on the same budget.

    python -m experiments.studies.tune --data-dir DIR
    python -m experiments.studies.tune --data-dir DIR --workloads mnistfc --effective-epochs 5
    python -m experiments.studies.tune --data-dir DIR --workloads lenet --finalists 3 --seeds 3

The test sets are not read. Further flags of `experiments.train` become part of the settings. Every
finished setting is written to `tuning.json` at once, and the same command resumes where it was
stopped. `run.py` takes the settings with the lowest mean validation score for its variant "tuned",
of those tried with the most seeds, then with the most effective epochs: one seed may be lucky at a
learning rate where others diverge, so that finalists have to show it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import time
from typing import Any

import jax

from experiments import train, workloads
from experiments.arguments import as_flag
from experiments.data import download
from experiments.harness import report, settings, training
from experiments.io import files
from experiments.io.errors import InputError, one_line_errors
from experiments.studies import RESULTS
from experiments.studies.grids import FIXED, GRIDS, OWN

EPOCHS = {"mnistfc": 2.0, "lenet": 1.0, "char_lstm": 0.3, "char_gpt": 0.5}  # of each setting
OPTIMIZERS = list(dict.fromkeys(itertools.chain(*GRIDS.values())))


def grid(workload: str, optimizer: str) -> list[dict[str, Any]]:
    return [setting for axes in GRIDS[workload][optimizer] for setting in product(axes)]


def product(axes: dict[str, tuple]) -> list[dict[str, Any]]:
    """All combinations, one value of each."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def as_flags(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in (as_flag(name), str(value))]


def own(flags: list[str]) -> list[str]:
    """Drops the flags of other optimizers: some of the lists above serve all."""
    workload, optimizer = flags[0], flags[flags.index("--optimizer") + 1]
    kept, keep = [], True
    for flag in flags:
        if flag.startswith("--"):
            part = settings.PARTS.get(flag[2:].removeprefix("no-").replace("-", "_"))
            keep = part is None or part.is_of(workload, optimizer)
        kept += [flag] if keep else []
    return kept


def data_folder(data: pathlib.Path, workload: str) -> str:
    return str(data / download.folder(workloads.get(workload).source))


def try_setting(flags: list[str], score: report.Score) -> dict[str, Any]:
    """Trains, and returns the last scores and losses of all seeds."""
    options = train.parse_arguments(own(flags))
    run, began = train.prepare(options), time.perf_counter()
    *_, last = training.train(
        run.contestant, run.model, run.dataset, run.budget, options.seeds,
        map_seeds=train.map_seeds(options, run),
    )  # fmt: skip
    jax.clear_caches()  # a program holds many memory mappings, of which a process may have 65,530
    return {
        "scores": score.of(last).tolist(),
        "train_loss": last.train_loss.tolist(),
        "gradient_evaluations": last.gradient_evaluations,
        "seconds": round(time.perf_counter() - began, 1),
    }


def ranking(results: list[dict[str, Any]], workload: str, optimizer: str) -> list[dict[str, Any]]:
    """Settings by mean score, most seeds and epochs first; none in which a seed diverged."""

    def rank(result: dict[str, Any]) -> tuple[int, float, float]:
        seeds = len(result["scores"])
        return -seeds, -result["effective_epochs"], sum(result["scores"]) / seeds

    own = [r for r in results if (r["workload"], r["optimizer"]) == (workload, optimizer)]
    return sorted((result for result in own if math.isfinite(rank(result)[-1])), key=rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, required=True, help="has mnist/ and text/")
    parser.add_argument("--workloads", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--seeds", type=settings.positive, default=1)
    parser.add_argument(
        "--finalists", type=settings.whole, default=0, help="only the best N of one seed"
    )
    parser.add_argument("--effective-epochs", type=settings.above_zero, help="instead of the usual")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "tuning.json")
    options, more = parser.parse_known_args()
    if options.finalists and more:
        parser.error(f"--finalists has its settings from --out; got {' '.join(more)} too")
    results = files.kept(options.out, [])
    for workload, optimizer in itertools.product(options.workloads, options.optimizers):
        if optimizer not in GRIDS[workload]:
            continue
        epochs = options.effective_epochs or EPOCHS[workload]
        candidates = [
            [*FIXED, *OWN[workload], *as_flags(values), *more]
            for values in grid(workload, optimizer)
        ]
        if options.finalists:
            tried = [r for r in ranking(results, workload, optimizer) if len(r["scores"]) == 1]
            candidates = [r["settings"] for r in tried[: options.finalists]]
            if not candidates:
                raise InputError(
                    f"--finalists {options.finalists}: {options.out} has no {workload} with "
                    f"{optimizer} in one seed; tune it first, without --finalists"
                )
        for chosen in candidates:
            key = {"workload": workload, "optimizer": optimizer, "settings": chosen}
            key["effective_epochs"] = epochs
            done = [result for result in results if key.items() <= result.items()]
            if any(len(result["scores"]) >= options.seeds for result in done):
                continue
            flags = [workload, "--optimizer", optimizer, *chosen, "--validation"]
            flags += ["--data-dir", data_folder(options.data_dir, workload)]
            flags += ["--effective-epochs", str(epochs), "--measurements", "2"]
            flags += ["--seeds", str(options.seeds)]
            score = report.SCORES[workloads.get(workload).score]
            results.append(key | try_setting(flags, score))
            rows = ",\n".join(map(json.dumps, results))
            files.write_whole(options.out, f"[\n{rows}\n]\n")
            print(f"{workload} {optimizer} {' '.join(chosen)}: {results[-1]['scores']}", flush=True)


if __name__ == "__main__":
    with one_line_errors("tune.py"):
        main()
