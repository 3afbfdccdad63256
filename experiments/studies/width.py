"""Where width ought to pay: few examples, wrong labels, large batches, pruning.

    python -m experiments.studies.width
    python -m experiments.studies.width --data-dir DIR

On the 8×8 digits, and with the folder of MNIST on 5,000 of its images and, to be pruned, with LeNet
on all. Every optimizer gets 24 settings in every condition, judged by images held out from training
(256 and 5 seeds); the best one is judged by the test set (20 seeds), on digits after training on
all of the training set. On MNIST, where at the highest rates some seeds diverge, the best three of
2 seeds are tried on 10; of LeNet, with 18 settings for each of four optimizers, those of 1 seed on
3, and the best on 5. All spend about 1,000 gradient evaluations, SAM's second ones counted, and
anneal along a cosine. Weight decay is one of the choices for all. An hour on one CPU core for the
digits, three more for MNIST; what is finished is kept in `width.json`: the same command goes on.
Writes `width.md`.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from rich.progress import Progress

from experiments import train
from experiments.harness import report
from experiments.harness.settings import INNER
from experiments.io import files
from experiments.studies import RESULTS, paired, tune
from experiments.studies.grids import ALONE

SEEDS, FINALISTS = 20, 3
SCORE = report.SCORES["error"]

DECAY, MORE_DECAY = {"weight_decay": (0.0, 3e-3)}, {"weight_decay": (3e-3, 1e-2)}
# Two rounds of 12 settings. The second searches around what was best in most conditions of the
# first; Parle's, at more weight decay. Without ALONE the outer learning rate follows a cosine too.
DIGITS: dict[str, list[dict[str, tuple]]] = {
    "sgd": [
        {"learning_rate": (0.03, 0.1, 0.3), "momentum": (0.8, 0.9), **DECAY},
        {"learning_rate": (0.02, 0.06, 0.2), "momentum": (0.7, 0.8), **MORE_DECAY},
    ],
    "adam": [
        {"learning_rate": (3e-3, 0.01, 0.03), "b1": (0.8, 0.9), **DECAY},
        {"learning_rate": (1e-3, 2e-3, 5e-3), "b1": (0.5, 0.8), **MORE_DECAY},
    ],
    "sam": [
        {"learning_rate": (0.03, 0.1, 0.3), "rho": (0.05, 0.15), **DECAY},
        {"learning_rate": (0.02, 0.06, 0.2), "rho": (0.15, 0.3), **MORE_DECAY},
    ],
    "entropy_sgd": [
        {"inner_learning_rate": (0.05, 0.1, 0.2), "scope": (0.1, 1.0), **DECAY},
        {
            "inner_learning_rate": (0.03, 0.1, 0.2),
            "scope": (1.0,),
            "momentum": (0.0, 0.5),
            **MORE_DECAY,
            **ALONE,
        },
    ],
    "entropy_adam": [
        {
            "inner_learning_rate": (0.05, 0.1, 0.2),
            "scope": (0.1, 1.0),
            **DECAY,
            "learning_rate": (0.01,),
        },
        {
            "learning_rate": (3e-3, 0.01),
            "inner_learning_rate": (0.1, 0.2, 0.4),
            "scope": (1.0,),
            **MORE_DECAY,
            **ALONE,
        },
    ],
    "snoo": [  # its weight decay is AdamW's
        {
            "inner_learning_rate": (3e-3, 0.01, 0.03),
            "momentum": (0.3, 0.6),
            "weight_decay": (0.0, 0.1),
            **ALONE,
        },
        {
            "inner_learning_rate": (1e-3, 2e-3, 5e-3),
            "momentum": (0.3, 0.6),
            "weight_decay": (0.3, 1.0),
            **ALONE,
        },
    ],
    "parle": [  # three replicas, each with a third of the gradients
        {
            "inner_steps": (10, 20),
            "inner_learning_rate": (0.1, 0.2, 0.4),
            "scope": (0.1,),
            **DECAY,
            **ALONE,
        },
        {
            "inner_steps": (10, 20),
            "inner_learning_rate": (0.1, 0.2, 0.4),
            "scope": (0.1,),
            **MORE_DECAY,
        },
    ],
}
# The pixels of MNIST are larger, and so are gradients.
MNIST: dict[str, list[dict[str, tuple]]] = {
    "sgd": [
        {"learning_rate": (0.005, 0.015, 0.05), "momentum": (0.8, 0.9), **DECAY},
        {"learning_rate": (0.04, 0.06, 0.08), "momentum": (0.9, 0.95), **MORE_DECAY},
    ],
    "adam": [
        {"learning_rate": (1e-3, 3e-3, 0.01), "b1": (0.8, 0.9), **DECAY},
        {"learning_rate": (6e-3, 0.012, 0.02), "b1": (0.8, 0.9), **MORE_DECAY},
    ],
    "sam": [
        {"learning_rate": (0.005, 0.015, 0.05), "rho": (0.05, 0.15), **DECAY},
        {"learning_rate": (0.04, 0.06, 0.08), "rho": (0.03, 0.06), **MORE_DECAY},
    ],
    "entropy_sgd": [
        {
            "inner_learning_rate": (0.005, 0.015, 0.05),
            "momentum": (0.0, 0.5),
            "scope": (1.0,),
            **DECAY,
            **ALONE,
        },
        {
            "inner_learning_rate": (0.04, 0.06, 0.08),
            "momentum": (0.5, 0.7),
            "scope": (1.0,),
            **MORE_DECAY,
            **ALONE,
        },
    ],
    "entropy_adam": [
        {
            "learning_rate": (3e-3, 0.01),
            "inner_learning_rate": (0.015, 0.03, 0.06),
            "scope": (1.0,),
            **DECAY,
            **ALONE,
        },
        {
            "learning_rate": (3e-3, 6e-3, 0.01),
            "inner_learning_rate": (0.06, 0.1),
            "scope": (1.0,),
            **DECAY,
        },
    ],
    "snoo": [
        {
            "inner_learning_rate": (1e-3, 3e-3, 0.01),
            "momentum": (0.3, 0.6),
            "weight_decay": (0.0, 0.1),
            **ALONE,
        },
        {
            "inner_learning_rate": (4e-3, 7e-3, 0.012),
            "momentum": (0.3, 0.6),
            "weight_decay": (0.3, 1.0),
            **ALONE,
        },
    ],
}
# With weight decay from the start, since it makes weights small enough to be pruned; the second
# round has six settings.
LENET: dict[str, list[dict[str, tuple]]] = {
    "sgd": [
        {"learning_rate": (0.05, 0.1, 0.2, 0.4), "weight_decay": (0.0, 1e-3, 3e-3)},
        {"learning_rate": (0.025, 0.05), "weight_decay": (2e-3, 4e-3, 8e-3)},
    ],
    "adam": [
        {"learning_rate": (1e-3, 2e-3, 4e-3, 0.01), "weight_decay": (0.0, 1e-4, 1e-3)},
        {"learning_rate": (4e-3, 8e-3), "weight_decay": (5e-4, 2e-3, 4e-3)},
    ],
    "sam": [
        {"learning_rate": (0.1, 0.3), "rho": (0.05, 0.15), "weight_decay": (0.0, 1e-3, 3e-3)},
        {"learning_rate": (0.05, 0.1), "rho": (0.1,), "weight_decay": (1e-3, 2e-3, 4e-3)},
    ],
    "entropy_sgd": [
        {
            "inner_learning_rate": (0.1, 0.2),
            "momentum": (0.0, 0.5),
            "scope": (0.1,),
            "weight_decay": (0.0, 1e-3, 3e-3),
            **ALONE,
        },
        {
            "inner_learning_rate": (0.05, 0.07),
            "scope": (0.1,),
            "weight_decay": (1e-3, 2e-3, 4e-3),
            **ALONE,
        },
    ],
}


class Condition(NamedTuple):
    """What makes generalising hard, and how settings are chosen there."""

    flags: list[str]
    grids: dict[str, list[dict[str, tuple]]] = DIGITS
    tuning_seeds: int = 5
    finalist_seeds: int = 0  # on which the best settings are repeated before one is chosen
    seeds: int = SEEDS  # of the test


CONDITIONS = {
    "as they are": Condition(["digits", "--effective-epochs", "50"]),
    "200 examples": Condition(
        ["digits", "--examples", "200", "--batch-size", "32", "--effective-epochs", "160"]
    ),
    "40 % random labels": Condition(["digits", "--label-noise", "0.4", "--effective-epochs", "50"]),
    "batches of 512": Condition(["digits", "--batch-size", "512", "--effective-epochs", "400"]),
    "batches of 512, MNIST": Condition(
        [
            *("mnistfc", "--examples", "5000", "--batch-size", "512", "--effective-epochs", "100"),
            *("--width", "128", "--dropout", "0"),
            # What is not tuned, as on digits.
            *("--noise-scale", "1e-4", "--scope-growth", "0"),
        ],
        MNIST,
        tuning_seeds=2,
        finalist_seeds=10,
    ),
    "90 % pruned": Condition(["digits", "--prune", "0.9", "--effective-epochs", "50"]),
    "95 % pruned, LeNet": Condition(
        ["lenet", "--prune", "0.95", "--effective-epochs", "2", "--batch-size", "128"],
        LENET,
        tuning_seeds=1,
        finalist_seeds=3,
        seeds=5,
    ),
}
OURS = INNER.owners


def grid(condition: Condition, optimizer: str) -> list[list[str]]:
    axes = condition.grids[optimizer]
    return [tune.as_flags(values) for round_ in axes for values in tune.product(round_)]


def scores(flags: list[str], seeds: int) -> list[float]:
    """Errors in percent, one for each seed."""
    flags = [*flags, "--seeds", str(seeds), "--measurements", "1"]
    return tune.try_setting(flags, SCORE)["scores"]


def ranking(tried: dict[str, list[float]]) -> list[str]:
    """Settings by mean error, those that diverged last."""
    return sorted(tried, key=lambda flags: paired.rank(tried[flags]))


def compete(
    optimizer: str, condition: Condition, known: dict, track: Callable, data: list[str]
) -> Iterator[None]:
    """The best setting on held-out images, and its errors on the test set, go to `known`; yields
    where that should be saved.
    """
    start = [*condition.flags, "--optimizer", optimizer, *data, *tune.FIXED]
    tried = known.setdefault("tried", {})
    for flags in track(grid(condition, optimizer)):
        if " ".join(flags) not in tried:
            errors = scores([*start, *flags, "--validation"], condition.tuning_seeds)
            tried[" ".join(flags)] = errors
            yield
    if condition.finalist_seeds:
        finalists = known.setdefault("finalists", {})
        for flags in ranking(tried)[:FINALISTS]:
            if flags not in finalists:
                validation = [*start, *flags.split(), "--validation"]
                finalists[flags] = scores(validation, condition.finalist_seeds)
                yield
        tried = finalists
    best = ranking(tried)[0]
    if best != known.get("best"):
        known |= {"best": best, "test": scores([*start, *best.split()], condition.seeds)}
        yield


def row(condition: str, results: dict[str, dict]) -> list[str]:
    """Test errors; then ours less the best of the others, seed by seed."""
    errors = {name: np.array(results[name]["test"]) for name in CONDITIONS[condition].grids}
    rivals = [name for name in errors if name not in OURS]
    rival = min(rivals, key=lambda name: paired.rank(errors[name]))
    cells = {name: report.mean_and_spread(own, ".2f") for name, own in errors.items()}
    less = {name: paired.difference(own, errors[rival], ".2f") for name, own in errors.items()}
    shown = [cells.get(name, "") for name in DIGITS] + [less.get(name, "") for name in OURS]
    return [condition, *shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, help="has mnist/; without it, digits only")
    data, path = parser.parse_args().data_dir, RESULTS / "width.json"
    known = files.kept(path, {})
    with Progress() as progress:
        for name, condition in CONDITIONS.items():
            workload, place = condition.flags[0], []
            if workload != "digits":
                if data is None:
                    continue
                place = ["--data-dir", tune.data_folder(data, workload)]
            for optimizer in condition.grids:
                results = known.setdefault(name, {}).setdefault(optimizer, {})
                track = functools.partial(progress.track, description=f"{name}, {optimizer}")
                for _ in compete(optimizer, condition, results, track, place):
                    files.write_whole(path, json.dumps(known, indent=1))
    names = [train.NAMES[name] for name in DIGITS]
    names += [f"{train.NAMES[name]} less the best baseline" for name in OURS]
    rows = [
        row(condition, results)
        for condition, results in known.items()
        if all("test" in results.get(optimizer, {}) for optimizer in CONDITIONS[condition].grids)
    ]
    table = report.markdown(["condition", *names], rows)
    files.write_whole(RESULTS / "width.md", table)
    print(table)


if __name__ == "__main__":
    main()
