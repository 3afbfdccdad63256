"""Every mode traces one trajectory."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import EntropicState, anchor_params, scoping
from tests.core.contract.common import L, entropy_sgd_1, noisy, quiet, small_params
from tests.core.helpers import FACTORIES, assert_close, assert_same, gradient, rows, train

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
