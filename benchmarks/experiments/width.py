"""Where width ought to pay: few examples, wrong labels, large batches, on the 8×8 digits.

    python benchmarks/experiments/width.py

Every optimizer gets 24 settings in every condition, judged by 256 images held out from training
(5 seeds); the best one trains on all of the training set and is judged by the test set (20 seeds).
All spend about 1,000 gradient evaluations, SAM's second ones counted, and anneal along a cosine.
Weight decay is one of the choices for all. An hour on one CPU core; what is finished is kept in
`width.json`, and the same command goes on. Writes `width.md`.
"""

from __future__ import annotations

import itertools
import json
import pathlib

import numpy as np
import paired
import tune  # also finds the examples
from rich.progress import Progress

import report
import train

HERE = pathlib.Path(__file__).parent
TUNING_SEEDS, SEEDS = 5, 20
SCORE = report.SCORES["error"]

CONDITIONS = {
    "as they are": ["--effective-epochs", "50"],
    "200 examples": ["--examples", "200", "--batch-size", "32", "--effective-epochs", "160"],
    "40 % random labels": ["--label-noise", "0.4", "--effective-epochs", "50"],
    "batches of 512": ["--batch-size", "512", "--effective-epochs", "400"],
}
DECAY, MORE_DECAY = {"weight_decay": (0.0, 3e-3)}, {"weight_decay": (3e-3, 1e-2)}
ALONE = {"schedule": ("constant",)}  # the inner learning rate is annealed, the outer one is not
# Two rounds of 12; the second looks further where the first was best in most conditions.
GRIDS: dict[str, list[dict[str, tuple]]] = {
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
        {"inner_learning_rate": (0.05, 0.1, 0.2), "scope": (0.1, 1.0), **DECAY},
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
}
OURS = ("entropy_sgd", "entropy_adam", "snoo")


def grid(optimizer: str) -> list[list[str]]:
    return [tune.as_flags(values) for axes in GRIDS[optimizer] for values in tune.product(axes)]


def scores(flags: list[str], seeds: int) -> list[float]:
    """Errors in percent, one for each seed."""
    flags = [*flags, "--seeds", str(seeds), "--measurements", "1"]
    return tune.try_setting(flags, SCORE)["scores"]


def compete(condition: str, optimizer: str, known: dict, progress: Progress) -> dict:
    """The best setting on held-out images, and its errors on the test set."""
    start = ["digits", "--optimizer", optimizer, *CONDITIONS[condition]]
    tried = known.get("tried", {})
    for flags in progress.track(grid(optimizer), description=f"{condition}, {optimizer}"):
        if " ".join(flags) not in tried:
            tried[" ".join(flags)] = scores([*start, *flags, "--validation"], TUNING_SEEDS)
    means = {flags: np.mean(errors) for flags, errors in tried.items()}
    best = min(means, key=lambda flags: (np.isnan(means[flags]), means[flags]))
    if best == known.get("best"):
        return known
    return {"tried": tried, "best": best, "test": scores([*start, *best.split()], SEEDS)}


def row(condition: str, results: dict[str, dict]) -> str:
    """Test errors; then ours less the best of the others, seed by seed."""
    errors = {name: np.array(results[name]["test"]) for name in GRIDS}
    rival = min((name for name in GRIDS if name not in OURS), key=lambda name: errors[name].mean())
    cells = [report.mean_and_spread(errors[name], ".2f") for name in GRIDS]
    for name in OURS:
        cells.append(paired.difference(errors[name], errors[rival], ".2f"))
    return f"| {condition} | {' | '.join(cells)} |\n"


def main() -> None:
    path = HERE / "width.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    with Progress() as progress:
        for condition, optimizer in itertools.product(CONDITIONS, GRIDS):
            done = known.setdefault(condition, {})
            done[optimizer] = compete(condition, optimizer, done.get(optimizer, {}), progress)
            path.write_text(json.dumps(known, indent=1))
    names = [train.NAMES[name] for name in GRIDS]
    names += [f"{train.NAMES[name]} less the best baseline" for name in OURS]
    table = f"| condition | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}\n"
    table += "".join(row(condition, results) for condition, results in known.items())
    (HERE / "width.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
