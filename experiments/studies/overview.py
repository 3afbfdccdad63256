"""A figure of all tuned comparisons: each two-loop optimizer against the best baseline.

    python -m experiments.studies.overview

Reads the logs of `run.py` and the results of `width.py`, and draws `overview.png` next to them:
a row for each task, a point for each optimizer, with the 95 % interval of its paired difference.
Prints the same, and how many intervals lie on which side of zero.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure

from experiments import train
from experiments.harness import report
from experiments.studies import RESULTS, finished, paired

Task: TypeAlias = dict[str, paired.BySeed]  # by optimizer

TITLES = {
    "mnistfc": "fully connected, MNIST",
    "lenet": "LeNet, MNIST",
    "char_lstm": "LSTM, War and Peace",
    "char_gpt": "GPT, Shakespeare",
}
MARKERS = dict(zip(report.TWO_LOOPS, "osD^", strict=True))
TICKS = (-20, -10, -5, -2, 0, 2, 5, 10, 20, 40, 100)  # percent
LINEAR = 2.0  # percent: beyond it the axis is logarithmic


def tasks() -> dict[str, Task]:
    """The scores of all seeds by task, the lower the better.

    Only tuned settings, and only tasks in which one of ours and a baseline are finished.
    """
    found = {
        TITLES[group[0].configuration["workload"]]: {one.curves.name: one.ends() for one in group}
        for group in finished.groups()
        if group[0].variant == "tuned"
    }
    for condition, results in json.loads((RESULTS / "width.json").read_text()).items():
        task, _, place = condition.partition(", ")
        found[f"{place or 'digits'}, {task}"] = {
            train.NAMES[name]: dict(enumerate(own["test"]))
            for name, own in results.items()
            if "test" in own
        }
    kinds = [{name in MARKERS for name in scores} for scores in found.values()]
    return {title: found[title] for title, both in zip(found, kinds, strict=True) if len(both) == 2}


def best_baseline(scores: Task) -> str:
    return min(scores.keys() - MARKERS, key=lambda name: paired.rank(scores[name].values()))


def differences(scores: Task) -> dict[str, tuple[float, float]]:
    """Difference from the best baseline, with its interval, in percent of the baseline's mean."""
    rival = scores[best_baseline(scores)]
    percent = 100 / np.mean([*rival.values()])
    pairs = {name: paired.shared(own, rival) for name, own in scores.items() if name in MARKERS}
    return {
        name: tuple(percent * value for value in paired.interval(*pair))
        for name, pair in pairs.items()
    }


def text(found: dict[str, Task]) -> str:
    """A row for each task, and the count of the intervals; in percent."""
    compared = {task: differences(scores) for task, scores in found.items()}
    cells = {
        task: [
            f"{own[name][0]:+.1f} ± {own[name][1]:.1f}" if name in own else "" for name in MARKERS
        ]
        for task, own in compared.items()
    }
    rows = [[task, best_baseline(found[task]), *own] for task, own in cells.items()]
    table = report.markdown(["task", "best baseline", *MARKERS], rows)
    each = {name: [own[name] for own in compared.values() if name in own] for name in MARKERS}
    sides = {**each, "all": [interval for own in each.values() for interval in own]}
    return "\n".join([table, *(f"{name}: {counts(own)}" for name, own in sides.items())])


def counts(intervals: list[tuple[float, float]]) -> str:
    below = sum(mean + margin < 0 for mean, margin in intervals)
    above = sum(mean - margin > 0 for mean, margin in intervals)
    return f"{len(intervals)} intervals, {below} below zero and {above} above"


def draw(found: dict[str, Task], path: pathlib.Path) -> None:
    """Points left of zero beat every baseline."""
    figure = Figure(figsize=(8, 0.42 * len(found) + 1.4), layout="constrained")
    axes = figure.subplots()
    for row, scores in enumerate(found.values()):
        compared = differences(scores)
        for place, name in enumerate(name for name in MARKERS if name in compared):
            height = row + 0.18 * (place - (len(compared) - 1) / 2)
            mean, margin = compared[name]
            style = {"color": report.colour(name), "marker": MARKERS[name], "ms": 4, "lw": 1.2}
            axes.errorbar(mean, height, xerr=margin, ls="", label=name, **style)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.5)
    axes.set_xticks(TICKS, [f"{tick:+d}" if tick else "0" for tick in TICKS])
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    rivals = axes.secondary_yaxis("right")
    rivals.set_yticks(range(len(found)), [best_baseline(scores) for scores in found.values()])
    rivals.tick_params(length=0)
    measure = "test error or loss less that of the best baseline, in percent of it; 95 % intervals"
    axes.set_xlabel(f"← better      {measure}      worse →", fontsize=9)
    axes.text(1.01, 1.0, "best baseline", va="bottom", fontstyle="italic", transform=axes.transAxes)
    axes.grid(axis="x", alpha=0.25)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    handles = [handles[name] for name in MARKERS if name in handles]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    found = tasks()
    print(text(found))
    draw(found, RESULTS / "overview.png")
