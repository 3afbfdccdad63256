"""Optax's transformations around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import anchor_params, entropy_sgd
from tests.core.contract.common import L, entropy_sgd_1, every_mode, noisy, quiet, small_params
from tests.core.helpers import (
    assert_close,
    assert_finite,
    assert_same,
    gradient,
    layout,
    partition,
    rows,
    train,
)


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
