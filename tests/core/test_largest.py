"""Means over replicas of their largest numbers: against NumPy, and what is kept for later."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import average_over_replicas, diloco
from tests.core.helpers import exchange, flat, outer_step, tree_of

N, SIZE, CHUNK, DECAY = 4, 5000, 4096, 0.95

both = pytest.mark.parametrize("bits", [None, 8])


def np_largest(due: np.ndarray, top_k: int, bits: int | None) -> np.ndarray:
    """Of each chunk the largest in magnitude, as they arrive; zeros elsewhere."""
    sent = np.zeros_like(due)
    for start in range(0, SIZE, CHUNK):
        chunk = due[start : start + CHUNK]
        places = np.argsort(-np.abs(chunk), kind="stable")[:top_k]
        values = chunk[places]
        if bits is not None:
            scale = np.abs(values).max() / np.float32(2 ** (bits - 1) - 1)
            values = np.round(values / scale) * scale
        sent[start + places] = values
    return sent


@both
@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 2, 0.5, 4], [1, 0, 3, 1]], ids=str)
def test_three_exchanges_send_the_largest(weights: list[float], bits: int | None) -> None:
    tx, step = exchange(top_k=64, bits=bits)
    weights, random = np.asarray(weights, np.float32), np.random.default_rng(0)
    state, residual = jax.vmap(tx.init)(tree_of(np.zeros((N, SIZE)))), np.zeros((N, SIZE))
    for _ in range(3):
        updates = random.normal(size=(N, SIZE)).astype(np.float32)
        mean, state = step(tree_of(updates), state, weights)
        due = updates + DECAY * residual
        sent = np.array([np_largest(row, 64, bits) for row in due])
        expected = (weights[:, None] * sent).sum(0) / weights.sum()
        residual = np.where(weights[:, None] == 0, residual, due - sent)
        np.testing.assert_array_equal(flat(mean), flat(mean)[:1].repeat(N, 0))
        # A number near the middle of two levels may go to either, by the last digit.
        tolerance = {"rtol": 0, "atol": 1e-6 if bits is None else 0.05}
        np.testing.assert_allclose(flat(mean)[0], expected, **tolerance)
        np.testing.assert_allclose(flat(state.residual), residual, **tolerance)
        assert np.count_nonzero(flat(mean)[0]) <= 2 * 64 * np.count_nonzero(weights)


def test_all_numbers_are_the_mean_itself() -> None:
    tx, step = exchange(top_k=CHUNK)
    state = jax.vmap(tx.init)(tree_of(np.zeros((N, SIZE))))
    updates = np.random.default_rng(1).normal(size=(N, SIZE)).astype(np.float32)
    mean, state = step(tree_of(updates), state, jnp.ones(N))
    np.testing.assert_allclose(flat(mean)[0], updates.mean(0), rtol=0, atol=1e-6)
    assert not flat(state.residual).any()


@pytest.mark.parametrize("streaming", [False, True])
def test_diloco_sends_a_tenth_and_arrives(streaming: bool) -> None:
    """A quadratic bowl: what is not sent at once is sent later, so that x reaches the bottom."""
    dimensions, inner_steps, updates = 400, 4, 200
    random = np.random.default_rng(3)
    targets = jnp.asarray(random.normal(size=(N, dimensions)) / 10 + 1, jnp.float32)
    tx = diloco(
        1.0, None, replica_axis_name="r", inner_steps=inner_steps, top_k=40,
        inner_optimizer=optax.sgd(0.1), streaming=streaming,
    )  # fmt: skip
    step = outer_step(tx, "streaming" if streaming else "scan_none", lambda x, batch: x - batch)

    def replica(target: Any) -> Any:
        x = jnp.zeros(dimensions)
        batches = jnp.broadcast_to(target, (updates, inner_steps, dimensions))
        (x, _), _ = jax.lax.scan(lambda c, rows: (step(*c, rows), None), (x, tx.init(x)), batches)
        return x

    found = np.asarray(jax.jit(jax.vmap(replica, axis_name="r"))(targets))
    np.testing.assert_array_equal(found, found[:1].repeat(N, 0))  # at the end of a cycle x′ is x
    assert np.abs(found - np.asarray(targets).mean(0)).max() < 0.1


@pytest.mark.parametrize("top_k", [0, 4097, 2.5, True])
def test_other_numbers_are_refused(top_k: Any) -> None:
    with pytest.raises(ValueError, match=r"`top_k` must be"):
        average_over_replicas("r", top_k=top_k)


def test_it_needs_replicas_and_pairs_of_half_bytes() -> None:
    with pytest.raises(ValueError, match=r"`top_k` must be None without an axis"):
        diloco(inner_steps=1, inner_learning_rate=1, top_k=64)
    with pytest.raises(ValueError, match=r"`top_k` must be even with bits=4; got 63"):
        average_over_replicas("r", bits=4, top_k=63)
