"""What a random estimate is worth."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Estimate(NamedTuple):
    """A mean over random samples, and how far it is from the truth: one standard deviation of it.

    >>> from entropy_sgd_jax.flatness import Estimate
    >>> value, standard_error = Estimate(3.0, 0.1)
    """

    value: jax.Array
    standard_error: jax.Array  # in the shape of `value`; NaN where a single sample was drawn


def of_samples(samples: jax.Array) -> Estimate:
    """The mean over the first axis."""
    count = samples.shape[0]
    if count == 1:
        return Estimate(samples[0], jnp.full_like(samples[0], jnp.nan))
    return Estimate(samples.mean(axis=0), samples.std(axis=0, ddof=1) / jnp.sqrt(count))
