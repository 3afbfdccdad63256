"""What an update costs: gradient evaluations, memory, and the size of the program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from entropy_sgd_jax import diloco, entropy_sgd

WIDTH = 512  # parameters: 2 · 512², 2 MiB in float32, far more than any activation
PARAMETER_BYTES = 2 * WIDTH * WIDTH * 4


def params() -> dict[str, jax.Array]:
    return {name: jnp.full((WIDTH, WIDTH), 0.01) for name in ("a", "b")}


def loss(params: Any, call: Any) -> jax.Array:
    """Two layers on one input, which makes activations small beside the parameters."""
    hidden = jnp.tanh(params["a"] @ jnp.full((WIDTH,), jnp.cos(call.astype(jnp.float32))))
    return jnp.sum((params["b"] @ hidden) ** 2)


def lower(inner_steps: int, **options: Any) -> Any:
    """A donated train step in scan mode, lowered."""
    tx = entropy_sgd(1.0, inner_steps=inner_steps, **options)

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(None, state, params, grad_fn=jax.grad(loss))
        return optax.apply_updates(params, updates), state

    start = params()
    return jax.jit(step, donate_argnums=(0, 1)).lower(start, tx.init(start))


def temporaries(inner_steps: int, **options: Any) -> int:
    return lower(inner_steps, **options).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("momentum", "copies"), [(None, 2), (0.9, 3)])
def test_state_is_two_copies_of_the_parameters_and_the_inner_momentum(
    momentum: float | None, copies: int
) -> None:
    state = jax.eval_shape(entropy_sgd(1.0, inner_momentum=momentum).init, params())
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) == copies * PARAMETER_BYTES
    scalars = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim < 2]
    assert sum(leaf.size for leaf in scalars) <= 2  # the count and the key


def test_streaming_keeps_one_copy_more() -> None:
    state = jax.eval_shape(entropy_sgd(1.0, streaming=True).init, params())
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) == 4 * PARAMETER_BYTES


@pytest.mark.parametrize("noise_scale", [0, 1e-4])
def test_memory_does_not_grow_with_the_inner_steps(noise_scale: float) -> None:
    few, many = (temporaries(steps, noise_scale=noise_scale) for steps in (5, 100))
    assert many - few <= 100 * 64  # a row of 64 bytes per step at most: keys and counters


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_temporaries_are_two_copies_of_the_parameters(noise: str) -> None:
    """x, beside the carried x′, μ and momentum, which take the donated state; and a gradient.

    The noise adds nothing: it is fused into the step.
    """
    without = temporaries(20, noise_scale=0)
    assert without < 2.1 * PARAMETER_BYTES
    assert temporaries(20, noise=noise) < without + 0.1 * PARAMETER_BYTES


@pytest.mark.parametrize("noise_scale", [0, 1e-4])
def test_streaming_takes_no_copies(noise_scale: float) -> None:
    """x, x′, μ, momentum and parameters change where they are; a gradient is all there is more."""
    tx = entropy_sgd(1.0, streaming=True, noise_scale=noise_scale)

    def step(params: Any, state: Any, call: jax.Array) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, call), state, params)
        return optax.apply_updates(params, updates), state

    start = params()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(start, tx.init(start), jnp.int32(0))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 1.1 * PARAMETER_BYTES


def test_the_program_does_not_grow_with_the_inner_steps() -> None:
    few, many = (lower(steps).as_text().count("\n") for steps in (5, 100))
    assert few == many


def test_no_noise_is_no_code() -> None:
    assert "xor" in lower(5, noise_scale=1e-4).as_text()
    assert "xor" not in lower(5, noise_scale=0).as_text()
    assert "xor" not in lower(5, noise_scale=0.0).as_text()


@pytest.mark.parametrize("inner_steps", [1, 2, 7])
@pytest.mark.parametrize("given", [True, False])
def test_an_update_costs_inner_steps_gradients(inner_steps: int, given: bool) -> None:
    """Counted as the program runs, the incoming gradient included."""
    calls = []

    def grad_fn(params: jax.Array, call: jax.Array) -> jax.Array:
        jax.debug.callback(lambda call: calls.append(int(call)), call)
        return params

    tx = entropy_sgd(1.0, inner_steps=inner_steps)
    start = jnp.ones(3)
    update = jax.jit(lambda grads, state: tx.update(grads, state, start, grad_fn=grad_fn))
    jax.block_until_ready(update(start if given else None, tx.init(start)))
    jax.effects_barrier()
    assert sorted(calls) == list(range(inner_steps - given))


@pytest.mark.parametrize(("streaming", "copies"), [(False, 3), (True, 5)])
def test_the_last_iterate_is_not_kept_twice(streaming: bool, copies: int) -> None:
    """Adam's two moments and the outer momentum; in streaming mode also x, and x′ as it was left.

    Its average is itself.
    """
    params = {"w": jnp.zeros((30, 40)), "b": jnp.zeros(40)}
    tx = diloco(inner_steps=5, inner_optimizer=optax.adamw(1e-3), streaming=streaming)
    state = jax.eval_shape(tx.init, params)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32)
    assert numbers == copies * 31 * 40
