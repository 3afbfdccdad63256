"""Sample means and their standard errors."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_sgd_jax.flatness import _vectors


class Estimate(NamedTuple):
    """The mean of random samples and its standard error.

    >>> from entropy_sgd_jax.flatness import Estimate
    >>> value, standard_error = Estimate(3.0, 0.1)
    """

    value: jax.Array
    standard_error: jax.Array  # in the shape of `value`; NaN if a single sample was drawn


def of_samples(samples: jax.Array) -> Estimate:
    """The mean over the first axis, at a scale where its sums and squares stay finite."""
    count = samples.shape[0]
    if count == 1:
        return Estimate(samples[0], jnp.full_like(samples[0], jnp.nan))
    unit = _vectors.binary_scale(jnp.max(jnp.abs(samples), axis=0))
    scaled = samples / unit[None]
    return Estimate(scaled.mean(axis=0) * unit, scaled.std(axis=0, ddof=1) * unit / count**0.5)
