"""Two optimizers on the same seeds, hence the same starts and batches."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats


def difference(ours: np.ndarray, others: np.ndarray, digits: str) -> str:
    """The mean of what one has less than the other, seed by seed, with its 95 % interval."""
    less = np.asarray(ours) - np.asarray(others)
    quantile = stats.t.ppf(0.975, len(less) - 1)
    margin = quantile * less.std(ddof=1) / math.sqrt(len(less))
    return f"{less.mean():+{digits}} ± {margin:{digits}}"
