"""How far several Markov chains side by side can be trusted: effective size, R̂ and drift.

All functions take one number per step and chain, shape (chains, steps), and are traceable.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax


def standard_error(samples: jax.Array) -> jax.Array:
    """Of the mean over independent chains, with the correlation along each of them; shape ().

    From what the chains vary together, and how far their means lie apart: Vehtari et al., 2021. For
    chains that have something in common, such as their batches, pass the mean over them as one.
    """
    chains = _halves(samples)
    count, length = chains.shape
    within, pooled = _variances(chains)
    centred = chains - chains.mean(axis=1, keepdims=True)
    spectrum = jnp.fft.rfft(centred, 2 * length, axis=1)
    sums = jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * length, axis=1)[:, :length]
    covariance = sums.mean(axis=0) / (length - 1)
    correlation = 1 - (within - covariance) / jnp.where(pooled > 0, pooled, 1)
    # Sums of neighbours are positive and fall with the lag; what follows the first that is not
    # positive is noise.
    pairs = correlation[: length // 2 * 2].reshape(-1, 2).sum(axis=1)
    pairs = jnp.maximum(lax.cummin(pairs), 0)
    steps_per_sample = jnp.maximum(2 * pairs.sum() - 1, 1 / math.log10(count * length))
    correlated = jnp.sqrt(pooled * steps_per_sample / (count * length))
    if len(samples) == 1:
        return correlated
    # Slow excursions of small weight go on behind that first pair. The half chains show them.
    return jnp.maximum(correlated, chains.mean(axis=1).std(ddof=1) / count**0.5)


def split_r_hat(samples: jax.Array) -> jax.Array:
    """Gelman and Rubin's scale reduction of the half chains: 1 if they agree; shape ()."""
    halves = _halves(samples)
    within, pooled = _variances(halves)
    # Infinite if none of them moves, unless they are all in one place.
    return jnp.where(pooled > 0, jnp.sqrt(pooled / jnp.where(pooled > 0, within, 1)), 1)


def drift(samples: jax.Array) -> jax.Array:
    """How much the second half lies above the first, in standard errors over chains; shape ()."""
    first, second = jnp.split(_halves(samples), 2)
    rise = second.mean(axis=1) - first.mean(axis=1)
    error = rise.std(ddof=1) / len(rise) ** 0.5
    return jnp.where(error > 0, rise.mean() / jnp.where(error > 0, error, 1), 0)


def _halves(samples: jax.Array) -> jax.Array:
    """Each chain cut in two, all first halves first; the last step is dropped if it is odd."""
    length = samples.shape[1] // 2
    return jnp.concatenate([samples[:, :length], samples[:, length : 2 * length]])


def _variances(chains: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Within the chains, and of all steps together as estimated from within and between."""
    length = chains.shape[1]
    within = chains.var(axis=1, ddof=1).mean()
    return within, within * (length - 1) / length + chains.mean(axis=1).var(ddof=1)
