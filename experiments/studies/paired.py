"""Two optimizers on the same seeds, hence the same starts and batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
from scipy import stats

BySeed: TypeAlias = Mapping[int, float]  # NaN of a seed that diverged


def shared(ours: BySeed, others: BySeed) -> list[np.ndarray]:
    """The scores of the seeds that both have and that diverged in neither."""
    seeds = [seed for seed in ours if math.isfinite(ours[seed] + others.get(seed, math.nan))]
    return [np.array([scores[seed] for seed in seeds]) for scores in (ours, others)]


def interval(ours: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The mean difference, seed by seed, and half its 95 % interval."""
    less = np.asarray(ours) - np.asarray(others)
    if len(less) == 1:
        return float(less.mean()), math.nan
    quantile = stats.t.ppf(0.975, len(less) - 1)
    return float(less.mean()), float(quantile * less.std(ddof=1) / math.sqrt(len(less)))


def rank(values: Iterable[float]) -> float:
    """The mean over the seeds, to rank by; infinite if one of them is NaN."""
    return float(np.nan_to_num(np.mean([*values]), nan=math.inf))


def of_mean(values: np.ndarray) -> tuple[float, float]:
    """The mean over the seeds, and half its 95 % interval; NaN for one seed."""
    return interval(values, np.zeros_like(values))


def ends(values: np.ndarray, digits: str) -> str:
    """That interval in words, such as "1.20 to 1.81"; empty for one seed."""
    mean, margin = of_mean(values)
    if math.isnan(margin):
        return ""
    return f"{mean - margin:{digits}} to {mean + margin:{digits}}"


def difference(ours: np.ndarray, others: np.ndarray, digits: str) -> str:
    """The same in words, such as "+0.02 ± 0.05"; one seed has no interval."""
    mean, margin = interval(ours, others)
    if math.isnan(margin):
        return f"{mean:+{digits}}"
    return f"{mean:+{digits}} ± {margin:{digits}}"
