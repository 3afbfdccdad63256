"""Means over replicas in integers: against NumPy, and what the feedback is for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import anchor_params, diloco
from tests.core.helpers import assert_finite, exchange, flat, outer_step, tree_of

N, SIZE, BLOCK = 4, 1000, 64
RANDOM = np.random.default_rng(0)

both_widths = pytest.mark.parametrize("bits", [8, 4])


def np_rounded(blocks: np.ndarray, bits: int) -> np.ndarray:
    """To the nearest of 2^bits − 1 levels of each block."""
    levels = 2 ** (bits - 1) - 1
    scales = np.abs(blocks).max(-1, keepdims=True) / np.float32(levels)
    safe = np.where(scales > 0, scales, np.float32(1))
    return (np.round(blocks / safe) * scales).astype(np.float32)


def np_mean(
    updates: np.ndarray, residual: np.ndarray, weights: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two roundings: of each replica's numbers, and of each share of their mean."""
    share = -(-SIZE // (N * BLOCK)) * BLOCK
    due = np.zeros((N, N * share), np.float32)
    due[:, :SIZE] = np.where(weights[:, None] == 0, 0, updates + residual)
    due = due.reshape(N, N, -1, BLOCK)  # by sender, owner, block
    sent = np_rounded(due, bits)
    left_out = due - sent
    mean = np.einsum("s,sobi->obi", weights, sent) / weights.sum()
    rounded = np_rounded(mean.astype(np.float32), bits)
    for owner in range(N):
        if weights[owner] > 0:
            missed = (mean - rounded)[owner] * weights.sum() / weights[owner]
            left_out[owner, owner] += missed
    left_out = left_out.reshape(N, -1)[:, :SIZE]
    return rounded.reshape(-1)[:SIZE], np.where(weights[:, None] == 0, residual, left_out)


@both_widths
@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 2, 0.5, 4], [1, 0, 3, 1]], ids=str)
def test_three_exchanges_are_two_roundings_each(weights: list[float], bits: int) -> None:
    tx, step = exchange(bits=bits)
    weights, random = np.asarray(weights, np.float32), np.random.default_rng(bits)
    state, residual = (
        jax.vmap(tx.init)(tree_of(np.zeros((N, SIZE)))),
        np.zeros((N, SIZE), np.float32),
    )
    for _ in range(3):
        updates = random.normal(size=(N, SIZE)).astype(np.float32) ** 3  # blocks of unlike sizes
        mean, state = step(tree_of(updates), state, weights)
        expected, residual = np_mean(updates, residual, weights, bits)
        np.testing.assert_array_equal(flat(mean), flat(mean)[:1].repeat(N, 0))
        # A number near the middle of two levels may go to either, by the last digit.
        assert np.mean(np.abs(flat(mean)[0] - expected) > 1e-5) < 0.01
        assert np.mean(np.abs(flat(state.residual) - residual) > 1e-4) < 0.01
        residual = flat(state.residual)


@both_widths
def test_what_rounding_leaves_out_comes_later(bits: int) -> None:
    """The means add up to the exact ones, less the mean of what the residuals hold."""
    tx, step = exchange(bits=bits)
    state = jax.vmap(tx.init)(tree_of(np.zeros((N, SIZE))))
    found, exact = np.zeros(SIZE), np.zeros(SIZE)
    for _ in range(30):
        updates = RANDOM.normal(size=(N, SIZE)).astype(np.float32)
        mean, state = step(tree_of(updates), state, jnp.ones(N))
        found, exact = found + flat(mean)[0], exact + updates.mean(0, dtype=np.float64)
    held = flat(state.residual).mean(0, dtype=np.float64)
    np.testing.assert_allclose(found + held, exact, rtol=0, atol=1e-4)
    assert np.abs(held).max() < (0.05 if bits == 8 else 0.8)  # it does not grow


@pytest.mark.parametrize("fewer", [{"bits": 8}, {"bits": 4}, {"top_k": 64, "bits": 8}], ids=str)
def test_an_absent_replica_keeps_its_residual_and_nobody_gives_nan(fewer: dict[str, int]) -> None:
    tx, step = exchange(**fewer)
    state = jax.vmap(tx.init)(tree_of(np.zeros((N, SIZE))))
    updates = RANDOM.normal(size=(N, SIZE)).astype(np.float32)
    _, state = step(tree_of(updates), state, jnp.ones(N))
    sick = updates.copy()
    sick[2, 500] = np.inf
    mean, after = step(tree_of(sick), state, jnp.ones(N))
    assert_finite((mean, after))
    np.testing.assert_array_equal(flat(after.residual)[2], flat(state.residual)[2])
    mean, after = step(tree_of(updates), state, jnp.zeros(N))
    assert np.isnan(flat(mean)).all()
    np.testing.assert_array_equal(flat(after.residual), flat(state.residual))


@both_widths
@pytest.mark.parametrize("streaming", [False, True])
def test_diloco_in_integers_is_near_diloco(bits: int, streaming: bool) -> None:
    inner_steps, updates, dimensions = 4, 30, 70
    target = jnp.asarray(RANDOM.normal(size=dimensions), jnp.float32)
    noise = jnp.asarray(0.1 * RANDOM.normal(size=(N, updates, inner_steps, dimensions)))

    def run(bits: int | None) -> Any:
        tx = diloco(
            0.7, 0.5, replica_axis_name="r", inner_steps=inner_steps, bits=bits,
            inner_optimizer=optax.sgd(0.1), streaming=streaming,
        )  # fmt: skip
        mode = "streaming" if streaming else "scan_none"
        step = outer_step(tx, mode, lambda x, batch: x - batch)

        def replica(batches: Any) -> Any:
            x = jnp.zeros(dimensions)
            carry = x, tx.init(x)
            (x, state), _ = jax.lax.scan(lambda c, rows: (step(*c, rows), None), carry, batches)
            return anchor_params(state, x)

        return np.asarray(jax.jit(jax.vmap(replica, axis_name="r"))(target + noise))

    exact, rounded = run(None), run(bits)
    np.testing.assert_array_equal(rounded, rounded[:1].repeat(N, 0))
    # What the gradients' noise leaves, and what rounding adds to it.
    left, added = (np.sqrt(np.mean((exact[0] - other) ** 2)) for other in (target, rounded[0]))
    assert left < 0.03
    assert added < (0.02 if bits == 8 else 0.3) * left


@pytest.mark.parametrize("bits", [2, 16, 8.5, True, "8"])
def test_other_widths_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match=r"`bits` must be None or 8 or 4; got"):
        diloco(replica_axis_name="r", inner_steps=1, inner_learning_rate=1, bits=bits)


def test_integers_need_replicas() -> None:
    with pytest.raises(ValueError, match=r"`bits` must be None without an axis"):
        diloco(inner_steps=1, inner_learning_rate=1, bits=8)
