"""One Langevin step of one array, against its two equations in float64 NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_sgd_jax._langevin import langevin_step
from tests.core.helpers import double_precision

RANDOM = np.random.default_rng(0)
SHAPE = (3, 4)
ITERATE, AVERAGE, DIRECTION, ANCHOR, NOISE = RANDOM.normal(size=(5, *SHAPE))


def equations(
    step_size: float, scope: float, noise_scale: float, averaging: float, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    drift = DIRECTION + scope * (ITERATE - ANCHOR)
    iterate = ITERATE - step_size * drift + np.sqrt(step_size) * noise_scale * noise
    return iterate, (1 - averaging) * AVERAGE + averaging * iterate


@pytest.mark.parametrize("traced", [False, True])
def test_a_step_is_its_two_equations(traced: bool) -> None:
    with double_precision():
        values = itertools.product((0.1, 1.0), (0, 0.3), (0.2, 1.0), (0, 0.25, 1))
        step = jax.jit(langevin_step) if traced else langevin_step
        for step_size, scope, noise_scale, averaging in values:
            for noise in (NOISE, None):
                found = step(
                    *map(jnp.asarray, (ITERATE, AVERAGE, DIRECTION, ANCHOR)),
                    None if noise is None else jnp.asarray(noise),
                    step_size=step_size,
                    scope=scope,
                    noise_scale=noise_scale,
                    averaging=averaging,
                )
                given = np.zeros(SHAPE) if noise is None else noise
                expected = equations(step_size, scope, noise_scale, averaging, given)
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_the_derivative_is_finite_where_a_warm_up_starts() -> None:
    """At η′ = 0: that of η′ (d + γ (x′ − x)), as the root's is left out."""
    arrays = [jnp.asarray(a, jnp.float32) for a in (ITERATE, AVERAGE, DIRECTION, ANCHOR, NOISE)]

    def iterate(step_size: jax.Array) -> jax.Array:
        return langevin_step(
            *arrays, step_size=step_size, scope=0.5, noise_scale=0.1, averaging=1
        )[0]  # fmt: skip

    np.testing.assert_array_equal(iterate(jnp.float32(0)), arrays[0])
    slope = jax.jacobian(iterate)(jnp.float32(0))
    np.testing.assert_allclose(slope, -(DIRECTION + 0.5 * (ITERATE - ANCHOR)), rtol=1e-5)


def test_a_step_keeps_the_dtype_of_the_arithmetic() -> None:
    with double_precision():
        arrays = [jnp.asarray(array, jnp.float32) for array in (ITERATE,) * 5]
        for scalar in (0.1, np.float64(0.1), jnp.float64(0.1), np.float32(0.1)):
            options = dict.fromkeys(("step_size", "scope", "noise_scale", "averaging"), scalar)
            for array in langevin_step(*arrays, **options):
                assert array.dtype == jnp.float32


def test_the_average_is_the_iterate_where_it_keeps_the_last() -> None:
    arrays = [jnp.asarray(array) for array in (ITERATE, AVERAGE, DIRECTION, ANCHOR)]
    iterate, average = langevin_step(
        *arrays, None, step_size=0.1, scope=0, noise_scale=0, averaging=1
    )
    assert average is iterate  # one buffer, not a copy
