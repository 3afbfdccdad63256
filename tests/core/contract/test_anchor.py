"""`anchor_params`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest

from entropy_sgd_jax import anchor_params
from tests.core.contract.common import L, entropy_sgd_1, quiet, small_params
from tests.core.helpers import assert_same, layout, rows, train


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
