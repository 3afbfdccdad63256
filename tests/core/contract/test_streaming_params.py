"""In streaming mode, parameters that someone else changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import anchor_params
from tests.core.contract.common import L, entropy_sgd_1, every_mode, noisy
from tests.core.helpers import assert_same, outer_step


@every_mode
def test_a_projection_after_it_stays_in_force(mode: str) -> None:
    # The loss pulls to -1, the projection holds at 0.
    tx = optax.chain(noisy(entropy_sgd_1, mode, noise_scale=0), optax.keep_params_nonnegative())
    step, params = jax.jit(outer_step(tx, mode)), {"w": jnp.array([0.1, 3.0])}
    state = tx.init(params)
    for _ in range(10):
        params, state = step(params, state, -jnp.ones(L))
        assert np.all(np.asarray(params["w"]) >= 0)
        assert np.all(np.asarray(anchor_params(state, params)["w"]) >= 0)
    np.testing.assert_allclose(params["w"][0], 0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_streaming_follows_params(dtype: Any) -> None:
    # Whatever moves params between the updates, here a projection to 5, moves x′.
    tx = entropy_sgd_1(
        inner_steps=3, streaming=True, inner_momentum=None, noise_scale=0, scope=0, averaging=1
    )
    start, moved, ones = jnp.ones(1, dtype), jnp.full(1, 5, dtype), jnp.ones(1, dtype)
    update = jax.jit(tx.update)
    _, state = update(ones, tx.init(start), start)
    updates, state = update(ones, state, moved)
    np.testing.assert_allclose(state.langevin_iterate, 4.9, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(moved + updates, np.float32), 4.9, atol=0.02)


def streamed_with_zero_gradients(start: Any, after: Any, cycles: int) -> tuple[Any, Any]:
    """Params and x where `after` is applied to params once a cycle."""
    tx = entropy_sgd_1(inner_steps=3, streaming=True, noise_scale=0)
    params, state = start, tx.init(start)
    update = jax.jit(tx.update)
    for _ in range(cycles):
        for _ in range(3):
            updates, state = update(jnp.zeros_like(params), state, params)
            params = optax.apply_updates(params, updates)
        params = after(params)
    return params, anchor_params(state, params)


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_streaming_follows_a_decay_between_two_cycles(dtype: Any, rtol: float) -> None:
    # Five percent a cycle is many roundings of what it acts on, and few of the largest weight.
    start = jnp.array([1.0, 1e-3], dtype)
    params, x = streamed_with_zero_gradients(start, lambda p: (p * 0.95).astype(dtype), 20)
    np.testing.assert_allclose(np.asarray(params, np.float64), [0.95**20, 1e-3 * 0.95**20], rtol)
    assert_same(x, params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("start", [[1.0, 0.01], [1e4, 1e-3]])
def test_streaming_keeps_a_pruned_weight_at_zero(start: list[float], dtype: Any) -> None:
    keep = jnp.array([1, 0], dtype)
    start = jnp.asarray(start, dtype)
    params, x = streamed_with_zero_gradients(start, lambda p: p * keep, 2)
    assert_same(params, start * keep)
    assert_same(x, start * keep)
    params, x = streamed_with_zero_gradients(start, lambda p: p, 2)
    assert_same(x, start)
