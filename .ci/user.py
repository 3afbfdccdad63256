"""What a user writes, run and type-checked against the installed wheel alone."""

import time

import jax
import jax.numpy as jnp
import optax

began = time.perf_counter()
from entropy_sgd_jax import (  # noqa: E402
    EntropicState,
    anchor_params,
    entropic,
    entropy_sgd,
    scoping,
)

import_seconds = time.perf_counter() - began


def loss(params: jax.Array, batch: jax.Array) -> jax.Array:
    """The mean squared distance."""
    return jnp.mean((params - batch) ** 2)


scan = entropy_sgd(1.0, inner_steps=5, scope=scoping(0.01, 1e-3))
streaming = entropic(optax.adam(0.1), inner_steps=5, streaming=True)
clipped: optax.GradientTransformation = optax.chain(optax.clip(1.0), streaming)


@jax.jit
def step(params: jax.Array, state: EntropicState) -> tuple[jax.Array, EntropicState]:
    """One update in scan mode."""
    updates, state = scan.update(
        None, state, params, grad_fn=jax.grad(loss), batches=jnp.ones((5, 3))
    )
    return jnp.asarray(optax.apply_updates(params, updates)), state


params, state = step(jnp.zeros(3), scan.init(jnp.zeros(3)))
x: jax.Array = anchor_params(state, params)
assert jnp.abs(params - 1).max() < 1
print(f"the wheel works; import after optax: {import_seconds:.3f} s")
