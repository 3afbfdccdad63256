"""A cycle that turned non-finite does not count, whatever is inside, outside and carried on.

The reference is the two loops in plain Optax, which leave the bad cycle out.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from entropy_sgd_jax import anchor_params, diloco, entropic, entropic_diagnostics
from tests.core.helpers import (
    MODES,
    ROUNDED_AS_USUAL,
    assert_finite,
    assert_same,
    double_precision,
    outer_step,
    rows,
)

T, L, BAD = 4, 4, 1  # outer steps, Langevin steps, the outer step that goes wrong
RATE, SCOPE, AVERAGING = 0.05, 0.3, 0.6
START = {"w": jnp.array([[1.0, -0.5], [0.3, 2.0]]), "v": jnp.array([[0.7, -1.5, 0.1]])}
TARGETS = jnp.sin(jnp.arange(T * L, dtype=jnp.float32)).reshape(T, L)
PLACES = [(step, leaf) for step in (0, 2, L - 1) for leaf in START]

every_mode = pytest.mark.parametrize("mode", MODES)


def grad_fn(params: Any, batch: Any) -> Any:
    """Of a quartic around the target, with what is injected on top."""
    target, injected = batch
    return jax.tree.map(lambda x, bad: (x - target) + 0.1 * x**3 + bad, params, injected)


def injections(value: float) -> Any:
    """For each place a gradient's addition at each step of each cycle: zero but for one."""

    def one(place: tuple[int, str]) -> Any:
        step, leaf = place
        zeros = jax.tree.map(lambda x: jnp.zeros((T, L, *x.shape)), START)
        return zeros | {leaf: zeros[leaf].at[BAD, step, 0, 0].set(value)}

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(one, PLACES))


def ours(tx: Any, mode: str, injected: Any) -> tuple[Any, Any]:
    """x after each cycle, and the last state."""
    step = outer_step(tx, mode, grad_fn)

    def cycle(carry: Any, batches: Any) -> Any:
        params, state = step(*carry, batches)
        return (params, state), anchor_params(state, params)

    carry, history = jax.lax.scan(cycle, (START, tx.init(START)), (TARGETS, injected))
    return history, carry[1]


def by_optax(inner: Any, outer: Any, keep: bool) -> Any:
    """x after each cycle of the two loops, without the bad one."""
    x, inner_state, outer_state, history = START, inner.init(START), outer.init(START), []
    none = jax.tree.map(jnp.zeros_like, START)

    def step(x: Any, carry: Any, target: jax.Array) -> Any:
        y, mean, state = carry
        d, state = inner.update(grad_fn(y, (target, none)), state, y)
        y = jax.tree.map(lambda y, d, x: y - RATE * (d + SCOPE * (y - x)), y, d, x)
        mean = jax.tree.map(lambda m, y: (1 - AVERAGING) * m + AVERAGING * y, mean, y)
        return (y, mean, state), None

    for t in range(T):
        if t == BAD:
            inner_state = inner.init(x)
        else:
            start = x, x, inner_state if keep else inner.init(x)
            (_, mean, state), _ = jax.lax.scan(functools.partial(step, x), start, TARGETS[t])
            pseudo = jax.tree.map(jnp.subtract, x, mean)
            updates, outer_state = outer.update(pseudo, outer_state, x)
            x, inner_state = optax.apply_updates(x, updates), state
        history.append(x)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *history)


INSIDE = {
    "SGD": optax.identity(),
    "momentum": optax.trace(0.9, nesterov=True),
    "Adam": optax.scale_by_adam(),
    "Lion": optax.scale_by_lion(),
}
OUTSIDE = {
    "SGD": optax.sgd(0.7),
    "momentum": optax.sgd(0.7, 0.9, True),
    "Adam": optax.adam(0.05),
    "Lion": optax.lion(0.05),
}
if hasattr(optax.contrib, "MuonDimensionNumbers"):
    matrices = {leaf: optax.contrib.MuonDimensionNumbers() for leaf in START}
    INSIDE["Muon"] = optax.contrib.scale_by_muon(weight_dimension_numbers=matrices)
    OUTSIDE["Muon"] = optax.contrib.muon(0.05)


@every_mode
@pytest.mark.parametrize("name", INSIDE)
def test_one_inf_anywhere_costs_its_own_cycle(name: str, mode: str) -> None:
    cases = {
        (place, keep): (inner, outer, keep)
        for place, inner, outer in (
            ("inside", INSIDE[name], optax.sgd(0.7, 0.9)),
            ("outside", optax.trace(0.9), OUTSIDE[name]),
        )
        for keep in (False, True)
    }

    @jax.jit
    def run(injected: Any) -> Any:
        found = {}
        for case, (inner, outer, keep) in cases.items():
            tx = entropic(
                outer, inner_transform=inner, inner_steps=L, inner_learning_rate=RATE,
                scope=SCOPE, averaging=AVERAGING, noise_scale=0, reset_inner_state=not keep,
                streaming=mode == "streaming",
            )  # fmt: skip
            history, state = jax.vmap(lambda bad, tx=tx: ours(tx, mode, bad))(injected)
            found[case] = history, state, by_optax(inner, outer, keep)
        return found

    for case, (history, state, expected) in run(injections(np.inf)).items():
        assert_finite((state.inner_state, state.base_state, state.langevin_iterate))
        for leaf in START:
            for i, place in enumerate(PLACES):
                np.testing.assert_allclose(
                    history[leaf][i], expected[leaf], rtol=1e-5, atol=1e-5, err_msg=f"{case}{place}"
                )


@every_mode
def test_a_gradient_too_large_for_adam_freezes_no_coordinate(mode: str) -> None:
    # (3e19)² is beyond float32: v is infinite, m / √v is zero, and x′ never shows it.
    inner, outer = optax.scale_by_adam(), optax.sgd(0.7)
    tx = entropic(
        outer, inner_transform=inner, inner_steps=L, inner_learning_rate=RATE, scope=SCOPE,
        averaging=AVERAGING, noise_scale=0, reset_inner_state=False, streaming=mode == "streaming",
    )  # fmt: skip
    history, state = jax.jit(jax.vmap(lambda bad: ours(tx, mode, bad)))(injections(3e19))
    assert_finite(state.inner_state)
    expected = by_optax(inner, outer, keep=True)
    for leaf in START:
        for found in history[leaf]:
            np.testing.assert_allclose(found, expected[leaf], rtol=1e-5, atol=1e-5)


@every_mode
def test_x_never_lands_beyond_float16(mode: str) -> None:
    tx = entropic(
        optax.sgd(1.0), inner_steps=L, inner_learning_rate=0.25, scope=0, noise_scale=0,
        streaming=mode == "streaming",
    )  # fmt: skip
    step = jax.jit(outer_step(tx, mode, lambda params, batch: jnp.full_like(params, -30_000)))
    params = jnp.array([60_000, 1], jnp.float16)
    state = tx.init(params)
    for _ in range(12):
        params, state = step(params, state, jnp.zeros(L))
        assert_finite((params, anchor_params(state, params)))
    assert params[0] == 60_000  # the largest float16 is 65,504


@every_mode
def test_a_state_that_starts_with_inf_is_no_reason(mode: str) -> None:
    best = optax.GradientTransformation(  # as the best loss so far of reduce_on_plateau
        lambda params: jnp.full((), jnp.inf), lambda updates, state, params=None: (updates, state)
    )
    x = {}
    for name, chained in {"with": [best], "without": []}.items():
        tx = entropic(
            optax.chain(*chained, optax.sgd(1.0)),
            inner_transform=optax.chain(*chained, optax.trace(0.9)),
            inner_steps=L, noise_scale=0, streaming=mode == "streaming",
        )  # fmt: skip
        x[name], _ = jax.jit(lambda bad, tx=tx: ours(tx, mode, bad))(
            jax.tree.map(lambda x: jnp.zeros((T, L, *x.shape)), START)
        )
    assert_same(x["with"], x["without"])


@every_mode
@pytest.mark.parametrize("reset", [False, True])
def test_schedules_inside_go_on_counting(reset: bool, mode: str) -> None:
    """Over resets, and over the restart after a bad cycle."""
    rates = jnp.arange(1.0, T * L + 1)  # the direction is its own number, wherever x′ is
    inner = optax.chain(
        optax.trace(0.0),  # remembers the NaN
        optax.scale_by_schedule(lambda count: rates[count]),
    )
    tx = entropic(
        optax.sgd(1.0), inner_transform=inner, inner_steps=L, inner_learning_rate=1.0, scope=0,
        averaging=1, noise_scale=0, reset_inner_state=reset, streaming=mode == "streaming",
    )  # fmt: skip
    step = jax.jit(outer_step(tx, mode, lambda params, batch: jnp.ones_like(params) + batch))
    params, bad = jnp.zeros(2), np.zeros((T, L), np.float32)
    bad[BAD, 1] = np.nan
    state, fell = tx.init(params), []
    for batches in bad:
        before = params
        params, state = step(params, state, batches)
        fell.append(float((before - params)[0]))
    expected = np.asarray(rates).reshape(T, L).sum(1)
    expected[BAD] = 0
    np.testing.assert_allclose(fell, expected, rtol=1e-6)


@every_mode
@pytest.mark.parametrize("inject", [False, True])
def test_a_schedule_of_weight_decay_goes_on_counting(inject: bool, mode: str) -> None:
    """It decays in the first ten of sixteen steps: 0.9¹⁰ is left of the weight."""

    def schedule(count: Any) -> Any:
        return jnp.where(count < 10, 1.0, 0.0)

    counts = jax.tree.leaves(optax.add_decayed_weights(schedule).init(jnp.ones(2)))
    if not inject and not counts:
        pytest.skip("this version of Optax takes no schedule of weight decay")

    decay = optax.inject_hyperparams(optax.add_decayed_weights) if inject else None
    tx = entropic(
        optax.sgd(1.0), inner_transform=(decay or optax.add_decayed_weights)(schedule),
        inner_steps=L, inner_learning_rate=0.1, scope=0, averaging=1, noise_scale=0,
        streaming=mode == "streaming",
    )  # fmt: skip
    step = jax.jit(outer_step(tx, mode, lambda params, batch: jnp.zeros_like(params)))
    params = jnp.ones(2)
    state = tx.init(params)
    for _ in range(T):
        params, state = step(params, state, jnp.zeros(L))
    np.testing.assert_allclose(params, 0.9**10, rtol=1e-6)


@every_mode
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("wrap", [optax.conditionally_mask, optax.conditionally_transform])
def test_a_condition_inside_goes_on_counting(wrap: Any, reset: bool, mode: str) -> None:
    """It takes ten of sixteen steps: of 1 each, or of 0.5 where it halves them."""
    halved = wrap is optax.conditionally_transform
    inner = wrap(optax.scale(0.5) if halved else optax.identity(), lambda step: step < 10)
    tx = entropic(
        optax.sgd(1.0), inner_transform=inner, inner_steps=L, inner_learning_rate=1.0, scope=0,
        averaging=1, noise_scale=0, reset_inner_state=reset, streaming=mode == "streaming",
    )  # fmt: skip
    step = jax.jit(outer_step(tx, mode, lambda params, batch: jnp.ones_like(params)))
    params = jnp.zeros(2)
    state = tx.init(params)
    for _ in range(T):
        params, state = step(params, state, jnp.zeros(L))
    np.testing.assert_allclose(params, -(10 * 0.5 + T * L - 10) if halved else -10.0)


@every_mode
def test_noise_of_optax_is_new_in_every_cycle(mode: str) -> None:
    tx = entropic(
        optax.sgd(1.0), inner_transform=optax.add_noise(1.0, 0.0, 0), inner_steps=L,
        inner_learning_rate=1.0, scope=0, averaging=1, noise_scale=0,
        streaming=mode == "streaming",
    )  # fmt: skip
    step = jax.jit(outer_step(tx, mode, lambda params, batch: jnp.zeros_like(params)))
    params, moves = jnp.zeros(64), []
    state = tx.init(params)
    for _ in range(T):
        before = params
        params, state = step(params, state, jnp.zeros(L))
        moves.append(params - before)
    # Of independent ones the correlation over 64 numbers is 1/8 in size, of equal ones 1.
    assert np.abs(np.corrcoef(moves) - np.eye(T)).max() < 5 / 8


@pytest.mark.parametrize("averaging", [1, 0.5])
def test_params_of_a_stream_stay_finite_in_a_bad_cycle(averaging: float) -> None:
    tx = entropic(
        optax.sgd(0.5), inner_transform=optax.trace(0.9), inner_steps=L, averaging=averaging,
        noise_scale=0, reset_inner_state=False, streaming=True, diagnostics=True,
    )  # fmt: skip
    update = jax.jit(tx.update)
    for position in range(L):
        params = x = jnp.array([1.0, -2.0])
        state = tx.init(params)
        for step in range(L):
            grads = params.at[0].set(jnp.nan) if step == position else params
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            assert_finite(params)
            assert_same(anchor_params(state, params), x)
        assert_same(params, x)
        assert entropic_diagnostics(state).nonfinite_gradients == 1
        assert entropic_diagnostics(state).refused_updates == 1
        assert_finite((state.inner_state, state.base_state))


@every_mode
def test_a_frozen_run_shows_in_the_diagnostics(mode: str) -> None:
    """NaN in the data, or a schedule of NaN, and every update is refused."""
    for rate, data in ((0.1, jnp.nan), (jnp.nan, 1.0)):
        tx = entropic(
            optax.sgd(1.0), inner_steps=L, inner_learning_rate=lambda count, rate=rate: rate,
            noise_scale=0, diagnostics=True, streaming=mode == "streaming",
        )  # fmt: skip
        step = jax.jit(outer_step(tx, mode))
        params = jnp.ones(2)
        state = tx.init(params)
        for updates in (1, 2, 3):
            params, state = step(params, state, jnp.full(L, data))
            assert entropic_diagnostics(state).refused_updates == updates
        assert_same(params, jnp.ones(2))


@pytest.mark.parametrize("name", INSIDE)
def test_both_modes_are_one_trajectory_to_the_last_digits(name: str) -> None:
    """In float64, with schedules of both counts, a bad cycle, and diagnostics that count."""
    with double_precision():

        def wide(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)

        start, injected = wide(START), wide(injections(np.nan))
        ends = {}
        for mode in MODES:
            tx = entropic(
                optax.adam(lambda t: 0.02 * (1 - t / 24)),
                inner_transform=INSIDE[name],
                inner_steps=L,
                inner_learning_rate=lambda count: 0.02 * (1 - count / 24),
                scope=lambda t: 0.1 * 1.1**t,
                averaging=lambda t: 0.5 + t / 10,
                noise_scale=lambda t: 0.01 / (1 + t),
                reset_inner_state=False,
                streaming=mode == "streaming",
            )
            step = outer_step(tx, mode, grad_fn)

            def run(bad: Any, tx: Any = tx, step: Any = step) -> Any:
                carry = start, tx.init(start)
                batches = (wide(TARGETS), bad)
                (params, state), _ = jax.lax.scan(
                    lambda carry, rows: (step(*carry, rows), None), carry, batches
                )
                return anchor_params(state, params), state.base_state, state.inner_state

            ends[mode] = jax.jit(jax.vmap(run), compiler_options=ROUNDED_AS_USUAL)(injected)
        for mode in MODES[1:]:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
                ends[mode],
                ends["scan"],
            )


@every_mode
def test_schedules_see_int32(mode: str) -> None:
    seen = []

    def schedule(count: jax.Array) -> Any:
        seen.append(count.dtype)
        return 0.1

    with double_precision():
        tx = entropic(
            optax.sgd(1.0), inner_steps=L, inner_learning_rate=schedule, scope=schedule,
            noise_scale=schedule, averaging=schedule, streaming=mode == "streaming",
        )  # fmt: skip
        step = outer_step(tx, mode)
        params = jnp.ones(2)
        jax.eval_shape(step, params, tx.init(params), jnp.zeros(L))
    assert set(seen) == {jnp.dtype(jnp.int32)}


# Replicas: one that is sick is left out of the mean, and the mean may be weighted.

N, D = 4, 3
CURVATURE = np.linspace(0.5, 2.0, D)
DATA = np.random.default_rng(1).normal(size=(T, L, N, D))


def np_diloco(weights: np.ndarray, sick: set[tuple[int, int]], decay: float = 0.9) -> np.ndarray:
    """x after each cycle: momentum inside, Nesterov SGD (0.7, 0.9) outside, by NumPy."""
    x, outer, buffers, history = np.zeros(D), np.zeros(D), np.zeros((N, D)), []
    for t in range(T):
        total, weighted = 0.0, np.zeros(D)
        for a in range(N):
            if (t, a) in sick:
                buffers[a] = 0  # it starts again at the common x
                continue
            y = x
            for step in range(L):
                buffers[a] = decay * buffers[a] + CURVATURE * np.tanh(y - DATA[t, step, a])
                y = y - 0.1 * buffers[a]
            total, weighted = total + weights[t, a], weighted + weights[t, a] * (x - y)
        if total > 0:
            pseudo = weighted / total
            outer = 0.9 * outer + pseudo
            x = x - 0.7 * (pseudo + 0.9 * outer)
        else:  # nobody steps, and whoever ran starts again as well
            buffers[:] = 0
        history.append(x)
    return np.stack(history)


def jax_diloco(weights: np.ndarray | None, sick: set[tuple[int, int]], streaming: bool) -> Any:
    tx = diloco(
        replica_axis_name="replica", inner_steps=L, inner_learning_rate=0.1,
        inner_transform=optax.trace(0.9), streaming=streaming,
    )  # fmt: skip
    bad = np.zeros((T, L, N, D))
    for place, (t, a) in enumerate(sorted(sick)):
        bad[t, place % L, a, place % D] = [np.nan, np.inf][place % 2]

    def gradient(x: Any, batch: Any) -> Any:
        return jnp.asarray(CURVATURE) * jnp.tanh(x - batch[0]) + batch[1]

    def run(data: Any, bad: Any, weights: Any) -> Any:
        def cycle(carry: Any, rows: Any) -> Any:
            data, bad, weight = rows
            extra = {} if unweighted else {"replica_weight": weight}
            step = outer_step(tx, "streaming" if streaming else "scan_none", gradient, **extra)
            carry = step(*carry, (data, bad))
            return carry, (anchor_params(carry[1], carry[0]), carry[0])

        x = jnp.zeros(D)
        return jax.lax.scan(cycle, (x, tx.init(x)), (data, bad, weights))[1]

    unweighted = weights is None
    given = np.ones((T, N)) if weights is None else weights
    replicas = jax.vmap(run, axis_name="replica", in_axes=(2, 2, 1))
    return jax.jit(replicas)(jnp.asarray(DATA), jnp.asarray(bad), jnp.asarray(given))


SICK = {(0, 1), (1, 0), (1, 3), (3, 2)}
ALL_SICK = {(1, a) for a in range(N)}
WEIGHTS = np.array([[1, 2, 0.5, 3], [2, 1, 1, 1], [0, 1, 0, 2], [1, 1, 4, 1]])
ABSENT = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1.0]])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("weights", "sick"),
    [(None, SICK), (WEIGHTS, set()), (WEIGHTS, SICK), (None, ALL_SICK), (ABSENT, set())],
    ids=["sick", "weighted", "weighted and sick", "all sick", "absent"],
)
def test_sick_and_weighted_replicas(weights: Any, sick: Any, streaming: bool) -> None:
    with double_precision():
        x, params = jax_diloco(weights, sick, streaming)
        expected = np_diloco(np.ones((T, N)) if weights is None else weights, sick)
        for a in range(N):
            np.testing.assert_allclose(x[a], expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(x, x[:1].repeat(N, axis=0))
        assert_finite(params)


def test_a_negative_weight_is_refused() -> None:
    tx = diloco(inner_steps=1, inner_learning_rate=0.1)
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=r"`replica_weight` must be a number in .*got -1"):
        tx.update(params, tx.init(params), params, replica_weight=-1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_without_momentum_or_mean_a_bad_gradient_costs_the_cycle(position: int, mode: str) -> None:
    """No μ and no state of D remembers it: the last x′ must, though `params` stay finite."""
    tx = entropic(
        optax.sgd(1.0), inner_steps=3, inner_learning_rate=0.1, noise_scale=0, averaging=1,
        streaming=mode == "streaming", diagnostics=True,
    )  # fmt: skip
    step, x = jax.jit(outer_step(tx, mode)), jnp.array([1.0, -2.0])
    batches = rows(1, 3)[0].copy()
    batches[position] = np.nan
    params, state = step(x, tx.init(x), batches)
    assert_finite(params)
    assert_same(anchor_params(state, params), x)
    assert entropic_diagnostics(state).refused_updates == 1
