"""Schedules of the paper: scoping, the slow growth of the scope."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from entropy_sgd_jax import _checks
from entropy_sgd_jax._typing import Scalar


def scoping(
    init_value: Scalar, growth_rate: Scalar, max_value: Scalar | None = None
) -> Callable[[ArrayLike], jax.Array]:
    r"""Grows the scope geometrically with the outer steps, as the paper does.

    .. math::
      \gamma(t) = \min\left(\gamma_0 (1 + \gamma_1)^t,\ \gamma_{\max}\right)

    A low scope lets the Langevin chain wander far, so that only wide valleys attract; a high one
    holds it close to x, where the local entropy turns into the loss itself. Scoping goes from
    the first to the second.

    Args:
      init_value: γ₀, the scope at outer step 0; at least 0.
      growth_rate: γ₁, the relative growth per outer step; above -1. The paper takes 0.001.
      max_value: γ_max, a ceiling (Parle's 1.0); None for none. Keep γ below 1/η′: from 2/η′ on
        a Langevin step overshoots x by more than its distance to x.

    Returns:
      A function of the count of outer steps, to be passed as `scope`.

    Raises:
      ValueError: if a concrete argument is out of its range.

    >>> schedule = scoping(1e-4, 1e-3, max_value=1.0)
    >>> print([float(f"{schedule(t):.3g}") for t in (0, 1000, 100_000)])
    [0.0001, 0.000272, 1.0]

    References:
      Chaudhari et al., "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys", 2017,
      section 4.3.
    """
    init_value = _checks.check("init_value", init_value)
    growth_rate = _checks.check("growth_rate", growth_rate)
    max_value = _checks.check("max_value", max_value)

    # log1p keeps the digits of a small growth rate, which 1 + growth_rate would round away.
    is_known = isinstance(growth_rate, float)
    log_growth = math.log1p(growth_rate) if is_known else jnp.log1p(growth_rate)

    def schedule(count: ArrayLike) -> jax.Array:
        if not isinstance(count, int | float):
            count = jnp.asarray(count, jnp.result_type(float))
        growth = jnp.exp(count * log_growth)
        # Where 0 · ∞ would be NaN.
        value = jnp.where(init_value == 0, jnp.zeros_like(growth), init_value * growth)
        return value if max_value is None else jnp.minimum(value, max_value)

    return schedule
