"""Donated arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from entropy_sgd_jax import entropic
from tests.core.contract.common import L, entropy_sgd_1, every_mode, noisy, quiet, small_params
from tests.core.helpers import assert_finite, assert_same, outer_step, rows


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


def keeps_params() -> optax.GradientTransformation:
    """A direction whose state is the parameters that it was started at."""
    return optax.GradientTransformation(lambda params: params, lambda g, state, _=None: (g, state))


@every_mode
@pytest.mark.parametrize("base", [optax.contrib.prodigy, optax.contrib.dog, optax.contrib.cocob])
def test_what_optax_keeps_of_the_params_is_a_copy(base: Any, mode: str) -> None:
    tx = entropic(
        base(), inner_transform=keeps_params(), inner_steps=L, streaming=mode == "streaming"
    )
    step = jax.jit(outer_step(tx, mode), donate_argnums=(0, 1))
    params = small_params()
    state = tx.init(params)
    for batches in rows(2, L):
        params, state = step(params, state, batches)
    assert_finite((params, state))


@every_mode
def test_donating_params_leaves_the_state_alone(mode: str) -> None:
    tx = quiet(entropy_sgd_1, mode)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    jax.jit(outer_step(tx, mode), donate_argnums=0)(params, state, rows(1, L)[0])
    assert_finite(state)  # an array deleted with params would raise
    again = jax.jit(outer_step(tx, mode))({"w": jnp.ones(2)}, state, rows(1, L)[0])
    assert_finite(again)
