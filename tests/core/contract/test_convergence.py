"""Every factory in every mode converges."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_sgd_jax import anchor_params
from tests.core.contract.common import every_factory
from tests.core.helpers import FACTORIES, Factory, build, rows, train


def targets(params: Any, batch: jax.Array) -> jax.Array:
    """Optax's own targets, side by side in one mixed tree; the mini-batches are all alike."""
    scalar, arrays = params
    matrix, parabola, (x, y) = arrays["matrix"], arrays["vector"][:3], arrays["vector"][3:]
    # 1/100 of the usual, so that one step size suits all.
    rosenbrock = 0.01 * ((1 - x) ** 2 + 100 * (y - x**2) ** 2)
    inverse = jnp.sum((matrix @ jnp.array([[2.0, 1.0], [1.0, 2.0]]) - jnp.eye(2)) ** 2)
    paraboloid = (scalar - 3) ** 2 + jnp.sum((parabola - jnp.array([1.0, -1.0, 2.0])) ** 2)
    return 0.5 * (paraboloid + inverse) + rosenbrock + 0 * batch


@pytest.mark.parametrize("mode", ["scan", "streaming"])  # grads=None goes where grads goes, below
@every_factory
def test_convergence(factory: Factory, mode: str) -> None:
    start = {"matrix": jnp.zeros((2, 2)), "vector": jnp.array([0.0, 0.0, 0.0, -0.5, 0.5])}
    tx = build(
        factory,
        mode,
        inner_steps=5,
        inner_learning_rate=0.1,
        scope=0.01,
        noise_scale=1e-5 if factory is FACTORIES["entropy_sgd"] else 0,
    )
    params = (jnp.zeros(()), start)
    trained, state = train(tx, mode, params, rows(3000, 5), jax.grad(targets))
    scalar, arrays = anchor_params(state, trained)
    np.testing.assert_allclose(scalar, 3, atol=0.02)
    np.testing.assert_allclose(arrays["vector"][:3], [1, -1, 2], atol=0.02)
    np.testing.assert_allclose(arrays["vector"][3:], [1, 1], atol=0.06)
    np.testing.assert_allclose(arrays["matrix"], [[2 / 3, -1 / 3], [-1 / 3, 2 / 3]], atol=0.02)
