"""The names and contents of the state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.core.contract.common import L, entropy_sgd_1, every_mode, noisy
from tests.core.helpers import FACTORIES, assert_same, rows, train


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
