"""Structure, shapes and dtypes, which tracing is enough to know."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import EntropicState, entropic, entropy_sgd, scoping
from tests.core.contract.common import (
    L,
    entropy_sgd_1,
    every_factory,
    every_mode,
    mixed_params,
    noisy,
    quiet,
)
from tests.core.helpers import (
    Factory,
    assert_close,
    assert_finite,
    assert_same,
    double_precision,
    gradient,
    layout,
    map_params,
    rows,
    train,
    training,
)


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


@pytest.mark.parametrize("inner_steps", [0, 1])
def test_wide_gradients_leave_narrow_parameters_and_states_narrow(inner_steps: int) -> None:
    tx, params = entropy_sgd(0.1, 0.9, inner_steps=inner_steps), jnp.ones(2, jnp.bfloat16)
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, jnp.ones(2), state, params)
    assert layout((updates, after)) == layout((params, state))
