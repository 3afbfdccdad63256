"""Where x′ and x are in streaming mode, in which the training loop holds x′.

`params` takes precedence: whatever else moves it (a projection, a restored checkpoint) moves x′,
and x with it where x′ is x: before the first update and between two cycles. The state's further
digits count only where nobody has touched `params`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def follow(param: jax.Array, left: jax.Array, known: jax.Array) -> jax.Array:
    """`known` where `param` is where the last update left it, at `left`; else `param`."""
    dtype = jnp.result_type(param)
    if dtype != left.dtype:
        # Compared as bits, because XLA may drop a pair of casts and compare all the digits.
        word = jnp.dtype(f"uint{jnp.finfo(dtype).bits}")
        left, now = (lax.bitcast_convert_type(jnp.asarray(x, dtype), word) for x in (left, param))
    else:
        now = param
    return jnp.where(left == now, known, jnp.asarray(param, known.dtype))


def resume(param: jax.Array, left: jax.Array) -> jax.Array:
    """x′, in the dtype of `left`, where the last update left it."""
    dtype = jnp.result_type(param)
    if dtype == left.dtype or jnp.finfo(dtype).bits > jnp.finfo(left.dtype).bits:
        return jnp.asarray(param, left.dtype)  # the state knows no more digits
    return follow(param, left, left)


def spoiled(iterate: jax.Array, left: jax.Array) -> jax.Array:
    """x′, not finite where the last update left it so, until the cycle ends."""
    return jnp.where(lax.is_finite(left), iterate, left)


def step_to(iterate: jax.Array, param: jax.Array) -> jax.Array:
    """The update from `param` to x′; none where x′ is not finite, until the cycle ends."""
    target = jnp.asarray(iterate, jnp.result_type(param))
    return jnp.where(lax.is_finite(target), target - param, jnp.zeros_like(target))


def landing(param: jax.Array, target: jax.Array) -> jax.Array:
    """Where `param` + (`target` − `param`) ends, which rounding may keep from `target`."""
    info = jnp.finfo(jnp.result_type(param))

    def rounded(x: jax.Array) -> jax.Array:  # XLA would leave it out in fused arithmetic
        return lax.reduce_precision(x, info.nexp, info.nmant)

    return rounded(param + rounded(target - param))
