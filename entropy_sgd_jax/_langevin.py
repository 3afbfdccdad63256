"""One step of stochastic gradient Langevin dynamics, and the running average of its iterates.

This is the inside of the paper's Algorithm 1, for one array. It knows no tree, no loop and no
Optax state.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def langevin_step(
    iterate: jax.Array,
    average: jax.Array,
    direction: jax.Array,
    anchor: jax.Array,
    noise: jax.Array | None,
    *,
    step_size: ArrayLike,
    scope: ArrayLike,
    noise_scale: ArrayLike,
    averaging: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    r"""Moves x′ by one Langevin step, and μ towards it.

    .. math::
      x' &\leftarrow x' - \eta' (d + \gamma (x' - x)) + \sqrt{\eta'}\, \varepsilon\, \xi \\
      \mu &\leftarrow (1 - \alpha)\, \mu + \alpha\, x'

    With d = ∇f(x′), ε = √2 and a small η′, x′ samples exp(−f(x′) − γ/2 ‖x′ − x‖²); the paper's
    ε is far smaller, which samples the same valley at a lower temperature.

    Args:
      iterate: x′, any shape, in the dtype of the arithmetic.
      average: μ, like `iterate`.
      direction: d, the (transformed) gradient at x′, like `iterate`.
      anchor: x, like `iterate`.
      noise: ξ, unit variance, like `iterate`; None for no noise.
      step_size: η′, a scalar.
      scope: γ, a scalar; the Python number 0 leaves the pull out.
      noise_scale: ε, a scalar.
      averaging: α, a scalar; the Python number 1 returns x′ itself as the average.

    Returns:
      The new x′ and the new μ.
    """
    step_size, scope, noise_scale, averaging = (
        # NumPy's float64 is a float too, but would widen the arithmetic.
        float(value) if isinstance(value, int | float) else jnp.asarray(value, iterate.dtype)
        for value in (step_size, scope, noise_scale, averaging)
    )
    drift = direction if _is(scope, 0) else direction + scope * (iterate - anchor)
    iterate = iterate - step_size * drift
    if noise is not None:
        iterate = iterate + _root(step_size).astype(iterate.dtype) * noise_scale * noise
    if _is(averaging, 1):
        return iterate, iterate
    return iterate, (1 - averaging) * average + averaging * iterate


def _root(step_size: ArrayLike) -> jax.Array:
    """Its square root, whose derivative at 0, where a warm-up starts, is taken as 0, not Inf."""
    size = jnp.asarray(step_size)
    return jnp.where(size > 0, jnp.sqrt(jnp.where(size > 0, size, 1)), 0)


def _is(value: ArrayLike, constant: float) -> bool:
    """Whether `value` is this constant already when the step is traced."""
    return isinstance(value, int | float) and value == constant
