"""Extra arguments reach the base optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from entropy_sgd_jax import entropic
from tests.core.contract.common import L, every_factory, every_mode, noisy, small_params
from tests.core.helpers import Factory, assert_close, assert_same, rows, train, training


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
def test_devices_that_share_a_batch_share_its_loss(streaming: bool) -> None:
    """Or a base optimizer that looks at it, as reduce_on_plateau does, drives them apart."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **extra: Any) -> Any:
        return jax.tree.map(lambda leaf: -value * leaf, updates), state

    base = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    for inner_steps in (0, 1):
        tx = entropic(
            base, inner_steps=inner_steps, noise_scale=0, streaming=streaming, batch_axis_name="b"
        )

        def step(loss: jax.Array, tx: Any = tx) -> Any:
            params = jnp.ones(2)
            return tx.update(params, tx.init(params), params, value=loss)[0]

        updates = jax.jit(jax.vmap(step, axis_name="b"))(jnp.array([1.0, 3.0]))
        assert_same(updates[0], updates[1])


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
