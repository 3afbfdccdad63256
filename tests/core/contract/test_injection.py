"""`optax.inject_hyperparams` inside and outside."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import anchor_params, diloco, entropic, entropy_sgd, parle, scoping
from tests.core.contract.common import L, small_params
from tests.core.helpers import assert_close, assert_same, outer_step, rows, train

INJECTED: dict[str, dict[str, Any]] = {
    "numbers": {
        "learning_rate": 0.7, "momentum": 0.5, "scope": 0.2, "inner_learning_rate": 0.3,
        "averaging": 0.6, "inner_momentum": 0.8, "noise_scale": 0.1, "key": 5,
    },
    "integers": {
        "learning_rate": 1, "inner_learning_rate": 1, "averaging": 1, "scope": 0, "noise_scale": 0,
    },
    "NumPy": {
        "learning_rate": np.float32(0.7), "scope": np.float64(0.2), "key": np.uint32(5),
        "noise_scale": np.float32(0),
    },
    "schedules": {
        "learning_rate": optax.linear_schedule(1.0, 0.1, 3), "scope": scoping(0.1, 0.5),
        "noise_scale": optax.constant_schedule(0.1),
        "averaging": optax.linear_schedule(0.2, 0.9, 3),
    },
    "typed key": {"learning_rate": 1.0, "noise_scale": 0.1, "key": jax.random.key(5)},
    "legacy key": {"learning_rate": 1.0, "noise_scale": 0.0, "key": jax.random.PRNGKey(5)},
}  # fmt: skip


@pytest.mark.parametrize("mode", ["scan", "streaming"])
@pytest.mark.parametrize("hyperparams", INJECTED.values(), ids=INJECTED.keys())
def test_inject_hyperparams(hyperparams: dict[str, Any], mode: str) -> None:
    if mode == "streaming" and callable(hyperparams["learning_rate"]):
        pytest.skip("inject_hyperparams counts updates, which are Langevin steps in this mode")
    is_typed = jnp.issubdtype(getattr(hyperparams.get("key"), "dtype", int), jax.dtypes.prng_key)
    if is_typed and not hasattr(optax, "tree"):
        pytest.skip("inject_hyperparams takes typed keys from Optax 0.2.5")
    static = {"inner_steps": L, "streaming": mode == "streaming"}
    make = optax.inject_hyperparams(entropy_sgd, static_args=("inner_steps",))
    params = small_params()
    trained, state = train(make(**hyperparams, **static), mode, params, rows(3, L))
    plain = entropy_sgd(**hyperparams, **static)
    expected, expected_state = train(plain, mode, params, rows(3, L))
    assert_close(trained, expected)
    if expected_state.langevin_average is not None:  # as it is where α is the number 1
        assert_close(state.inner_state.langevin_average, expected_state.langevin_average)
    assert_close(anchor_params(state, trained), anchor_params(expected_state, expected))


def test_an_injected_hyperparameter_can_be_changed_in_the_state() -> None:
    make = optax.inject_hyperparams(entropy_sgd, static_args=("inner_steps",))
    tx, params = make(1.0, inner_steps=L, noise_scale=0.0), jnp.ones(2)
    step = jax.jit(outer_step(tx, "scan"))
    state = tx.init(params)
    state.hyperparams["learning_rate"] = jnp.float32(0.0)
    assert_same(step(params, state, rows(1, L)[0])[0], params)


def test_inject_hyperparams_around_entropic() -> None:
    make = optax.inject_hyperparams(entropic, static_args=("inner_steps",))
    params = jnp.ones(2)
    injected = make(optax.adam(0.1), inner_steps=L, inner_transform=optax.trace(0.9))
    plain = entropic(optax.adam(0.1), inner_steps=L, inner_transform=optax.trace(0.9))
    assert_close(
        train(injected, "scan", params, rows(2, L))[0], train(plain, "scan", params, rows(2, L))[0]
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("factory", "hyperparams"),
    [
        (diloco, {"learning_rate": 0.6, "inner_learning_rate": 0.1, "momentum": 0.8}),
        (parle, {"learning_rate": 0.5, "coupling": 0.3, "noise_scale": 0.0}),
    ],
)
def test_inject_hyperparams_over_replicas(
    factory: Any, hyperparams: dict[str, Any], streaming: bool
) -> None:
    static = {"replica_axis_name": "r", "inner_steps": L, "streaming": streaming}

    def run(tx: Any) -> Any:
        step = outer_step(tx, "streaming" if streaming else "scan_none")
        x = jnp.ones(2)
        (x, _), _ = jax.lax.scan(lambda c, b: (step(*c, b), None), (x, tx.init(x)), rows(3, L))
        return x

    make = optax.inject_hyperparams(factory, static_args=("inner_steps",))
    both = lambda _: (run(make(**hyperparams, **static)), run(factory(**hyperparams, **static)))  # noqa: E731
    injected, plain = jax.jit(jax.vmap(both, axis_name="r"))(jnp.arange(2))
    assert_close(injected, plain)
