"""Means over replicas in integers: against NumPy, and what the feedback is for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import anchor_params, average_over_replicas, diloco
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


def by_owner(numbers: np.ndarray) -> np.ndarray:
    """By sender, owner, block and number, padded with zeros."""
    share = -(-SIZE // (N * BLOCK)) * BLOCK
    padded = np.zeros((N, N * share), np.float32)
    padded[:, :SIZE] = numbers
    return padded.reshape(N, N, -1, BLOCK)


def by_number(blocks: np.ndarray) -> np.ndarray:
    return blocks.reshape(N, -1)[:, :SIZE]


OWN = np.eye(N, dtype=bool)[:, :, None, None]  # a replica's numbers of the share that it owns


def np_mean(
    updates: np.ndarray, residual: np.ndarray, weights: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two roundings: of what each replica sends to the others, and of each share of the mean."""
    waiting, absent = by_owner(residual), weights[:, None, None, None] == 0
    due = by_owner(np.where(weights[:, None] == 0, 0, updates)) + np.where(OWN, 0, waiting)
    sent = np.where(OWN, due, np_rounded(due, bits))
    owed = np.einsum("oobi->obi", waiting)
    mean = np.einsum("s,sobi->obi", weights, sent) / weights.sum() + owed
    rounded = np_rounded(mean.astype(np.float32), bits)
    left_out = np.where(OWN, (mean - rounded)[:, None], np.where(absent, waiting, due - sent))
    return rounded.reshape(-1)[:SIZE], by_number(left_out)


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
    """The means add up to the exact ones, less what the residuals hold: of the mean in the share
    that a replica owns, of its own numbers in the others.
    """
    tx, step = exchange(bits=bits)
    state = jax.vmap(tx.init)(tree_of(np.zeros((N, SIZE))))
    found, exact = np.zeros(SIZE), np.zeros(SIZE)
    for _ in range(30):
        updates = RANDOM.normal(size=(N, SIZE)).astype(np.float32)
        mean, state = step(tree_of(updates), state, jnp.ones(N))
        found, exact = found + flat(mean)[0], exact + updates.mean(0, dtype=np.float64)
    residual = by_owner(flat(state.residual)).astype(np.float64)
    held = by_number(np.where(OWN, N * residual, residual)).mean(0)
    np.testing.assert_allclose(found + held, exact, rtol=0, atol=1e-4)
    assert np.abs(held).max() < (0.05 if bits == 8 else 0.8)  # it does not grow


@both_widths
def test_weights_that_change_do_not_blow_up_what_is_left_out(bits: int) -> None:
    """A replica that has just joined, and weighs a thousandth, owns as large a share as others."""
    tx, step = exchange(bits=bits)
    state = jax.vmap(tx.init)(tree_of(np.zeros((N, SIZE))))
    for joined in [8, 8192, 8, 0, 8192]:
        weights = np.array([8192, 8192, 8192, joined], np.float32)
        updates = RANDOM.normal(size=(N, SIZE)).astype(np.float32)
        mean, state = step(tree_of(updates), state, weights)
        exact = np.average(updates, axis=0, weights=weights)
        # Half a level of each rounding, now and the last time: four in all. A level is the largest
        # of 64 normal numbers, below 5, and what was left out, over 127 or 7.
        level = 5 / (1 - 1 / 7) / (2 ** (bits - 1) - 1)
        assert np.abs(flat(mean)[0] - exact).max() < 2 * level


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_replicas_over_two_axes_are_those_over_one(bits: int | None) -> None:
    tx, two = exchange(bits=bits)[0], average_over_replicas(("a", "b"), bits=bits)
    updates = RANDOM.normal(size=(N, SIZE)).astype(np.float32)
    one = jax.vmap(lambda u: tx.update(u, tx.init(u))[0], axis_name="r")(updates)
    nested = jax.vmap(lambda u: two.update(u, two.init(u))[0], axis_name="b")
    found = jax.vmap(nested, axis_name="a")(updates.reshape(2, 2, SIZE))
    np.testing.assert_allclose(found.reshape(N, SIZE), one, rtol=0, atol=1e-6)


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
    before, now = by_owner(flat(state.residual)), by_owner(flat(after.residual))
    # What it owes of the mean in the share that it owns is paid all the same.
    kept = slice(None) if "top_k" in fewer else np.arange(N) != 2
    np.testing.assert_array_equal(now[2, kept], before[2, kept])
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
