"""Chooses settings on a validation split: 12 of each optimizer, all with the same budget.

    python benchmarks/experiments/tune.py --data-dir DIR
    python benchmarks/experiments/tune.py --data-dir DIR --workloads mnistfc --effective-epochs 5

The test sets are not read. Every finished setting is written to `tuning.json` at once, and the same
command goes on where it was stopped. `run.py` takes the settings with the lowest mean validation
score for its variant "tuned".
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))

import report  # noqa: E402
import train  # noqa: E402
import training  # noqa: E402
import workloads  # noqa: E402

FOLDERS = {"mnistfc": "mnist", "lenet": "mnist", "allcnn": "cifar10", "ptb": "ptb"}  # else text
EPOCHS = {"mnistfc": 20, "lenet": 10, "char_lstm": 5}  # of each setting
FIXED: dict[str, list[str]] = {  # of both loops a cosine; the inner momentum lives on
    name: ["--schedule", "cosine", "--inner-schedule", "cosine", "--no-reset-inner-state"]
    for name in ("sgd", "adam", "sam", "entropy_sgd", "entropy_adam")
}
DROPOUT = {"mnistfc": (0.15, 0.3, 0.5), "lenet": (0.15, 0.25, 0.5), "char_lstm": (0.0, 0.1, 0.2)}
IMAGES: dict[str, dict[str, tuple[float, ...]]] = {
    "sgd": {"learning_rate": (0.03, 0.1), "momentum": (0.9, 0.95)},
    "adam": {"learning_rate": (3e-4, 1e-3, 2e-3, 4e-3)},
    "sam": {"learning_rate": (0.05, 0.15), "rho": (0.05, 0.15)},
    "entropy_sgd": {"inner_learning_rate": (0.05, 0.15), "scope": (0.1, 1.0)},
    "entropy_adam": {"learning_rate": (3e-3, 0.01), "inner_learning_rate": (0.05, 0.15)},
}
TEXT: dict[str, dict[str, tuple[float, ...]]] = {
    "sgd": {"learning_rate": (0.3, 1.0, 2.0, 4.0)},
    "adam": {"learning_rate": (2e-3, 4e-3, 8e-3, 0.016)},
    "sam": {"learning_rate": (1.0, 2.0), "rho": (0.05, 0.15)},
    "entropy_sgd": {"inner_learning_rate": (0.3, 1.0), "scope": (0.01, 0.1)},
    "entropy_adam": {"learning_rate": (3e-3, 0.01), "inner_learning_rate": (0.3, 1.0)},
}


def grid(workload: str, optimizer: str) -> list[dict[str, float]]:
    axes = {
        "dropout": DROPOUT[workload],
        **(TEXT if workload == "char_lstm" else IMAGES)[optimizer],
    }
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def as_flags(values: dict[str, float]) -> list[str]:
    return [part for name, value in values.items() for part in (as_flag(name), str(value))]


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def data_folder(data: pathlib.Path, workload: str) -> str:
    return str(data / FOLDERS.get(workload, "text"))


def try_setting(flags: list[str], score: report.Score) -> dict[str, Any]:
    """Trains, and returns the last scores and losses of all seeds."""
    options = train.parse_arguments(flags)
    run, began = train.prepare(options), time.perf_counter()
    measurements = training.train(run.contestant, run.model, run.dataset, run.budget, options.seeds)
    *_, last = measurements
    return {
        "flags": flags,
        "scores": score.of(last).tolist(),
        "train_loss": last.train_loss.tolist(),
        "gradient_evaluations": last.gradient_evaluations,
        "seconds": round(time.perf_counter() - began, 1),
    }


def winner(results: list[dict[str, Any]], workload: str, optimizer: str) -> dict[str, Any] | None:
    """The lowest mean score, where no seed diverged."""
    own = [r for r in results if (r["workload"], r["optimizer"]) == (workload, optimizer)]
    means = [sum(result["scores"]) / len(result["scores"]) for result in own]
    finite = [index for index, mean in enumerate(means) if math.isfinite(mean)]
    return own[min(finite, key=means.__getitem__)] if finite else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, required=True, help="has mnist/ and text/")
    parser.add_argument("--workloads", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--optimizers", nargs="+", choices=FIXED, default=list(FIXED))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--effective-epochs", type=float, help="instead of the usual")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "tuning.json")
    options, more = parser.parse_known_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else []
    for workload, optimizer in itertools.product(options.workloads, options.optimizers):
        epochs = options.effective_epochs or EPOCHS[workload]
        for values in grid(workload, optimizer):
            chosen = FIXED[optimizer] + as_flags(values)
            key = {"workload": workload, "optimizer": optimizer, "settings": chosen}
            if any(key.items() <= result.items() for result in results):
                continue
            flags = [workload, "--optimizer", optimizer, *chosen, "--validation", *more]
            flags += ["--data-dir", data_folder(options.data_dir, workload)]
            flags += ["--effective-epochs", str(epochs), "--measurements", "2"]
            flags += ["--seeds", str(options.seeds)]
            score = report.SCORES[workloads.get(workload).score]
            results.append(key | try_setting(flags, score))
            options.out.write_text(json.dumps(results, indent=1))
            print(f"{workload} {optimizer} {values}: {results[-1]['scores']}", flush=True)


if __name__ == "__main__":
    main()
