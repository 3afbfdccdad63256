"""Chooses settings on a validation split: as many of each optimizer, all with the same budget.

    python benchmarks/experiments/tune.py --data-dir DIR
    python benchmarks/experiments/tune.py --data-dir DIR --workloads mnistfc --effective-epochs 5
    python benchmarks/experiments/tune.py --data-dir DIR --workloads lenet --finalists 3 --seeds 3

The test sets are not read. Further flags of `examples/train.py` become part of the settings. Every
finished setting is written to `tuning.json` at once, and the same command goes on where it was
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
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))

import report  # noqa: E402
import settings  # noqa: E402
import train  # noqa: E402
import training  # noqa: E402
import workloads  # noqa: E402
from experiments.io import files  # noqa: E402
from experiments.io.errors import one_line_errors  # noqa: E402

FOLDERS = {"mnistfc": "mnist", "lenet": "mnist", "allcnn": "cifar10", "ptb": "ptb"}  # else text
EPOCHS = {"mnistfc": 2.0, "lenet": 1.0, "char_lstm": 0.3, "char_gpt": 0.5}  # of each setting
# Of both loops a cosine; the inner momentum lives on.
FIXED = ["--schedule", "cosine", "--inner-schedule", "cosine", "--no-reset-inner-state"]
# The dropout of the paper's Entropy-SGD; smaller batches than the paper's 128 for the LSTM, which
# otherwise would make few steps; a GPT that a CPU can train.
OWN = {
    "mnistfc": ["--dropout", "0.15"],
    "lenet": ["--dropout", "0.25"],
    "char_lstm": ["--dropout", "0", "--batch-size", "32"],
    "char_gpt": [
        *("--dropout", "0", "--batch-size", "32"),
        *("--width", "96", "--layers", "3", "--length", "64"),
    ],
}
SCHEDULES = ("constant", "cosine")  # of the outer learning rate
# For each optimizer rounds of 12; a second one lies around the best of the first.
GRIDS: dict[str, dict[str, list[dict[str, tuple]]]] = {
    "mnistfc": {
        "sgd": [
            {"learning_rate": (0.01, 0.03, 0.1, 0.2), "momentum": (0.8, 0.9, 0.95)},
            {"learning_rate": (0.01, 0.015, 0.02, 0.04), "momentum": (0.93, 0.96, 0.98)},
        ],
        "adam": [
            {"learning_rate": (5e-4, 1e-3, 2e-3, 4e-3), "b1": (0.8, 0.9, 0.95)},
            {"learning_rate": (1.5e-3, 2e-3, 2.5e-3, 3e-3), "b1": (0.5, 0.7, 0.85)},
        ],
        "sam": [
            {"learning_rate": (0.02, 0.05, 0.1), "rho": (0.02, 0.05, 0.1, 0.2)},
            {"learning_rate": (0.02, 0.03, 0.05), "rho": (0.01, 0.03), "momentum": (0.93, 0.96)},
        ],
        "entropy_sgd": [
            {
                "inner_learning_rate": (0.02, 0.05, 0.1),
                "scope": (0.1, 1.0),
                "momentum": (0.0, 0.5),
            },
            {
                "inner_learning_rate": (0.03, 0.045, 0.065),
                "scope": (0.1,),
                "momentum": (0.5, 0.7),
                "schedule": SCHEDULES,
            },
        ],
        "entropy_adam": [
            {
                "learning_rate": (3e-3, 0.01),
                "inner_learning_rate": (0.02, 0.05, 0.1),
                "scope": (0.1, 1.0),
            },
            {
                "learning_rate": (3e-3, 0.01, 0.02),
                "inner_learning_rate": (0.04, 0.07),
                "scope": (1.0,),
                "schedule": SCHEDULES,
            },
        ],
        "snoo": [
            {
                "inner_learning_rate": (1e-3, 2e-3, 4e-3),
                "momentum": (0.3, 0.6),
                "schedule": SCHEDULES,
            },
            {
                "inner_learning_rate": (1.5e-3, 2e-3, 3e-3),
                "momentum": (0.5, 0.8),
                "schedule": SCHEDULES,
            },
        ],
    },
    "lenet": {
        "sgd": [{"learning_rate": (0.02, 0.05, 0.1, 0.2), "momentum": (0.85, 0.9, 0.95)}],
        "adam": [{"learning_rate": (5e-4, 1e-3, 2e-3, 4e-3), "b1": (0.7, 0.8, 0.9)}],
        "sam": [{"learning_rate": (0.05, 0.1, 0.2), "rho": (0.02, 0.05, 0.1, 0.2)}],
        "entropy_sgd": [
            {
                "inner_learning_rate": (0.05, 0.1, 0.2),
                "momentum": (0.0, 0.5),
                "schedule": SCHEDULES,
                "scope": (0.1,),
            }
        ],
        "entropy_adam": [
            {
                "learning_rate": (3e-3, 0.01),
                "inner_learning_rate": (0.05, 0.1, 0.2),
                "schedule": SCHEDULES,
                "scope": (1.0,),
            }
        ],
        "snoo": [
            {
                "inner_learning_rate": (1e-3, 2e-3, 4e-3),
                "momentum": (0.3, 0.6),
                "schedule": SCHEDULES,
            }
        ],
    },
    "char_lstm": {
        "sgd": [
            {"learning_rate": (0.3, 1.0, 2.0, 4.0), "momentum": (0.8, 0.9, 0.95)},
            {"learning_rate": (3.0, 5.0, 7.0, 10.0), "momentum": (0.85, 0.9, 0.95)},
        ],
        "adam": [
            {"learning_rate": (2e-3, 4e-3, 8e-3, 0.016), "b1": (0.7, 0.8, 0.9)},
            {"learning_rate": (0.012, 0.02, 0.03, 0.05), "b1": (0.3, 0.5, 0.7)},
        ],
        "sam": [
            {"learning_rate": (0.5, 1.0, 2.0), "rho": (0.02, 0.05, 0.1, 0.2)},
            {"learning_rate": (3.0, 5.0, 8.0), "rho": (0.01, 0.03), "momentum": (0.9, 0.95)},
        ],
        "entropy_sgd": [
            {
                "inner_learning_rate": (0.3, 1.0, 2.0),
                "momentum": (0.0, 0.5),
                "schedule": SCHEDULES,
                "scope": (0.1,),
            },
            {
                "inner_learning_rate": (2.5, 3.5, 5.0),
                "inner_momentum": (0.9, 0.95),
                "momentum": (0.5, 0.7),
                "schedule": ("constant",),
                "scope": (0.1,),
            },
        ],
        "entropy_adam": [
            {
                "learning_rate": (3e-3, 0.01),
                "inner_learning_rate": (0.3, 1.0, 2.0),
                "schedule": SCHEDULES,
                "scope": (0.1,),
            },
            {
                "learning_rate": (0.01, 0.02),
                "inner_learning_rate": (1.5, 3.0, 5.0),
                "inner_momentum": (0.9, 0.95),
                "schedule": ("constant",),
                "scope": (0.1,),
            },
        ],
        "snoo": [
            {
                "inner_learning_rate": (2e-3, 4e-3, 8e-3),
                "momentum": (0.3, 0.6),
                "schedule": SCHEDULES,
            },
            {
                "inner_learning_rate": (0.012, 0.02, 0.03),
                "b1": (0.5, 0.7),
                "momentum": (0.1, 0.3),
                "schedule": ("constant",),
            },
        ],
    },
    "char_gpt": {
        "sgd": [{"learning_rate": (0.1, 0.3, 1.0, 3.0), "momentum": (0.8, 0.9, 0.95)}],
        "adamw": [{"learning_rate": (2e-3, 4e-3, 8e-3, 0.016), "b1": (0.7, 0.8, 0.9)}],
        "sam": [{"learning_rate": (0.3, 1.0, 3.0), "rho": (0.02, 0.05, 0.1, 0.2)}],
        "entropy_sgd": [
            {
                "inner_learning_rate": (0.3, 1.0, 3.0),
                "momentum": (0.0, 0.5),
                "inner_steps": (5, 20),
                "schedule": ("constant",),
                "scope": (0.1,),
            }
        ],
        "entropy_adam": [
            {
                "learning_rate": (3e-3, 0.01),
                "inner_learning_rate": (0.3, 1.0, 3.0),
                "inner_steps": (5, 20),
                "schedule": ("constant",),
                "scope": (0.1,),
            }
        ],
        "snoo": [
            {
                "inner_learning_rate": (2e-3, 4e-3, 8e-3),
                "momentum": (0.3, 0.6),
                "inner_steps": (5, 20),
                "schedule": ("constant",),
            }
        ],
    },
}
OPTIMIZERS = list(dict.fromkeys(itertools.chain(*GRIDS.values())))


def grid(workload: str, optimizer: str) -> list[dict[str, Any]]:
    return [setting for axes in GRIDS[workload][optimizer] for setting in product(axes)]


def product(axes: dict[str, tuple]) -> list[dict[str, Any]]:
    """All combinations, one value of each."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def as_flags(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in (as_flag(name), str(value))]


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def own(flags: list[str]) -> list[str]:
    """Without the flags of other optimizers, since some of the lists above serve all of them."""
    workload, optimizer = flags[0], flags[flags.index("--optimizer") + 1]
    kept, keep = [], True
    for flag in flags:
        if flag.startswith("--"):
            part = settings.PARTS.get(flag[2:].removeprefix("no-").replace("-", "_"))
            keep = part is None or part.is_of(workload, optimizer)
        kept += [flag] if keep else []
    return kept


def data_folder(data: pathlib.Path, workload: str) -> str:
    return str(data / FOLDERS.get(workload, "text"))


def try_setting(flags: list[str], score: report.Score) -> dict[str, Any]:
    """Trains, and returns the last scores and losses of all seeds."""
    options = train.parse_arguments(own(flags))
    run, began = train.prepare(options), time.perf_counter()
    *_, last = training.train(
        run.contestant, run.model, run.dataset, run.budget, options.seeds,
        map_seeds=train.map_seeds(options, run),
    )  # fmt: skip
    return {
        "scores": score.of(last).tolist(),
        "train_loss": last.train_loss.tolist(),
        "gradient_evaluations": last.gradient_evaluations,
        "seconds": round(time.perf_counter() - began, 1),
    }


def ranking(results: list[dict[str, Any]], workload: str, optimizer: str) -> list[dict[str, Any]]:
    """By the mean score, the most seeds and epochs first; none of which a seed diverged."""

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
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--finalists", type=int, default=0, help="only the best N of one seed")
    parser.add_argument("--effective-epochs", type=float, help="instead of the usual")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "tuning.json")
    options, more = parser.parse_known_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else []
    for workload, optimizer in itertools.product(options.workloads, options.optimizers):
        if optimizer not in GRIDS[workload]:
            continue
        epochs = options.effective_epochs or EPOCHS[workload]
        tried = [r for r in ranking(results, workload, optimizer) if len(r["scores"]) == 1]
        candidates = [r["settings"] for r in tried[: options.finalists]] or [
            [*FIXED, *OWN[workload], *as_flags(values), *more]
            for values in grid(workload, optimizer)
        ]
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
