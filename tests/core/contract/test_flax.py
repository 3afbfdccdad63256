"""In Flax's training loops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from entropy_sgd_jax import anchor_params
from tests.core.contract.common import L, entropy_sgd_1, quiet, small_params
from tests.core.helpers import assert_close, gradient, loss, rows, train


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
