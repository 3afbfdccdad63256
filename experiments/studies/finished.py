"""The finished trainings of `run.py`, read from their logs."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from experiments import train, workloads
from experiments.checkpoints import differences
from experiments.harness import logs, report
from experiments.harness.training import PER_SEED
from experiments.io.errors import InputError
from experiments.studies import RESULTS, paired


class Finished(NamedTuple):
    """A run, read from its log."""

    configuration: dict[str, Any]
    seeds: list[int]
    variant: str
    curves: report.Curves
    score: report.Score
    seconds: float

    @property
    def scores(self) -> np.ndarray:
        """Of shape (measurements, seeds)."""
        return self.score.of(self.curves)

    @property
    def validation(self) -> np.ndarray | None:
        """Likewise, of text, for the seeds whose logs have it."""
        held_out = self.curves.validation_loss
        known = ~np.isnan(held_out[0])
        if not known.any():
            return None
        return self.score.of(self.curves._replace(test_loss=held_out[:, known]))

    @property
    def comparable(self) -> np.ndarray:
        """Whether each measurement compares with another run's.

        While a text is read in order the loss depends on the place in it, by more than optimizers
        differ: then only measurements within a fifth of a pass of its end do.
        """
        known, gradients = self.configuration, self.curves.gradient_evaluations
        if known.get("sampling") != "streams":
            return np.full(gradients.shape, True)
        passes = gradients * known["batch_size"] / known["examples"]
        return np.abs(passes - passes.round()) < 0.2

    def best(self, scores: np.ndarray) -> np.ndarray:
        """Of each seed by itself, as the paper seems to have taken it; shape (seeds,)."""
        return np.nanmin(scores[self.comparable], axis=0)

    @property
    def diverged(self) -> np.ndarray:
        """Whether each seed ends no better than it started; shape (seeds,)."""
        return ~(self.scores[-1] < self.scores[0])

    def sound(self) -> Finished:
        """Without the seeds that diverged, unless all did."""
        kept = ~self.diverged
        if kept.all() or not kept.any():
            return self
        own = {name: getattr(self.curves, name)[:, kept] for name in PER_SEED}
        seeds = [seed for seed, stays in zip(self.seeds, kept, strict=True) if stays]
        return self._replace(seeds=seeds, curves=self.curves._replace(**own))

    @property
    def length(self) -> str:
        """That of the paper, or a shorter one."""
        return "paper" if self.variant == "published" else self.variant

    @property
    def ours(self) -> bool:
        return self.curves.name.startswith(report.TWO_LOOPS)

    def end(self) -> str:
        """The score at the end, mean ± standard error over the seeds that did not diverge."""
        return report.mean_and_spread(self.sound().scores[-1], self.score.digits)

    def noting_lost(self, text: str) -> str:
        """Followed by how many seeds diverged, if any did: "5, 1 diverged"."""
        return f"{text}, {self.diverged.sum()} diverged" if self.diverged.any() else text

    def less(self, other: Finished) -> str:
        """Over the seeds that both have and that diverged in neither."""
        ours, others = paired.shared(self.ends(), other.ends())
        return paired.difference(ours, others, self.score.digits) if ours.size else ""

    def ends(self) -> paired.BySeed:
        """Scores at the end; NaN of those that diverged."""
        return dict(
            zip(self.seeds, np.where(self.diverged, np.nan, self.scores[-1]).tolist(), strict=True)
        )

    def gradients_to_best_of(self, other: Finished) -> str:
        """Until the mean is as good as the other's ever is, but for rounding.

        Over the seeds that did not diverge.
        """
        ours, others = (run.sound().scores.mean(axis=1) for run in (self, other))
        best = np.nanmin(others[other.comparable]) * (1 + 1e-6)
        there = (ours <= best) & self.comparable
        return (
            f"{self.curves.gradient_evaluations[there.argmax()]:,.0f}" if there.any() else "never"
        )


def groups() -> list[list[Finished]]:
    """All runs, those of one workload and length together; the seeds of one as one."""
    logged: dict[tuple[str, ...], list[pathlib.Path]] = {}
    for path in sorted((RESULTS / "logs").glob("*.jsonl")):
        logged.setdefault(tuple(path.stem.split("-")[:3]), []).append(path)
    found: dict[tuple[str, ...], list[Finished]] = {}
    for (workload, variant, _), paths in logged.items():
        one = read(variant, paths)
        found.setdefault((workload, one.length), []).append(one)
    return list(found.values())


def read(variant: str, paths: list[pathlib.Path]) -> Finished:
    """One variant of one optimizer from its logs, each of one seed or several."""
    each = [logs.read(path.parent, path.name) for path in paths]
    first = [(known.get("first_seed", 0), known["seeds"]) for known, _, _ in each]
    seeds = [seed for start, count in first for seed in range(start, start + count)]
    if len({*seeds}) < len(seeds):
        names = ", ".join(path.name for path in paths)
        raise InputError(f"{names}: seeds {seeds}, each expected once; name one training's logs")
    for path, (known, *_) in zip(paths, each, strict=True):
        common = each[0][0].keys() & known.keys() - {"seeds", "first_seed"}  # old logs have fewer
        pair = ({name: one[name] for name in common} for one in (each[0][0], known))
        if different := differences(*pair):
            raise InputError(f"{path.name} is of other settings than {paths[0].name}: {different}")
    configuration = each[0][0] | {"seeds": len(seeds)}
    name = train.NAMES[configuration["optimizer"]]
    name += " as published" if variant == "published" else ""
    curves = report.side_by_side([report.collect(name, measured) for _, measured, _ in each])
    score = report.SCORES[workloads.get(configuration["workload"]).score]
    seconds = sum(seconds for *_, seconds in each)
    return Finished(configuration, seeds, variant, curves, score, seconds)


def best(runs: Iterable[Finished]) -> Finished:
    """The run with the lowest mean score at the end, none of whose seeds diverged."""
    return min(runs, key=lambda run: paired.rank(run.ends().values()))
