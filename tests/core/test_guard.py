"""A gradient that is not finite: what survives it with a guard, and what without."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import _guard, anchor_params, entropic, entropic_diagnostics
from tests.core.helpers import (
    MODES,
    assert_close,
    assert_finite,
    assert_same,
    double_precision,
    gradient,
    layout,
    outer_step,
    rows,
)

L = 5
STEP_SIZE, SCOPE, AVERAGING, DECAY = 0.3, 0.5, 0.75, 0.9
START = np.array([1.0, -2.0])

every_mode = pytest.mark.parametrize("mode", MODES)


def build(
    mode: str,
    guard: optax.GradientTransformation | None = None,
    base: optax.GradientTransformation | None = None,
    **kwargs: Any,
) -> optax.GradientTransformationExtraArgs:
    return entropic(
        optax.sgd(1.0) if base is None else base,
        inner_transform=guard,
        streaming=mode == "streaming",
        **{
            "inner_steps": L,
            "inner_learning_rate": STEP_SIZE,
            "scope": SCOPE,
            "averaging": AVERAGING,
            "noise_scale": 0,
            "diagnostics": True,
            **kwargs,
        },
    )


# Momentum d ← decay · d + g by hand: what it does with a gradient that is not finite.


def zero_it(momentum: np.ndarray, grads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As if the gradient had been zero: the momentum goes on, and decays."""
    momentum = DECAY * momentum + np.where(np.isfinite(grads), grads, 0)
    return momentum, momentum


def skip_it(momentum: np.ndarray, grads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As if the step had been empty: no direction, and the momentum is kept."""
    if not np.all(np.isfinite(grads)):
        return momentum, np.zeros_like(grads)
    momentum = DECAY * momentum + grads
    return momentum, momentum


Guard = tuple[optax.GradientTransformation, Callable[..., Any], tuple[float, ...]]

GUARDS: dict[str, Guard] = {
    "apply_if_finite, then momentum": (
        optax.chain(optax.apply_if_finite(optax.identity(), 100), optax.trace(DECAY)),
        zero_it,
        (np.nan, np.inf, -np.inf),
    ),
    "apply_if_finite around momentum": (
        optax.apply_if_finite(optax.trace(DECAY), 100),
        skip_it,
        (np.nan, np.inf, -np.inf),
    ),
    "zero_nans, then momentum": (
        optax.chain(optax.zero_nans(), optax.trace(DECAY)),
        zero_it,
        (np.nan,),
    ),
}


def chain_by_hand(remember: Callable[..., Any], batches: np.ndarray) -> tuple[Any, Any]:
    """x′ and μ after the Langevin steps on `batches`, from START."""
    iterate, average, momentum = START, START, np.zeros(2)
    for batch in batches:
        momentum, direction = remember(momentum, iterate - batch)
        iterate = iterate - STEP_SIZE * (direction + SCOPE * (iterate - START))
        average = (1 - AVERAGING) * average + AVERAGING * iterate
    return iterate, average


@every_mode
@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS.keys())
def test_the_good_steps_still_count(guard: Guard, mode: str) -> None:
    transform, remember, bad_values = guard
    tx = build(mode, transform)
    step, init = jax.jit(outer_step(tx, mode)), jax.jit(tx.init)
    start = jnp.asarray(START, jnp.float32)
    for bad in bad_values:
        for position in (0, L // 2, L - 1):
            batches = rows(1, L)[0].copy()
            batches[position] = bad
            params, state = step(start, init(start), batches)
            iterate, average = chain_by_hand(remember, batches.astype(np.float64))
            np.testing.assert_allclose(anchor_params(state, params), average, rtol=1e-5)
            assert_finite((params, state._replace(diagnostics=None)))
            if mode != "streaming":  # which starts the next cycle in the same update
                np.testing.assert_allclose(state.langevin_iterate, iterate, rtol=1e-5)
                np.testing.assert_allclose(state.langevin_average, average, rtol=1e-5)
            assert state.diagnostics.nonfinite_gradients == 1


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS.keys())
def test_every_step_of_a_guarded_stream_is_finite(guard: Guard) -> None:
    transform, remember, bad_values = guard
    tx = build("streaming", transform)
    update = jax.jit(tx.update)
    start = jnp.asarray(START, jnp.float32)
    for position in (0, L // 2, L - 1):
        batches = rows(1, L)[0].copy()
        batches[position] = bad_values[-1]
        params, state = start, tx.init(start)
        for number, batch in enumerate(batches[:-1]):
            updates, state = update(gradient(params, batch), state, params)
            params = optax.apply_updates(params, updates)
            iterate, average = chain_by_hand(remember, batches[: number + 1].astype(np.float64))
            np.testing.assert_allclose(params, iterate, rtol=1e-5)
            np.testing.assert_allclose(state.langevin_average, average, rtol=1e-5)
            assert_same(anchor_params(state, params), start)


def test_one_bad_element_spoils_only_itself_under_zero_nans() -> None:
    tx = build("scan_none", optax.zero_nans())

    def grad_fn(params: Any, batch: Any) -> Any:
        return gradient(params, batch).at[0].set(jnp.nan)

    start = jnp.asarray(START, jnp.float32)
    params, _ = jax.jit(outer_step(tx, "scan_none", grad_fn))(start, tx.init(start), rows(1, L)[0])
    assert params[0] == start[0]
    assert params[1] != start[1]


def test_the_guard_gives_up_in_the_end() -> None:
    # apply_if_finite(…, 1) lets the second bad gradient in a row through: then no step is taken.
    tx = build("scan_none", optax.apply_if_finite(optax.identity(), 1))
    batches = rows(1, L)[0].copy()
    batches[1:3] = np.nan
    start = jnp.asarray(START, jnp.float32)
    params, state = jax.jit(outer_step(tx, "scan_none"))(start, tx.init(start), batches)
    assert_same(params, start)
    assert state.diagnostics.nonfinite_gradients >= 2


# Without a guard inside.


@pytest.mark.parametrize("reset_inner_state", [True, False])
@pytest.mark.parametrize("mode", ["scan", "scan_none"])
def test_a_scan_that_is_not_finite_is_not_taken(mode: str, reset_inner_state: bool) -> None:
    tx = build(mode, optax.trace(DECAY), base=optax.adamw(0.1), reset_inner_state=reset_inner_state)
    step = jax.jit(outer_step(tx, mode))
    good, start = rows(1, L)[0], {"w": jnp.asarray(START, jnp.float32), "v": jnp.ones(3)}
    x, before = step(start, tx.init(start), good)
    expected, expected_state = step(x, before, good)
    for bad, position in itertools.product((np.nan, np.inf, -np.inf), (0, L // 2, L - 1)):
        batches = good.copy()
        batches[position] = bad
        params, state = step(x, before, batches)
        assert_same(params, x)
        assert layout(state) == layout(before)
        assert_same(state.base_state, before.base_state)
        assert_finite(state.inner_state)
        assert entropic_diagnostics(state).nonfinite_gradients >= 1
        # The next update works.
        params, state = step(params, state, good)
        assert_finite((params, state._replace(diagnostics=None)))
        assert np.all(np.asarray(params["w"]) != np.asarray(x["w"]))
        assert_same(state.count, expected_state.count + 1)
        assert entropic_diagnostics(state).nonfinite_gradients == 0
        if reset_inner_state:  # it is as if nothing had been, but for the count
            assert_same(params, expected)
            assert_same(state.base_state, expected_state.base_state)
            assert_same(state.langevin_average, expected_state.langevin_average)


def test_one_inner_step_that_is_not_finite_is_not_taken() -> None:
    tx, x = build("scan", inner_steps=1), jnp.ones(2)
    updates, state = jax.jit(tx.update)(jnp.array([1.0, jnp.nan]), tx.init(x), x)
    assert_same(updates, jnp.zeros(2))
    assert_finite((state.base_state, state.inner_state))


def test_a_base_optimizer_that_is_not_finite_is_not_followed() -> None:
    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf / 0.0, updates), state + 1

    base = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    tx, x = build("scan_none", base=base), jnp.ones(2)
    params, state = jax.jit(outer_step(tx, "scan_none"))(x, tx.init(x), rows(1, L)[0])
    assert_same(params, x)
    assert state.base_state == 0


@every_mode
def test_a_base_that_hides_it_does_not_keep_it_in_the_inner_momentum(mode: str) -> None:
    base = optax.chain(optax.zero_nans(), optax.sgd(1.0))
    tx = build(mode, optax.trace(DECAY), base=base, reset_inner_state=False)
    step = jax.jit(outer_step(tx, mode))
    batches, start = rows(1, L)[0].copy(), jnp.asarray(START, jnp.float32)
    batches[L // 2] = np.nan
    params, state = step(start, tx.init(start), batches)
    assert_finite(state.inner_state)
    before = np.asarray(anchor_params(state, params))
    params, state = step(params, state, rows(1, L)[0])
    assert_finite((params, state._replace(diagnostics=None)))
    assert np.all(np.asarray(anchor_params(state, params)) != before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, L // 2, L - 1])
def test_an_unguarded_stream_keeps_x(position: int, bad: float) -> None:
    # x′ is one update from the loop's params; x must outlive whatever happens to it.
    tx = build("streaming", optax.trace(DECAY), base=optax.adamw(0.1), reset_inner_state=False)
    step = jax.jit(outer_step(tx, "streaming"))
    batches, start = rows(1, L)[0].copy(), jnp.asarray(START, jnp.float32)
    batches[position] = bad
    params, state = step(start, tx.init(start), batches)
    x = anchor_params(state, params)
    assert_finite(x)
    assert_finite((state.anchor, state.base_state, state.inner_state))
    # The next cycle starts at x, and works.
    assert_finite(params)
    params, state = step(params, state, rows(1, L)[0])
    assert_finite((params, state._replace(diagnostics=None)))
    assert np.any(np.asarray(anchor_params(state, params)) != np.asarray(x))


def test_a_streamed_step_that_overflows_in_float16_is_not_taken() -> None:
    # 1.2e5 is finite in the accumulator's float32, and not in the params' float16.
    tx = build("streaming", inner_learning_rate=1.0, scope=0.0)
    step = jax.jit(outer_step(tx, "streaming", lambda params, batch: batch))
    start = jnp.array([6e4, 1.0], jnp.float16)
    still = np.zeros((L, 2), np.float16)
    rising = still.copy()
    rising[0, 0] = -6e4
    params, state = step(start, tx.init(start), rising)
    assert_same(params, start)
    params, state = step(params, state, still)
    assert_same(anchor_params(state, params), start)


# apply_if_finite around the whole.


def test_apply_if_finite_around_a_scan() -> None:
    tx = optax.apply_if_finite(build("scan", base=optax.adam(0.1)), 5)
    step = jax.jit(outer_step(tx, "scan"))
    good, start = rows(1, L)[0], jnp.asarray(START, jnp.float32)
    x, before = step(start, tx.init(start), good)
    expected, expected_state = step(x, before, good)
    for position in (0, 1, L - 1):
        batches = good.copy()
        batches[position] = np.nan
        params, state = step(x, before, batches)
        assert_same(params, x)
        assert layout(state) == layout(before)
        assert_finite(state.inner_state._replace(diagnostics=None))
        if position == 0:  # the incoming gradient: the wrapper sees it, and nothing moves
            assert state.total_notfinite == 1
            assert_same(state.inner_state, before.inner_state)
        params, state = step(params, state, good)
        assert_same(params, expected)
        assert_same(state.inner_state.base_state, expected_state.inner_state.base_state)
        assert_same(state.inner_state.langevin_iterate, expected_state.inner_state.langevin_iterate)
        assert_same(state.inner_state.langevin_average, expected_state.inner_state.langevin_average)
        assert state.notfinite_count == 0


def test_apply_if_finite_around_a_stream_leaves_the_bad_gradient_out() -> None:
    tx = optax.apply_if_finite(build("streaming", optax.trace(DECAY)), 5)
    update = jax.jit(tx.update)
    start = jnp.asarray(START, jnp.float32)

    def run(batches: np.ndarray) -> tuple[Any, Any]:
        params, state = start, tx.init(start)
        for batch in batches:
            updates, state = update(gradient(params, batch), state, params)
            params = optax.apply_updates(params, updates)
            assert_finite(params)
        return params, state

    good = rows(1, L + 2)[0]
    expected, expected_state = run(good)
    for position in (0, L // 2, L - 1):
        params, state = run(np.insert(good, position, np.nan))
        assert_close(params, expected)
        assert_close(state.inner_state, expected_state.inner_state)
        assert state.total_notfinite == 1


# Diagnostics.


@every_mode
def test_diagnostics_count_every_bad_gradient(mode: str) -> None:
    guard = optax.apply_if_finite(optax.identity(), 100)
    tx = build(mode, guard)
    step, init = jax.jit(outer_step(tx, mode)), jax.jit(tx.init)
    start = {"w": jnp.asarray(START, jnp.float32), "v": jnp.ones(1)}
    for bad in ([], [1], [0, 3], [1, 2, 4], list(range(L))):
        batches = rows(1, L)[0].copy()
        batches[bad] = np.inf
        _, state = step(start, init(start), batches)
        record = entropic_diagnostics(state)
        assert record.nonfinite_gradients == len(bad)
        assert record.gradient_evaluations == L
        assert_finite((record.pseudo_gradient_norm, record.langevin_distance, record.scope))


def test_the_count_of_bad_gradients_starts_afresh_in_each_cycle() -> None:
    tx = build("streaming", optax.apply_if_finite(optax.identity(), 100))
    update = jax.jit(tx.update)
    params = jnp.asarray(START, jnp.float32)
    state, counts = tx.init(params), []
    for number in range(2 * L):
        bad = number in (1, 2, L + 3)
        grads = jnp.full(2, jnp.nan) if bad else jnp.ones(2)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        counts.append(int(entropic_diagnostics(state).nonfinite_gradients))
    assert counts == [0, 1, 2, 2, 2, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [10, _guard._SMALL + 1], ids=["pooled", "alone"])
def test_one_bad_element_is_seen_in_a_leaf_of_any_size(size: int, bad: float) -> None:
    leaf = jnp.linspace(-1, 1, size)
    assert _guard.all_finite({"a": leaf, "b": jnp.ones(3)})
    assert not _guard.all_finite({"a": leaf.at[size // 3].set(bad), "b": jnp.ones(3)})


def test_a_sum_beyond_float16_is_of_finite_numbers() -> None:
    assert _guard.all_finite(jnp.full(_guard._SMALL + 1, 2.0, jnp.float16))


def test_what_only_float64_holds_is_finite() -> None:
    """Beyond float32, in a pool with leaves of float32."""
    with double_precision():
        tree = {"a": jnp.array([1e300, -1e300]), "b": jnp.ones(3, jnp.float32)}
        assert jax.jit(_guard.all_finite)(tree)


@pytest.mark.parametrize("mode", MODES)
def test_one_bad_element_of_a_large_parameter_costs_the_update(mode: str) -> None:
    tx = entropic(
        optax.sgd(1.0), inner_steps=3, noise_scale=0, streaming=mode == "streaming",
        inner_transform=optax.identity(),
    )  # fmt: skip
    x = jnp.ones(_guard._SMALL + 1)

    def grad_fn(params: Any, batch: Any) -> Any:
        return (params + 1).at[7].set(batch)

    step = jax.jit(outer_step(tx, mode, grad_fn))
    assert_same(step(x, tx.init(x), jnp.array([0.0, jnp.nan, 0.0]))[0], x)
    assert (step(x, tx.init(x), jnp.zeros(3))[0][8:] < 0.9).all()
