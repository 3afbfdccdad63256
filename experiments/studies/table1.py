"""The paper's Table 1 beside ours, from the logs of `run.py`.

    python -m experiments.studies.table1

Writes `table1.md` and draws `table1.png`: every seed at the end of its training, their mean with
its 95 % interval, and what the paper has. "Reproduced" says that the two intervals overlap. SGD and
SAM, which the paper does not have on these tasks, take no more gradients than Entropy-SGD.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import train
from experiments.harness import report
from experiments.io import files
from experiments.studies import RESULTS, finished, overview, paired
from experiments.studies.finished import Finished

Range: TypeAlias = tuple[float, float]  # mean and ±


class Reported(NamedTuple):
    """By the paper; None for what it does not say."""

    test: Range | None = None
    validation: Range | None = None


PAPER: dict[str, dict[str, Reported]] = {
    "mnistfc": {"entropy_sgd": Reported((1.37, 0.03)), "adam": Reported((1.39, 0.03))},
    "lenet": {
        "entropy_sgd": Reported((0.50, 0.01)),
        "adam": Reported((0.51, 0.01)),
        "sgld": Reported((0.63, 0.1)),  # in the text
    },
    "char_lstm": {
        "entropy_adam": Reported((1.217, 0.005), (1.213, 0.007)),
        "adam": Reported((1.226, 0.01), (1.224, 0.008)),
    },
}
OURS = {"sgd": Reported(), "sam": Reported()}  # for comparison, in every task
HEADINGS = ("task", "optimizer", "score", "the paper", "here", "95 % interval", "at best")


def measured() -> dict[tuple[str, str], Finished]:
    """The finished runs of Table 1, by workload and optimizer, in its order."""
    every = {
        (*(one.configuration[key] for key in ("workload", "optimizer")), one.variant): one
        for group in finished.groups()
        for one in group
    }
    found = {}
    for workload, reported in PAPER.items():
        for optimizer in reported | OURS:
            variant = "published" if optimizer.startswith("entropy") else "paper"
            if one := every.get((workload, optimizer, variant)):
                found[workload, optimizer] = one
    return found


def verdict(scores: np.ndarray, paper: Range | None) -> str:
    """Of the scores of all seeds; one has no interval."""
    if paper is None:
        return ""
    (low, high), (mean, margin) = around(*paper), paired.of_mean(scores)
    if np.isnan(margin):
        return "agrees" if low <= mean <= high else "differs"
    least, most = around(mean, margin)
    if least <= high and low <= most:
        return "reproduced"
    return "lower" if most < low else "higher"


def around(mean: float, margin: float) -> Range:
    return mean - margin, mean + margin


def rows(found: dict[tuple[str, str], Finished]) -> list[list[str]]:
    """Of test scores, and of validation scores where there are any."""
    lines = []
    for (workload, optimizer), one in found.items():
        paper, form, sound = (PAPER[workload] | OURS)[optimizer], one.score.digits, one.sound()
        parts = [("test", paper.test, one.scores, sound.scores)]
        if one.validation is not None and sound.validation is not None:
            parts.append(("validation", paper.validation, one.validation, sound.validation))
        for part, reported, every, scores in parts:
            lines.append([
                *(overview.TITLES[workload], one.curves.name, f"{part}, {one.score.unit}"),
                " ± ".join(f"{value:{form}}" for value in reported or ()),
                f"{scores[-1].mean():{form}}",
                paired.ends(scores[-1], form),
                f"{one.best(scores).mean():{form}}",
                one.noting_lost(str(every.shape[1])),
                verdict(scores[-1], reported),
            ])  # fmt: skip
    return lines


def draw_task(axes: Axes, workload: str, found: dict[tuple[str, str], Finished]) -> None:
    """A row of each optimizer, the paper's grey."""
    known = PAPER[workload] | OURS
    there = [name for name in known if (workload, name) in found]
    for height, name in enumerate(there):
        one, paper = found[workload, name].sound(), known[name].test
        scores, colour = one.scores[-1], report.colour(train.NAMES[name])
        own, spread = paired.of_mean(scores)
        style = {"capsize": 3, "marker": "D", "ms": 5}
        if paper:
            mean, margin = paper
            axes.errorbar(mean, height - 0.2, xerr=margin, color="0.5", label="the paper", **style)
        axes.errorbar(
            own, height + 0.1, xerr=None if np.isnan(spread) else spread, color=colour,
            label="here: mean, its 95 % interval, each seed", **style,
        )  # fmt: skip
        axes.plot(scores, np.full(len(scores), height + 0.3), "o", ms=3.5, color=colour, alpha=0.6)
    axes.set_yticks(range(len(there)), [train.NAMES[name] for name in there])
    axes.set(ylim=(len(there) - 0.4, -0.6), title=overview.TITLES[workload])
    score = next(one.score for (task, _), one in found.items() if task == workload)
    axes.set_xlabel(f"← better: test {score.name}, {score.unit}")
    axes.grid(axis="x", alpha=0.25)
    axes.margins(x=0.15)
    axes.locator_params(axis="x", nbins=5)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    found = measured()
    text = report.markdown([*HEADINGS, "seeds", "verdict"], rows(found))
    files.write_whole(RESULTS / "table1.md", text)
    print(text)
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    for axes, workload in zip(figure.subplots(1, len(PAPER)), PAPER, strict=True):
        draw_task(axes, workload, found)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(RESULTS / "table1.png", dpi=150)


if __name__ == "__main__":
    main()
