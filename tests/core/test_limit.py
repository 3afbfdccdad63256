"""What Entropy-SGD descends: in the limit of many small steps, the local entropy.

γ (x − μ) estimates −∇F(x; γ) = γ (x − ⟨x′⟩). Two estimators show that it does. Averaging 1 leaves
the last x′ alone, and a mean over thousands of keys then shows the bias, which falls with L and
with η′. A small averaging weight makes of one long chain an average over time, and shows the
spread, which falls with the root of the weight. Noise of scale √2 is temperature 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import entropic

STANDARD_ERRORS = 5


def estimates(
    grad_fn: Callable[[Any], Any], x: Any, seeds: int, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the seeds of γ (x − μ), as the base optimizer sees it, and its standard error."""

    def run(seed: Any) -> Any:
        tx = entropic(optax.sgd(1.0), scale_by_scope=True, key=seed, **settings)
        params = jnp.asarray(x, jnp.float32)
        gradient, _ = tx.update(
            None, tx.init(params), params, grad_fn=lambda params, step: grad_fn(params)
        )
        return -gradient

    gradients = np.asarray(jax.jit(jax.vmap(run))(jnp.arange(seeds)), np.float64)
    return gradients.mean(axis=0), gradients.std(axis=0) / np.sqrt(seeds)


# A quadratic loss: ⟨x′⟩ = (A + γ)⁻¹ (A c + γ x), at every step size.

CURVATURE = np.array([[2.0, 0.7], [0.7, 0.5]])
CENTRE = np.array([1.0, -1.0])
POINT = np.array([-0.5, 0.8])
SCOPE = 0.4
PULL = CURVATURE + SCOPE * np.eye(2)
QUADRATIC_GRADIENT = SCOPE * np.linalg.solve(PULL, CURVATURE @ (POINT - CENTRE))


def quadratic_grad(x: Any) -> Any:
    return jnp.asarray(CURVATURE, jnp.float32) @ (x - CENTRE)


@pytest.mark.parametrize("inner_steps", [1, 8, 150])
def test_quadratic_without_noise(inner_steps: int) -> None:
    """What is missing falls geometrically, by 1 − η′ (λ + γ) for each step."""
    gradient, _ = estimates(
        quadratic_grad,
        POINT,
        seeds=1,
        inner_steps=inner_steps,
        inner_learning_rate=0.3,
        scope=SCOPE,
        noise_scale=0.0,
        averaging=1.0,
    )
    missing = np.linalg.matrix_power(np.eye(2) - 0.3 * PULL, inner_steps)
    np.testing.assert_allclose(gradient, (np.eye(2) - missing) @ QUADRATIC_GRADIENT, atol=1e-6)
    if inner_steps == 150:
        np.testing.assert_allclose(gradient, QUADRATIC_GRADIENT, atol=1e-6)


def test_quadratic_with_noise() -> None:
    gradient, error = estimates(
        quadratic_grad,
        POINT,
        seeds=20_000,
        inner_steps=150,
        inner_learning_rate=0.3,
        scope=SCOPE,
        noise_scale=np.sqrt(2),
        averaging=1.0,
    )
    assert np.all(error < 0.01)
    assert np.all(np.abs(gradient - QUADRATIC_GRADIENT) < STANDARD_ERRORS * error)


def test_the_spread_of_one_chain_falls_with_the_root_of_the_averaging_weight() -> None:
    """On f = x²/2. The spread of an averaged autoregression is known."""
    step_size, scope, chains = 0.1, 0.5, 400
    weights = np.array([0.04, 0.01, 0.0025])

    def run(averaging: Any, seed: Any) -> Any:
        tx = entropic(
            optax.sgd(1.0),
            inner_steps=3000,
            inner_learning_rate=step_size,
            scope=scope,
            noise_scale=np.sqrt(2),
            averaging=averaging,
            scale_by_scope=True,
            key=seed,
        )
        params = jnp.ones(())
        return tx.update(None, tx.init(params), params, grad_fn=lambda params, step: params)[0]

    seeds = jnp.arange(chains * weights.size).reshape(weights.size, chains)
    over_seeds = jax.vmap(run, (None, 0))
    updates = np.asarray(jax.jit(jax.vmap(over_seeds))(jnp.asarray(weights), seeds), np.float64)
    spread = np.sqrt(np.mean((-updates - scope / (1 + scope)) ** 2, axis=1))

    pull = 1 + scope
    memory = 1 - step_size * pull
    kept = (1 - weights) * memory
    of_iterate = 2 / (pull * (2 - step_size * pull))
    expected = scope * np.sqrt(of_iterate * weights * (1 + kept) / ((2 - weights) * (1 - kept)))
    np.testing.assert_allclose(spread, expected, rtol=STANDARD_ERRORS / np.sqrt(2 * chains))
    np.testing.assert_allclose(spread[:-1] / spread[1:], 2, rtol=0.25)


# Double wells: a wide valley and a narrow one, against quadrature.


def well_1d(x: Any) -> Any:
    return -jnp.logaddexp(-0.5 * ((x + 1) / 0.6) ** 2, 0.6 - 0.5 * ((x - 1) / 0.35) ** 2)


def well_2d(point: Any) -> Any:
    """Two slanted valleys."""
    x, y = point[..., 0], point[..., 1]
    wide = (x + 1) ** 2 + 1.2 * (x + 1) * (y + 0.5) + 2 * (y + 0.5) ** 2
    narrow = 5 * (x - 0.8) ** 2 - 4 * (x - 0.8) * (y - 0.6) + 4 * (y - 0.6) ** 2
    return -jnp.logaddexp(-wide, 0.4 - narrow)


def exact_gradient(loss: Callable[[Any], Any], x: np.ndarray, scope: float) -> np.ndarray:
    """γ (x − ⟨x′⟩), the mean by the trapezoidal rule, which is spectrally accurate here."""
    axis = np.linspace(-7, 7, 701)
    nodes = np.stack(np.meshgrid(*[axis] * x.size, indexing="ij"), axis=-1)
    values = np.asarray(loss(nodes[..., 0] if x.size == 1 else nodes), np.float64)
    weights = np.exp(-values - 0.5 * scope * np.sum((nodes - x) ** 2, axis=-1))[..., None]
    axes = tuple(range(x.size))
    return scope * (x - np.sum(weights * nodes, axis=axes) / np.sum(weights, axis=axes))


X_1D, X_2D, WELL_SCOPE = 1.0, np.array([0.2, -0.1]), 1.0


def error_1d(inner_steps: int, step_size: float) -> tuple[float, float]:
    """Of the mean over 2 ** 15 keys: its distance from the exact gradient, its standard error."""
    gradient, error = estimates(
        jax.grad(well_1d),
        X_1D,
        seeds=2**15,
        inner_steps=inner_steps,
        inner_learning_rate=step_size,
        scope=WELL_SCOPE,
        noise_scale=np.sqrt(2),
        averaging=1.0,
    )
    return abs(float(gradient - exact_gradient(well_1d, np.array([X_1D]), WELL_SCOPE)[0])), error


def test_the_floor_of_the_narrow_valley_is_a_slope_of_the_local_entropy() -> None:
    """The point of the tests below: flat in f, downhill to the wide valley in −F."""
    assert abs(jax.grad(well_1d)(X_1D)) < 0.02
    assert exact_gradient(well_1d, np.array([X_1D]), WELL_SCOPE)[0] > 0.2


def test_double_well_error_falls_with_the_number_of_steps() -> None:
    errors = [error_1d(inner_steps, 0.04) for inner_steps in (5, 25, 125)]
    for (more, standard_error), (less, _) in itertools.pairwise(errors):
        assert less + STANDARD_ERRORS * standard_error < more


def test_double_well_error_falls_with_the_step_size() -> None:
    """To first order in η′, at L η′ = 10. The constant 1.3 is read off the largest step."""
    errors = {step_size: error_1d(round(10 / step_size), step_size) for step_size in (0.08, 0.02)}
    assert errors[0.08][0] > 0.05
    assert errors[0.02][0] < 0.4 * errors[0.08][0]
    for step_size, (error, standard_error) in errors.items():
        assert error < 1.3 * step_size + STANDARD_ERRORS * standard_error


def test_double_well_in_two_dimensions() -> None:
    settings = {"scope": WELL_SCOPE, "noise_scale": np.sqrt(2), "averaging": 1.0, "seeds": 2**14}
    exact = exact_gradient(well_2d, X_2D, WELL_SCOPE)
    grad = jax.grad(well_2d)
    coarse, _ = estimates(grad, X_2D, inner_steps=3, inner_learning_rate=0.1, **settings)
    fine, error = estimates(grad, X_2D, inner_steps=250, inner_learning_rate=0.03, **settings)
    assert np.all(np.abs(fine - exact) < 0.02 + STANDARD_ERRORS * error)
    assert np.linalg.norm(fine - exact) < 0.3 * np.linalg.norm(coarse - exact)
    assert np.linalg.norm(fine - exact) < 0.3 * np.linalg.norm(grad(X_2D) - exact)
