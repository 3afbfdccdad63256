"""What `grad_fn` is called with."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import anchor_params
from tests.core.contract.common import L, entropy_sgd_1, every_factory, quiet
from tests.core.helpers import FACTORIES, Factory, assert_close, assert_same, gradient, rows, train


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
