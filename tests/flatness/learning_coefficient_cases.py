"""Losses whose learning coefficient is known, for tests of `local_learning_coefficient`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NO_DATA = [None]

# Of the networks of `exact_values`, as published or by hand from Aoyagi's theorem. Those of
# multiplicity 2 have (2 − 1) / ln(nβ) less at finite temperature.
PUBLISHED = [8.0, 6.0, 6.0, 6.0, 4.0, 4.5, 1.5, 13.5, 10.5, 36.5, 6.5, 3.5]
MULTIPLICITIES = [1] * 10 + [2] * 2


def aoyagi_watanabe(inputs: int, hidden: int, outputs: int, rank: int) -> tuple[float, int]:
    """Coefficient and multiplicity of a linear network of one hidden layer, from another theorem
    than that of `exact_values`.

    Aoyagi and Watanabe, "Stochastic complexities of reduced rank regression in Bayesian
    estimation", Neural Networks 18, 2005.
    """
    n, h, m, r = inputs, hidden, outputs, rank
    if n + r <= m + h and m + r <= n + h and h + r <= m + n:
        odd = (m + h + n + r) % 2
        squares = (h + r) ** 2 + m**2 + n**2
        return (-squares + 2 * (h + r) * (m + n) + 2 * m * n + odd) / 8, 1 + odd
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2, 1
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2, 1
    return m * n / 2, 1


def quadratic(curvatures: Any, inverse_temperature: Any, scope: Any) -> float:
    """λ̂ of ½ Σ h w²."""
    stiffness = inverse_temperature * np.asarray(curvatures, np.float64)
    return float((stiffness / (stiffness + scope)).sum() / 2)


def regression(seed: int = 0) -> tuple[Any, Any, Any, np.ndarray]:
    """Least squares: loss, minimum, 32 stacked batches of 32, and the Hessian's eigenvalues."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(1024, 10)), rng.normal(size=1024)
    y = x @ rng.normal(size=10) + noise
    minimum = np.linalg.lstsq(x, y, rcond=None)[0]

    def loss(params: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.mean((batch[0] @ params - batch[1]) ** 2)

    batches = (x.reshape(32, 32, 10), y.reshape(32, 32))
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), batches)
    return loss, jnp.asarray(minimum, jnp.float32), stacked, np.linalg.eigvalsh(x.T @ x / 1024)
