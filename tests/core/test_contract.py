"""Optax's contract, for every factory in every mode, and every wrapper that must work."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import (
    EntropicDiagnostics,
    EntropicState,
    anchor_params,
    entropic,
    entropic_diagnostics,
    entropy_sgd,
    scoping,
)
from tests.core.helpers import (
    FACTORIES,
    MODES,
    Factory,
    assert_close,
    assert_finite,
    assert_same,
    build,
    double_precision,
    gradient,
    layout,
    loss,
    map_params,
    outer_step,
    partition,
    rows,
    train,
    training,
)

L = 3

every_mode = pytest.mark.parametrize("mode", MODES)
every_factory = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def mixed_params() -> dict[str, Any]:
    """A scalar, a zero-size leaf, a None, an empty dict and a nested NamedTuple."""
    return {
        "scalar": jnp.float32(0.5),
        "empty": jnp.zeros((0, 3), jnp.float32),
        "none": None,
        "nothing": {},
        "layers": [Layer(jnp.ones((2, 3)), None)],
    }


def small_params() -> dict[str, Any]:
    """Few leaves compile fast."""
    return {"w": jnp.ones(2)}


def entropy_sgd_1(**kwargs: Any) -> optax.GradientTransformationExtraArgs:
    """The paper's start: an outer step of 1, without momentum."""
    return entropy_sgd(1.0, **kwargs)


def noisy(factory: Factory, mode: str, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
    """With so much noise that a change of it shows."""
    return build(factory, mode, **{"inner_steps": L, "noise_scale": 0.1, "key": 3, **kwargs})


def quiet(factory: Factory, mode: str, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
    """Without noise, which is most of the compile time."""
    return noisy(factory, mode, **{"noise_scale": 0, **kwargs})


# Layout: structure, shapes and dtypes. Tracing is enough to know it.


@every_mode
@every_factory
def test_layout_through_cond(factory: Factory, mode: str) -> None:
    tx, params = noisy(factory, mode, diagnostics=True), mixed_params()
    grads = None if mode == "scan_none" else params
    calls = {"scan": L - 1, "scan_none": L, "streaming": 0}[mode]
    scan_args = {"grad_fn": gradient, "batches": jnp.ones(calls)} if calls else {}

    def maybe(flag: jax.Array, params: Any, state: Any) -> Any:
        def take() -> Any:
            return tx.update(grads, state, params, **scan_args)

        def leave() -> Any:
            return jax.tree.map(jnp.zeros_like, params), state

        return jax.lax.cond(flag, take, leave)  # refuses branches of different types

    state = tx.init(params)
    updates, after = jax.eval_shape(maybe, True, params, state)
    assert layout(updates) == layout(params)
    assert layout(after) == layout(state)
    assert isinstance(after, EntropicState)


@every_mode
@every_factory
def test_layout_through_scan(factory: Factory, mode: str) -> None:
    with double_precision():
        dtypes = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]
        params = {jnp.dtype(dtype).name: jnp.ones(2, dtype) for dtype in dtypes}
        tx = noisy(factory, mode, diagnostics=True, scope=scoping(0.1, 0.1))
        trained, state = jax.eval_shape(training(tx, mode), params, rows(2, L))
        assert layout(trained) == layout(params)
        assert layout(state) == layout(jax.eval_shape(tx.init, params))
        for name, leaf in params.items():
            wide = jnp.promote_types(leaf.dtype, jnp.float32)
            assert state.langevin_iterate[name].dtype == wide
            assert state.langevin_average[name].dtype == wide


@every_mode
def test_training_loop_over_mixed_params(mode: str) -> None:
    half = {"half": jnp.ones(2, jnp.float16), "brain": jnp.ones(2, jnp.bfloat16)}
    params = {**mixed_params(), **half}
    tx = noisy(entropy_sgd_1, mode, diagnostics=True)
    trained, state = train(tx, mode, params, rows(2, L), value=jnp.float32(1))
    assert state.count == 2
    # The rows given in a scan have no value_and_grad_fn.
    diagnostics = state.diagnostics._replace(inner_loss=jnp.zeros(()))
    assert_finite((trained, state._replace(diagnostics=diagnostics)))
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(trained), strict=True):
        assert np.all(np.asarray(before) != np.asarray(after))


@every_mode
def test_double_precision_is_used(mode: str) -> None:
    with double_precision():
        tx = entropy_sgd_1(streaming=mode == "streaming", inner_steps=L, inner_momentum=None,
                           noise_scale=0, scope=0, averaging=1)  # fmt: skip
        params, _ = train(tx, mode, jnp.ones(1, jnp.float64), np.zeros((1, L)))
        np.testing.assert_allclose(params, 0.9**L, rtol=1e-7)
        assert params.dtype == jnp.float64


@every_mode
def test_grad_fn_sees_the_dtype_of_params(mode: str) -> None:
    seen = []

    def grad_fn(params: Any, batch: Any) -> Any:
        seen.append(params["w"].dtype)
        return gradient(params, batch)

    params = {"w": jnp.ones(3, jnp.bfloat16)}
    jax.eval_shape(training(noisy(entropy_sgd_1, mode), mode, grad_fn), params, rows(1, L))
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


@every_mode
@pytest.mark.parametrize("dtype", [jnp.float16, "bfloat16", np.float32])
def test_accumulator_dtype(mode: str, dtype: Any) -> None:
    tx = noisy(entropy_sgd_1, mode, accumulator_dtype=dtype)
    params, state = jax.eval_shape(training(tx, mode), {"w": jnp.ones(3)}, rows(2, L))
    assert state.langevin_iterate["w"].dtype == state.langevin_average["w"].dtype == dtype
    assert params["w"].dtype == jnp.float32


@every_mode
def test_a_wide_inner_transform_may_meet_narrow_accumulators(mode: str) -> None:
    momentum = optax.trace(0.9, accumulator_dtype=jnp.float32)
    tx = noisy(
        lambda **kwargs: entropic(
            optax.sgd(0.5), inner_transform=momentum, accumulator_dtype=jnp.bfloat16, **kwargs
        ),
        mode,
    )
    params, state = train(tx, mode, jnp.ones(2, jnp.bfloat16), rows(2, L))
    assert_finite(params)
    assert np.all(np.asarray(params) != 1)
    assert state.langevin_iterate.dtype == jnp.bfloat16
    assert jax.tree.leaves(state.inner_state)[0].dtype == jnp.float32


@every_mode
def test_small_steps_are_not_rounded_away(mode: str) -> None:
    # 20 steps of 1e-3: each alone is below half of a bfloat16 ulp at 1, together they are 5 ulps.
    tx = entropy_sgd_1(streaming=mode == "streaming", inner_steps=20, inner_learning_rate=1e-3,
                       inner_momentum=None, scope=0, noise_scale=0, averaging=1)  # fmt: skip

    def grad_fn(params: Any, batch: Any) -> Any:
        return jax.tree.map(jnp.ones_like, params)

    params, _ = train(tx, mode, jnp.ones(2, jnp.bfloat16), rows(1, 20), grad_fn)
    np.testing.assert_allclose(np.asarray(params, np.float32), 0.98, atol=0.004)


@every_mode
@every_factory
def test_abstract_init(factory: Factory, mode: str) -> None:
    tx = noisy(factory, mode, diagnostics=True, key=jax.random.key(0))
    params = mixed_params()
    shapes = jax.eval_shape(lambda: params)
    assert layout(jax.eval_shape(tx.init, shapes)) == layout(tx.init(params))


@every_mode
@every_factory
def test_map_params(factory: Factory, mode: str) -> None:
    tx = noisy(factory, mode, diagnostics=True)
    params = mixed_params()
    state = tx.init(params)
    assert_same(map_params(tx, lambda leaf: leaf, state), state)

    doubled = map_params(tx, lambda leaf: 2 * leaf, state)
    assert_same(doubled.langevin_iterate["scalar"], jnp.float32(1.0))
    assert_same(doubled.langevin_average["scalar"], jnp.float32(1.0))
    if mode == "streaming":
        assert_same(doubled.anchor["scalar"], jnp.float32(1.0))
    assert_same(doubled.count, state.count)
    assert_same(doubled.rng_key, state.rng_key)


@every_mode
@pytest.mark.parametrize("params", [{}, (), jnp.float32(1.0), (jnp.zeros((0,)),)], ids=str)
def test_degenerate_trees(mode: str, params: Any) -> None:
    trained, state = train(quiet(entropy_sgd_1, mode), mode, params, rows(1, L))
    assert layout(trained) == layout(params)
    assert_finite((trained, state))
    assert state.count == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("leaf", [np.ones(2), np.float32(1), 1.0, np.ones(2, np.float16)], ids=repr)
def test_params_from_numpy_and_python(leaf: Any, streaming: bool) -> None:
    tx = quiet(entropy_sgd_1, "streaming" if streaming else "scan", inner_steps=1)
    update = jax.jit(tx.update)
    updates, state = update(leaf, tx.init(leaf), leaf)
    as_jax = jnp.asarray(leaf)
    expected, expected_state = update(as_jax, tx.init(as_jax), as_jax)
    assert_close(updates, expected)
    assert_close(state, expected_state)


# Retracing and un-jitted use.


@every_mode
@every_factory
def test_no_second_trace(factory: Factory, mode: str) -> None:
    traces = []
    tx = quiet(factory, mode, diagnostics=True)
    inner = outer_step(tx, mode)

    @jax.jit
    def step(params: Any, state: Any, batches: Any) -> Any:
        traces.append(1)
        return inner(params, state, batches)

    params = small_params()
    state = tx.init(params)
    for batches in rows(3, L):
        params, state = step(params, state, batches)
    assert len(traces) == 1
    assert state.count == 3


@pytest.mark.filterwarnings("ignore:.*outside of jax.jit")
@pytest.mark.parametrize("mode", ["scan", "streaming"])
def test_update_runs_without_jit(mode: str) -> None:
    tx, params, batch = quiet(entropy_sgd_1, mode, inner_steps=2), jnp.ones(2), rows(1, 2)
    extra = {} if mode == "streaming" else {"grad_fn": gradient, "batches": batch[0, 1:]}
    state = tx.init(params)
    for first in batch[0] if mode == "streaming" else batch[0, :1]:
        updates, state = tx.update(gradient(params, first), state, params, **extra)
        params = optax.apply_updates(params, updates)
    assert_close((params, state), train(tx, mode, jnp.ones(2), batch))


# Extra arguments.


def scaled_by_gain(seen: list[str]) -> optax.GradientTransformationExtraArgs:
    """A base optimizer that takes `gain` from the update call, and notes all it was given."""

    def update(updates: Any, state: Any, params: Any = None, *, gain: Any, **extra: Any) -> Any:
        seen.extend(extra)
        return jax.tree.map(lambda leaf: -gain * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize("inner_steps", [1, L])
@every_mode
def test_extra_arguments_reach_the_base_optimizer(mode: str, inner_steps: int) -> None:
    seen: list[str] = []

    def run(base: optax.GradientTransformation, **extra: Any) -> Any:
        tx = entropic(base, inner_steps=inner_steps, streaming=mode == "streaming")
        return train(tx, mode, jnp.ones(2), rows(1, inner_steps), **extra)[0]

    trained = run(scaled_by_gain(seen), gain=0.25, colour=jnp.ones(()))
    assert set(seen) == {"colour"}
    assert_close(trained, run(optax.sgd(0.25)))


@pytest.mark.parametrize("streaming", [False, True])
def test_extra_arguments_reach_the_base_optimizer_alone(streaming: bool) -> None:
    seen: list[str] = []
    tx, grads = entropic(scaled_by_gain(seen), inner_steps=0, streaming=streaming), jnp.ones(2)
    updates, _ = tx.update(grads, tx.init(grads), grads, gain=0.25, colour=1)
    assert_same(updates, -0.25 * grads)
    assert set(seen) == {"colour"}


@every_mode
@every_factory
def test_unknown_extra_arguments_are_ignored(factory: Factory, mode: str) -> None:
    tx = noisy(factory, mode)

    def program(**extra_args: Any) -> str:
        return str(jax.make_jaxpr(training(tx, mode, **extra_args))(small_params(), rows(1, L)))

    assert program(value=3.0, colour="red", note=object()) == program()


# What grad_fn is called with.


@pytest.mark.parametrize(("mode", "calls"), [("scan", L - 1), ("scan_none", L)])
def test_without_batches_grad_fn_sees_the_number_of_its_call(mode: str, calls: int) -> None:
    tx = entropy_sgd_1(
        inner_steps=L,
        inner_momentum=None,
        noise_scale=0,
        scope=0,
        averaging=1,
        inner_learning_rate=1.0,
    )
    params = jnp.zeros(L)

    def grad_fn(params: Any, call: jax.Array) -> jax.Array:
        return -(call + 1.0) * jax.nn.one_hot(call, L)  # call ℓ writes ℓ + 1 into place ℓ

    grads = None if mode == "scan_none" else jnp.zeros(L)
    update = jax.jit(functools.partial(tx.update, grad_fn=grad_fn))
    updates, _ = update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, np.where(np.arange(L) < calls, np.arange(L) + 1, 0))


def test_stacked_arrays_may_be_indexed_by_the_number_of_the_call() -> None:
    tx, params = quiet(entropy_sgd_1, "scan_none"), jnp.ones(2)
    batches = jnp.asarray(rows(1, L)[0])
    by_index = jax.jit(
        lambda state: tx.update(
            None, state, params, grad_fn=lambda params, call: gradient(params, batches[call])
        )
    )
    by_batch = jax.jit(
        lambda state: tx.update(None, state, params, grad_fn=gradient, batches=batches)
    )
    assert_close(by_index(tx.init(params)), by_batch(tx.init(params)))


def test_batches_may_hold_keys() -> None:
    # Fresh dropout in every Langevin step.
    def grad_fn(params: Any, batch: dict[str, Any]) -> Any:
        kept = jax.random.bernoulli(batch["dropout"], 0.5, params.shape)
        return gradient(params, batch["x"]) * kept

    batches = {"x": jnp.zeros((2, L)), "dropout": jax.random.split(jax.random.key(0), (2, L))}
    tx = entropy_sgd_1(inner_steps=L, noise_scale=0, scope=0)
    params, _ = train(tx, "scan_none", jnp.ones(64), batches, grad_fn)
    # Two outer steps of three masks make many different survivals; one mask reused makes few.
    assert len(np.unique(np.round(params, 5))) > 8


def test_the_incoming_gradient_is_spent() -> None:
    # L = 1: a whole update on `grads`, and grad_fn is not needed.
    tx = entropy_sgd_1(inner_steps=1, inner_momentum=None, noise_scale=0, averaging=1)
    params, grads = jnp.ones(2), jnp.array([1.0, 3.0])
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * grads, rtol=1e-6)


def test_value_and_grad_fn_is_grad_fn_with_a_value() -> None:
    tx, params = quiet(entropy_sgd_1, "scan_none"), jnp.ones(2)
    batches = rows(1, L)[0]
    value_and_grad = jax.value_and_grad(lambda params, batch: 0.5 * jnp.sum((params - batch) ** 2))
    one = jax.jit(
        lambda s: tx.update(None, s, params, value_and_grad_fn=value_and_grad, batches=batches)
    )
    other = jax.jit(lambda s: tx.update(None, s, params, grad_fn=gradient, batches=batches))
    assert_close(one(tx.init(params)), other(tx.init(params)))


@every_factory
@pytest.mark.parametrize("streaming", [False, True])
def test_no_inner_steps_is_the_base_optimizer_alone(factory: Factory, streaming: bool) -> None:
    params = {"w": jnp.arange(3.0)}
    bases = {
        FACTORIES["entropic(sgd)"]: optax.sgd(0.5),
        FACTORIES["entropic(adam)"]: optax.adam(0.02),
        FACTORIES["entropic(adamw)"]: optax.adamw(0.02, weight_decay=1e-4),
        FACTORIES["entropy_sgd"]: optax.sgd(0.5, 0.9, True),
        FACTORIES["entropy_adam"]: optax.adam(0.02),
    }
    tx = factory(inner_steps=0, streaming=streaming, diagnostics=True)
    batches = rows(3, 1)
    trained, state = train(tx, "streaming", params, batches)
    assert_same(trained, train(bases[factory], "streaming", params, batches)[0])
    assert_same(anchor_params(state, trained), trained)
    assert state.count == 3


# Convergence.


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


# One trajectory in every mode.


WITH_MOMENTUM = ("entropic(adamw)", "entropy_sgd")


@pytest.mark.parametrize(
    ("name", "reset_inner_state"),
    [*((name, True) for name in FACTORIES), *((name, False) for name in WITH_MOMENTUM)],
)
def test_every_mode_is_one_trajectory(name: str, reset_inner_state: bool) -> None:
    def run(mode: str) -> tuple[Any, EntropicState]:
        tx = noisy(
            FACTORIES[name],
            mode,
            scope=scoping(0.1, 0.5),
            inner_learning_rate=lambda count: 0.1 + 0.01 * count,
            averaging=lambda count: 0.5 + 0.1 * count,
            reset_inner_state=reset_inner_state,
            noise_scale=0.1 if name == "entropy_sgd" else 0,
        )
        return train(tx, mode, small_params(), rows(3, L))

    scan, state = run("scan")
    for mode in ("scan_none", "streaming"):
        other, other_state = run(mode)
        assert_close(anchor_params(other_state, other), scan)
        assert_close(other_state.base_state, state.base_state)
        assert_close(other_state.count, state.count)
        if not reset_inner_state:
            assert_close(other_state.inner_state, state.inner_state)


def test_streaming_moves_x_in_every_lth_update_only() -> None:
    tx, params = quiet(entropy_sgd_1, "streaming"), jnp.ones(2)
    state, anchors, iterates = tx.init(params), [], []
    update = jax.jit(tx.update)
    for batch in rows(2, L).ravel():
        updates, state = update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        anchors.append(np.asarray(anchor_params(state, params)))
        iterates.append(np.asarray(params))
    moves = [bool(np.any(a != b)) for a, b in itertools.pairwise(anchors)]
    assert moves == [False, True, False, False, True]
    assert all(np.all(a != b) for a, b in itertools.pairwise(iterates))
    assert_same(iterates[L - 1], anchors[L - 1])  # x′ starts the next cycle at x
    assert_same(anchors[0], np.ones(2, np.float32))


# inject_hyperparams.

INJECTED: dict[str, dict[str, Any]] = {
    "numbers": {
        "learning_rate": 0.7, "momentum": 0.5, "scope": 0.2, "inner_learning_rate": 0.3,
        "averaging": 0.6, "inner_momentum": 0.8, "noise_scale": 0.1, "key": 5,
    },
    "integers": {
        "learning_rate": 1, "inner_learning_rate": 1, "averaging": 1, "scope": 0, "noise_scale": 0,
    },
    "NumPy": {
        "learning_rate": np.float32(0.7), "scope": np.float64(0.2), "key": np.uint32(5),
        "noise_scale": np.float32(0),
    },
    "schedules": {
        "learning_rate": optax.linear_schedule(1.0, 0.1, 3), "scope": scoping(0.1, 0.5),
        "noise_scale": optax.constant_schedule(0.1),
        "averaging": optax.linear_schedule(0.2, 0.9, 3),
    },
    "typed key": {"learning_rate": 1.0, "noise_scale": 0.1, "key": jax.random.key(5)},
    "legacy key": {"learning_rate": 1.0, "noise_scale": 0.0, "key": jax.random.PRNGKey(5)},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["scan", "streaming"])
@pytest.mark.parametrize("hyperparams", INJECTED.values(), ids=INJECTED.keys())
def test_inject_hyperparams(hyperparams: dict[str, Any], mode: str) -> None:
    if mode == "streaming" and callable(hyperparams["learning_rate"]):
        pytest.skip("inject_hyperparams counts updates, which are Langevin steps in this mode")
    is_typed = jnp.issubdtype(getattr(hyperparams.get("key"), "dtype", int), jax.dtypes.prng_key)
    if is_typed and not hasattr(optax, "tree"):
        pytest.skip("inject_hyperparams takes typed keys from Optax 0.2.5")
    static = {"inner_steps": L, "streaming": mode == "streaming"}
    make = optax.inject_hyperparams(entropy_sgd, static_args=("inner_steps",))
    params = small_params()
    trained, state = train(make(**hyperparams, **static), mode, params, rows(3, L))
    plain = entropy_sgd(**hyperparams, **static)
    expected, expected_state = train(plain, mode, params, rows(3, L))
    assert_close(trained, expected)
    assert_close(state.inner_state.langevin_average, expected_state.langevin_average)
    assert_close(anchor_params(state, trained), anchor_params(expected_state, expected))


def test_an_injected_hyperparameter_can_be_changed_in_the_state() -> None:
    make = optax.inject_hyperparams(entropy_sgd, static_args=("inner_steps",))
    tx, params = make(1.0, inner_steps=L, noise_scale=0.0), jnp.ones(2)
    step = jax.jit(outer_step(tx, "scan"))
    state = tx.init(params)
    state.hyperparams["learning_rate"] = jnp.float32(0.0)
    assert_same(step(params, state, rows(1, L)[0])[0], params)


def test_inject_hyperparams_around_entropic() -> None:
    make = optax.inject_hyperparams(entropic, static_args=("inner_steps",))
    params = jnp.ones(2)
    injected = make(optax.adam(0.1), inner_steps=L, inner_transform=optax.trace(0.9))
    plain = entropic(optax.adam(0.1), inner_steps=L, inner_transform=optax.trace(0.9))
    assert_close(
        train(injected, "scan", params, rows(2, L))[0], train(plain, "scan", params, rows(2, L))[0]
    )


# Donation.


@every_mode
@pytest.mark.parametrize("kwargs", [{"diagnostics": True}, {"averaging": 1}], ids=str)
def test_donation(mode: str, kwargs: dict[str, Any]) -> None:
    key = jax.random.key(7)
    tx = noisy(entropy_sgd_1, mode, key=key, reset_inner_state=False, **kwargs)
    step = jax.jit(outer_step(tx, mode), donate_argnums=(0, 1))

    def run(init: Callable[[Any], Any]) -> Any:
        params = small_params()
        state = init(params)
        for batches in rows(2, L):
            params, state = step(params, state, batches)
        return params, state

    first = run(tx.init)
    assert_same(first, run(tx.init))  # from the same tx, after its first state was donated
    assert_same(first, run(jax.jit(tx.init)))
    assert_same(key, jax.random.key(7))


@pytest.mark.parametrize(
    "make_key",
    [jax.random.key, jax.random.PRNGKey, jnp.int32, functools.partial(jax.random.key, impl="rbg")],
)
def test_donation_leaves_the_key_of_the_user_alone(make_key: Callable[[int], Any]) -> None:
    key = make_key(7)
    tx, params = noisy(entropy_sgd_1, "scan", key=key), jnp.ones(2)
    step = jax.jit(outer_step(tx, "scan"), donate_argnums=(1,))
    first = step(params, tx.init(params), rows(1, L)[0])
    assert not key.is_deleted()
    assert_same(step(params, tx.init(params), rows(1, L)[0]), first)


@every_mode
def test_donating_params_leaves_the_state_alone(mode: str) -> None:
    tx = quiet(entropy_sgd_1, mode)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    jax.jit(outer_step(tx, mode), donate_argnums=0)(params, state, rows(1, L)[0])
    assert_finite(state)  # an array deleted with params would raise
    again = jax.jit(outer_step(tx, mode))({"w": jnp.ones(2)}, state, rows(1, L)[0])
    assert_finite(again)


# Transformations around it.


@every_mode
def test_chain_and_named_chain(mode: str) -> None:
    def wrap(name: str, tx: Any) -> Any:
        if name == "chain":
            return optax.chain(optax.identity(), tx, optax.identity())
        return optax.named_chain(("before", optax.identity()), ("entropic", tx))

    params, batches = small_params(), rows(2, L)
    tx = quiet(entropy_sgd_1, mode)
    expected, expected_state = train(tx, mode, params, batches)
    for name in ("chain", "named_chain"):
        trained, state = train(wrap(name, tx), mode, params, batches)
        assert_close(trained, expected)
        assert_close(anchor_params(state, trained), anchor_params(expected_state, expected))


def test_a_transformation_before_it_acts_on_every_gradient_when_streaming() -> None:
    clipped = optax.chain(
        optax.clip_by_global_norm(1e-6), noisy(entropy_sgd_1, "streaming", noise_scale=0)
    )
    params, _ = train(clipped, "streaming", jnp.ones(2), rows(2, L))
    np.testing.assert_allclose(params, 1, atol=1e-5)


@every_mode
def test_scaling_the_updates_of_a_scan(mode: str) -> None:
    if mode == "streaming":
        pytest.skip("the updates are Langevin steps")
    params, batches = jnp.ones(2), rows(1, L)
    tx = quiet(entropy_sgd_1, mode)
    halved, _ = train(optax.chain(tx, optax.scale(0.5)), mode, params, batches)
    assert_close(halved - params, 0.5 * (train(tx, mode, params, batches)[0] - params))


@every_mode
def test_freezing_by_a_mask_after_it(mode: str) -> None:
    frozen = {"w": False, "v": True}
    freeze = optax.masked(optax.set_to_zero(), frozen)
    tx = optax.chain(quiet(entropy_sgd_1, mode), freeze)
    params = {"w": jnp.ones(2), "v": jnp.full(3, 2.0)}
    trained, state = train(tx, mode, params, rows(3, L))
    assert_same(trained["v"], params["v"])
    assert np.all(np.asarray(trained["w"]) != 1)
    assert_same(anchor_params(state, trained)["v"], params["v"])


def test_masked_when_streaming() -> None:
    params = {"w": jnp.ones(2), "v": {"a": jnp.full(3, 2.0), "b": jnp.zeros(1)}}
    mask = {"w": True, "v": False}
    tx = noisy(entropy_sgd_1, "streaming")
    masked = optax.chain(
        optax.masked(tx, mask),
        optax.masked(optax.set_to_zero(), jax.tree.map(lambda on: not on, mask)),
    )
    trained, state = train(masked, "streaming", params, rows(2, L)[:, :2])  # stops within a cycle
    alone, alone_state = train(tx, "streaming", {"w": params["w"]}, rows(2, L)[:, :2])
    assert_close(trained, {**params, **alone})
    x = anchor_params(state, trained)
    assert layout(x) == layout(params)
    assert_close(x, {**params, **anchor_params(alone_state, alone)})
    assert np.any(np.asarray(x["w"]) != np.asarray(trained["w"]))


def test_partition_in_two_groups_when_streaming() -> None:
    groups = {
        "slow": entropy_sgd(1.0, inner_steps=4, key=1, noise_scale=0.1, streaming=True),
        "fast": entropy_sgd(0.5, inner_steps=3, key=2, noise_scale=0.1, streaming=True),
        "plain": optax.sgd(0.1),
    }
    labels = {"w": "slow", "v": "fast", "u": "plain"}
    params = {"w": jnp.ones(2), "v": jnp.full(3, 2.0), "u": jnp.zeros(1)}
    tx = partition(groups, labels)
    trained, state = train(tx, "streaming", params, rows(1, 5))
    x = anchor_params(state, trained)
    assert layout(x) == layout(params)
    for name, label in labels.items():
        alone, alone_state = train(groups[label], "streaming", params[name], rows(1, 5))
        assert_close(trained[name], alone)
        if label != "plain":
            assert_close(x[name], anchor_params(alone_state, alone))
            assert np.any(np.asarray(x[name]) != np.asarray(trained[name]))
    assert_same(x["u"], trained["u"])


def test_partition_with_a_group_that_needs_no_gradient_function() -> None:
    # L = 1 in scan mode needs no grad_fn, so it needs no whole tree either.
    one = entropy_sgd(1.0, inner_steps=1, noise_scale=0)
    tx = partition({"one": one, "plain": optax.sgd(0.1)}, {"w": "one", "v": "plain"})
    params = {"w": jnp.ones(2), "v": jnp.ones(1)}
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert_finite(updates)


@pytest.mark.parametrize("mode", ["scan", "streaming"])
def test_multi_steps_averages_the_incoming_gradients(mode: str) -> None:
    if mode == "scan" and not hasattr(optax, "tree"):
        pytest.skip("MultiSteps hands functions on from Optax 0.2.5")
    tx, params = noisy(entropy_sgd_1, mode), {"w": jnp.ones(2)}
    extra = {} if mode == "streaming" else {"grad_fn": gradient, "batches": jnp.ones(L - 1)}
    steps = optax.MultiSteps(tx, 2)

    @jax.jit
    def micro(state: Any, params: Any, batch: Any) -> Any:
        updates, state = steps.update(gradient(params, batch), state, params, **extra)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def whole(state: Any, params: Any, batches: Any) -> Any:
        updates, state = tx.update(gradient(params, jnp.mean(batches)), state, params, **extra)
        return optax.apply_updates(params, updates), state

    expected, expected_state = params, tx.init(params)
    state = steps.init(params)
    for pair in np.arange(1.0, 11.0, dtype=np.float32).reshape(5, 2):
        params, state = micro(state, params, pair[0])
        assert_same(params, expected)  # nothing moves in between
        params, state = micro(state, params, pair[1])
        expected, expected_state = whole(expected_state, expected, pair)
        assert_close(params, expected)
    assert_close(anchor_params(state, params), anchor_params(expected_state, expected))
    assert_close(state.inner_opt_state.count, expected_state.count)


@pytest.mark.parametrize("mode", ["scan", "streaming"])
def test_apply_if_finite_is_transparent(mode: str) -> None:
    tx = noisy(entropy_sgd_1, mode)
    params, batches = small_params(), rows(2, L)
    trained, state = train(optax.apply_if_finite(tx, 5), mode, params, batches)
    expected, expected_state = train(tx, mode, params, batches)
    assert_close(trained, expected)
    assert_close(anchor_params(state, trained), anchor_params(expected_state, expected))


@pytest.mark.parametrize("mode", ["scan", "streaming"])
@pytest.mark.parametrize("wrap", [optax.conditionally_mask, optax.conditionally_transform])
def test_conditional_wrappers(wrap: Callable[..., Any], mode: str) -> None:
    tx, params = quiet(entropy_sgd_1, mode), {"w": jnp.ones(2)}
    wrapped = wrap(tx, lambda step: step < L)
    extra = {} if mode == "streaming" else {"grad_fn": gradient, "batches": jnp.ones(L - 1)}
    update = jax.jit(lambda grads, state: wrapped.update(grads, state, params, **extra))
    state = wrapped.init(params)
    for step in range(L + 1):
        updates, state = update(params, state)
        moved = np.any(np.asarray(updates["w"]) != 0)
        if step < L:
            assert moved
        elif wrap is optax.conditionally_mask:
            assert not moved
        else:
            assert_same(updates, params)  # the incoming gradient passes through
    assert state.inner_state.count == (1 if mode == "streaming" else L)


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


@every_mode
def test_vmap_over_init_and_update(mode: str) -> None:
    def run(key: jax.Array, params: Any) -> Any:
        tx = noisy(entropy_sgd_1, mode, key=key)
        return training(tx, mode)(params, rows(2, L))

    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jnp.ones((3, 4))}
    together = jax.jit(jax.vmap(run))(keys, params)
    single = jax.jit(run)
    singles = [single(keys[i], {"w": params["w"][i]}) for i in range(3)]
    assert_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles))
    assert np.all(np.std(np.asarray(together[0]["w"]), axis=0) > 1e-3)


def test_vmap_over_hyperparameters() -> None:
    def run(scope: jax.Array) -> Any:
        return training(quiet(entropy_sgd_1, "scan", scope=scope), "scan")(jnp.ones(2), rows(2, L))

    scopes = jnp.array([0.0, 0.5, 1.0])
    together, _ = jax.jit(jax.vmap(run))(scopes)
    single = jax.jit(run)
    assert_close(together, jnp.stack([single(scope)[0] for scope in scopes]))
    assert np.all(np.std(np.asarray(together), axis=0) > 1e-3)


def test_flax_train_state_when_streaming() -> None:
    train_state = pytest.importorskip("flax.training.train_state")
    tx, params = quiet(entropy_sgd_1, "streaming"), small_params()
    loop = train_state.TrainState.create(apply_fn=None, params=params, tx=tx)
    step = jax.jit(lambda loop, batch: loop.apply_gradients(grads=gradient(loop.params, batch)))
    for batch in rows(1, L + 1)[0]:
        loop = step(loop, batch)
    expected, expected_state = params, tx.init(params)
    update = jax.jit(tx.update)
    for batch in rows(1, L + 1)[0]:
        updates, expected_state = update(gradient(expected, batch), expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_close(loop.params, expected)
    assert_close(
        anchor_params(loop.opt_state, loop.params), anchor_params(expected_state, expected)
    )


def test_flax_train_state_in_scan_mode_says_what_to_do() -> None:
    # apply_gradients hands keyword arguments to replace(), never to the optimizer.
    train_state = pytest.importorskip("flax.training.train_state")
    params = small_params()
    tx = quiet(entropy_sgd_1, "scan")
    loop = train_state.TrainState.create(apply_fn=None, params=params, tx=tx)
    with pytest.raises(ValueError, match=r"TrainState.*call tx\.update"):
        loop.apply_gradients(grads=params)


@pytest.mark.parametrize("mode", ["scan", "streaming"])
def test_flax_nnx_optimizer(mode: str) -> None:
    nnx = pytest.importorskip("flax.nnx")
    if not hasattr(nnx, "as_pure"):
        pytest.skip("nnx.as_pure is of Flax 0.12")
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx, params = quiet(entropy_sgd_1, mode), nnx.as_pure(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, batches: Any) -> None:
        def grads_of(batch: Any) -> Any:
            return nnx.grad(lambda model: loss(nnx.as_pure(nnx.state(model, nnx.Param)), batch))(
                model
            )

        if mode == "streaming":
            for batch in batches:
                optimizer.update(model, grads_of(batch))
        else:  # the pure state of the parameters is what grad_fn sees
            optimizer.update(model, grads_of(batches[0]), grad_fn=gradient, batches=batches[1:])

    step(model, optimizer, jnp.asarray(rows(1, L)[0]))
    expected, _ = train(tx, mode, params, rows(1, L))
    assert_close(
        jax.tree.leaves(nnx.as_pure(nnx.state(model, nnx.Param))), jax.tree.leaves(expected)
    )


# Leaves that are refused.


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, jnp.uint8, jnp.bool_])
def test_leaves_that_are_not_real_are_refused(dtype: Any, streaming: bool) -> None:
    tx = entropy_sgd_1(streaming=streaming)
    with pytest.raises(ValueError, match=r"params\['v'\].*real.*" + jnp.dtype(dtype).name):
        tx.init({"w": jnp.ones(2), "v": jnp.ones(2, dtype)})


def test_complex_parameters_by_the_advised_wrapper() -> None:
    tx = optax.contrib.split_real_and_imaginary(
        entropy_sgd(
            1.0,
            inner_steps=L,
            noise_scale=0,
            scope=0,
            inner_momentum=None,
            averaging=1,
            streaming=True,
        )
    )
    params = jnp.array([1 + 2j, -3j], jnp.complex64)
    update = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(L):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, 0.9**L * np.array([1 + 2j, -3j]), rtol=1e-5)


# Diagnostics.


def chain_by_numpy(
    x: np.ndarray, batches: np.ndarray, step_size: float, scope: float, averaging: float
) -> dict[str, float]:
    """What `entropic_diagnostics` must say of one update without noise."""
    iterate, average = x.copy(), x.copy()
    losses, norms, distances, first = [], [], [], None
    for batch in batches:
        grads = iterate - batch
        first = grads if first is None else first
        losses.append(0.5 * np.sum(grads**2))
        norms.append(np.linalg.norm(grads))
        iterate = iterate - step_size * (grads + scope * (iterate - x))
        average = (1 - averaging) * average + averaging * iterate
        distances.append(np.linalg.norm(iterate - x))
    pseudo = x - average
    return {
        "inner_loss": np.mean(losses),
        "inner_gradient_norm": np.mean(norms),
        "langevin_distance": np.mean(distances),
        "nonfinite_gradients": 0,
        "pseudo_gradient_norm": np.linalg.norm(pseudo),
        "alignment": pseudo @ first / np.linalg.norm(pseudo) / np.linalg.norm(first),
        "scope": scope,
    }


def observed(mode: str, with_value: bool = True) -> tuple[Any, np.ndarray, np.ndarray]:
    """The record of the second of two updates, x before it, and all batches."""
    tx = optax.chain(
        optax.identity(),
        entropic(
            optax.sgd(1.0), inner_steps=L, inner_learning_rate=0.3, noise_scale=0, averaging=0.75,
            scope=lambda count: 0.5 * (count + 1), diagnostics=True, streaming=mode == "streaming",
        ),
    )  # fmt: skip
    x, batches = jnp.array([1.0, -2.0, 0.5]), rows(2, L)
    value_and_grad = jax.value_and_grad(lambda p, batch: 0.5 * jnp.sum((p - batch) ** 2))

    @jax.jit
    def step(x: Any, state: Any, batches: Any) -> Any:
        if mode == "streaming":
            for batch in batches:
                value, grads = value_and_grad(x, batch)
                value = {"value": value} if with_value else {}
                updates, state = tx.update(grads, state, x, **value)
                x = optax.apply_updates(x, updates)
            return x, state
        value, grads = value_and_grad(x, batches[0])
        extra = {"value": value} if with_value else {}
        grads, batches = (grads, batches[1:]) if mode == "scan" else (None, batches)
        updates, state = tx.update(
            grads, state, x, value_and_grad_fn=value_and_grad, batches=batches, **extra
        )
        return optax.apply_updates(x, updates), state

    x1, state = step(x, tx.init(x), batches[0])
    _, state = step(x1, state, batches[1])
    return entropic_diagnostics(state), np.asarray(x1, np.float64), batches


@every_mode
def test_diagnostics_against_numpy(mode: str) -> None:
    record, x, batches = observed(mode)
    expected = chain_by_numpy(x, batches[1].astype(np.float64), 0.3, 1.0, 0.75)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(record, name), value, rtol=1e-4, err_msg=name)
    assert record.gradient_evaluations == 2 * L


def test_mean_inner_loss_of_the_losses_that_were_given() -> None:
    # In scan mode with `grads`, the loss at x is unknown; the other L - 1 are not.
    record, x, batches = observed("scan", with_value=False)
    iterate, losses = x, []
    for batch in batches[1]:
        losses.append(0.5 * np.sum((iterate - batch) ** 2))
        iterate = iterate - 0.3 * (iterate - batch + 1.0 * (iterate - x))
    np.testing.assert_allclose(record.inner_loss, np.mean(losses[1:]), rtol=1e-4)


def test_no_loss_given_is_nan() -> None:
    record, _, _ = observed("streaming", with_value=False)
    assert np.isnan(record.inner_loss)
    assert np.isfinite(record.inner_gradient_norm)


@pytest.mark.parametrize("mode", ["scan", "scan_none"])
def test_a_grad_fn_without_losses_leaves_the_given_one(mode: str) -> None:
    """`value=` is then the only loss there is: of the incoming gradient."""
    tx = entropy_sgd_1(inner_steps=L, noise_scale=0, diagnostics=True)
    _, state = train(tx, mode, jnp.ones(2), rows(1, L), value=jnp.float32(7.0))
    inner_loss = entropic_diagnostics(state).inner_loss
    assert np.isnan(inner_loss) if mode == "scan_none" else inner_loss == 7


def test_norms_of_half_precision_do_not_overflow() -> None:
    # 3e4² is beyond float16, and the sum of 1e4 such squares beyond it by far.
    tx = entropy_sgd_1(inner_steps=1, diagnostics=True, accumulator_dtype=jnp.float16)
    grads = jnp.full(10_000, 3e4, jnp.float16)
    params = jnp.zeros_like(grads)
    _, state = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_allclose(entropic_diagnostics(state).inner_gradient_norm, 3e6, rtol=1e-3)


@every_mode
def test_diagnostics_change_nothing(mode: str) -> None:
    params, batches = small_params(), rows(2, L)
    with_record = train(quiet(entropy_sgd_1, mode, diagnostics=True), mode, params, batches)
    without = train(quiet(entropy_sgd_1, mode), mode, params, batches)
    assert_close(with_record[0], without[0])
    assert without[1].diagnostics is None


@pytest.mark.parametrize("streaming", [False, True])
def test_diagnostics_at_any_depth(streaming: bool) -> None:
    params = {"w": jnp.ones(2), "v": jnp.ones(1)}
    plain = entropy_sgd_1(inner_steps=1, noise_scale=0, streaming=streaming, diagnostics=True)
    wrapped = [
        plain,
        optax.chain(optax.identity(), optax.chain(plain, optax.identity())),
        optax.named_chain(("entropic", plain)),
        optax.masked(plain, {"w": True, "v": False}),
        optax.apply_if_finite(plain, 3),
        optax.MultiSteps(plain, 1).gradient_transformation(),
        partition({"a": plain, "b": optax.sgd(0.1)}, {"w": "a", "v": "b"}),
    ]
    for tx in wrapped:
        record = entropic_diagnostics(tx.init(params))
        assert isinstance(record, EntropicDiagnostics)
    _, state = jax.jit(wrapped[1].update)(params, wrapped[1].init(params), params)
    record = entropic_diagnostics(state)
    assert record.gradient_evaluations == 1
    np.testing.assert_allclose(record.alignment, 1, rtol=1e-5)


def test_diagnostics_before_the_first_update() -> None:
    tx = entropy_sgd_1(diagnostics=True)
    record = entropic_diagnostics(tx.init(jnp.ones(2)))
    assert record.gradient_evaluations == 0
    assert record.nonfinite_gradients == 0


def test_alignment_is_zero_where_undefined() -> None:
    tx = entropy_sgd_1(inner_steps=1, noise_scale=0, diagnostics=True)
    params = jnp.ones(2)
    _, state = jax.jit(tx.update)(jnp.zeros(2), tx.init(params), params)
    assert entropic_diagnostics(state).alignment == 0


# anchor_params.


@pytest.mark.parametrize("mode", ["scan", "scan_none"])
def test_anchor_params_in_scan_mode_are_params(mode: str) -> None:
    params, state = train(quiet(entropy_sgd_1, mode), mode, small_params(), rows(1, L))
    assert_same(anchor_params((optax.EmptyState(), state), params), params)


def test_anchor_params_keep_their_dtype() -> None:
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    tx = quiet(entropy_sgd_1, "streaming")
    trained, state = train(tx, "streaming", params, rows(1, 2))
    assert layout(anchor_params(state, trained)) == layout(params)
    assert_same(anchor_params(state, trained), params)


def test_anchor_params_may_be_jitted() -> None:
    trained, state = train(quiet(entropy_sgd_1, "streaming"), "streaming", jnp.ones(2), rows(1, 2))
    assert_same(jax.jit(anchor_params)(state, trained), anchor_params(state, trained))


# State.


@every_mode
def test_the_state_has_the_names_of_the_contract(mode: str) -> None:
    state = noisy(entropy_sgd_1, mode).init({"w": jnp.ones(2, jnp.bfloat16)})
    assert state._fields == (
        "count", "rng_key", "langevin_iterate", "langevin_average", "inner_state", "base_state",
        "anchor", "inner_count", "diagnostics",
    )  # fmt: skip
    assert jnp.issubdtype(state.rng_key.dtype, jax.dtypes.prng_key)
    assert (state.anchor is None) == (state.inner_count is None) == (mode != "streaming")
    assert state.diagnostics is None
    assert state.count.dtype == jnp.int32


@every_mode
def test_the_state_holds_the_iterate_and_the_average(mode: str) -> None:
    # Two Langevin steps of an L of three when streaming, all three in a scan.
    steps = 2 if mode == "streaming" else L
    tx = entropy_sgd_1(
        inner_steps=L, inner_momentum=None, scope=0.5, noise_scale=0, streaming=mode == "streaming"
    )
    x, batches = np.array([1.0, -2.0]), rows(1, L)[:, :steps]
    _, state = train(tx, mode, jnp.asarray(x, jnp.float32), batches)
    iterate, average = x, x
    for batch in batches[0]:
        iterate = iterate - 0.1 * (iterate - batch + 0.5 * (iterate - x))
        average = 0.25 * average + 0.75 * iterate
    np.testing.assert_allclose(state.langevin_iterate, iterate, rtol=1e-5)
    np.testing.assert_allclose(state.langevin_average, average, rtol=1e-5)


def test_the_names_do_not_collide_with_those_of_adam() -> None:
    if not hasattr(optax, "tree"):
        pytest.skip("optax.tree is of Optax 0.2.5")
    tx, params = noisy(FACTORIES["entropy_adam"], "scan"), jnp.ones(2)
    state = optax.chain(tx).init(params)
    assert_same(optax.tree.get(state, "mu"), jnp.zeros(2))
    assert_same(optax.tree.get(state, "langevin_average"), params)
