"""One trace is enough, and none is needed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.core.contract.common import (
    L,
    entropy_sgd_1,
    every_factory,
    every_mode,
    quiet,
    small_params,
)
from tests.core.helpers import Factory, assert_close, gradient, outer_step, rows, train


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
