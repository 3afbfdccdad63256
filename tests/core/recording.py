"""What several test files share: float64, and the library's noise read off from outside."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_sgd_jax import entropic


def float64() -> contextlib.AbstractContextManager[Any]:
    """Double precision inside a `with`, on old and new JAX."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def record_noise(
    like: Any, *, key: Any = 0, updates: int, inner_steps: int, noise: str = "gaussian"
) -> Any:
    """The noise ξ of every Langevin step, leaves of shape (updates, inner_steps, *leaf shape).

    At x = 0, a zero gradient with η′ = γ = ε = 1 gives x′ ← x′ − (x′ − 0) + ξ = ξ. The outer
    learning rate of 0 keeps x there. The last step of an update shows x in place of x′: one more
    step than asked for is run.
    """
    tx = entropic(
        optax.sgd(0.0),
        inner_steps=inner_steps + 1,
        inner_learning_rate=1.0,
        scope=1.0,
        noise_scale=1.0,
        noise=noise,
        streaming=True,
        key=key,
    )
    zeros = jax.tree.map(jnp.zeros_like, like)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    def cycle(carry: Any, _: None) -> Any:
        carry, iterates = jax.lax.scan(step, carry, length=inner_steps + 1)
        return carry, jax.tree.map(lambda leaf: leaf[:-1], iterates)

    _, iterates = jax.lax.scan(cycle, (zeros, tx.init(zeros)), length=updates)
    return iterates
