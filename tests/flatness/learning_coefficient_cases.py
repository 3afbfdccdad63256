"""Losses whose learning coefficient is known, for tests of `local_learning_coefficient`."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NO_DATA = [None]

# Widths, rank, and the coefficient as published or computed from Aoyagi's theorem.
NETWORKS = [
    ((5, 4, 5), 0, 8.0),
    ((4, 3, 8), 0, 6.0),
    ((8, 3, 4), 0, 6.0),
    ((3, 8, 4), 0, 6.0),
    ((3, 3, 3), 1, 4.0),
    ((3, 3, 3), 3, 4.5),
    ((2, 2, 2), 0, 1.5),
    ((6, 4, 6), 2, 13.5),
    ((5, 10, 3, 6), 2, 10.5),
    ((10, 8, 8, 10), 3, 36.5),
    # Of multiplicity 2: (2 − 1) / ln(nβ) less at finite temperature.
    ((5, 3, 5), 0, 6.5),
    ((3, 3, 3), 0, 3.5),
]


def aoyagi(widths: Sequence[int], rank: int) -> float:
    """The learning coefficient of a deep linear network, from all its widths.

    Aoyagi, "Consideration on the learning efficiency of multiple-layered neural networks with
    linear units", Neural Networks 172, 2024.
    """
    excess = sorted(width - rank for width in widths)
    for count in range(2, len(excess) + 1):
        inside, outside, layers = excess[:count], excess[count:], count - 1
        total = sum(inside)
        if total >= layers * max(inside) and (not outside or total < layers * min(outside)):
            break
    odd = total - (math.ceil(total / layers) - 1) * layers
    return (
        (rank * (widths[0] + widths[-1]) - rank**2) / 2
        + odd * (layers - odd) / (4 * layers)
        - layers * (layers - 1) / 4 * (total / layers) ** 2
        + sum(a * b for a, b in itertools.combinations(inside, 2)) / 2
    )


def aoyagi_watanabe(inputs: int, hidden: int, outputs: int, rank: int) -> float:
    """The same for one hidden layer, from another theorem.

    Aoyagi and Watanabe, "Stochastic complexities of reduced rank regression in Bayesian
    estimation", Neural Networks 18, 2005.
    """
    n, h, m, r = inputs, hidden, outputs, rank
    if n + r <= m + h and m + r <= n + h and h + r <= m + n:
        odd = (m + h + n + r) % 2
        squares = (h + r) ** 2 + m**2 + n**2
        return (-squares + 2 * (h + r) * (m + n) + 2 * m * n + odd) / 8
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2
    return m * n / 2


def linear_network(widths: Sequence[int], rank: int, dtype: Any = np.float32) -> tuple[Any, Any]:
    """Half the squared distance of the product of all layers to a matrix of some rank.

    Its most singular minimum, with all layers turned at random so that no axis is special.
    """
    rng = np.random.default_rng(sum(widths))
    turns = [np.linalg.qr(rng.normal(size=(width, width)))[0] for width in widths]
    params = [
        jnp.asarray(after[:, :rank] @ before[:, :rank].T, dtype)
        for before, after in itertools.pairwise(turns)
    ]
    target = _product(params)

    def loss(params: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.sum((_product(params) - target) ** 2)

    return loss, params


def _product(layers: Any) -> jax.Array:
    return functools.reduce(lambda a, b: jnp.matmul(b, a, precision="highest"), layers)


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
