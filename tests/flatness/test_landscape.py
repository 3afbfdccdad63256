"""Local energy and local entropy where they are known: quadratics, and one dimension."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_sgd_jax import flatness
from entropy_sgd_jax.flatness import _annealing, _entropy
from entropy_sgd_jax.flatness._data import DataSet
from entropy_sgd_jax.flatness._entropy import integrate
from tests.core.helpers import ROUNDED_AS_USUAL, double_precision
from tests.flatness.cases import network, plain, rotated

KEYS = 200
# The mean of KEYS squared z-scores, the squares of Student's t of 31 degrees of freedom or more:
# 1 to 31/29, ± 0.11.
SQUARES = (0.55, 1.6)
HESSIAN_VALUES = np.array([4.0, 2.0, 1.0, 0.5, 0.1, -0.2])
POINT = np.array([0.5, -1.0, 0.3, 0.8, -0.4, 1.2])


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with double_precision():
        yield


def bowl(params: jax.Array, batch: Any) -> jax.Array:
    """½ (w − b)ᵀ H (w − b): the mean over batches b adds no curvature."""
    offset = params - batch
    return 0.5 * offset @ rotated(HESSIAN_VALUES) @ offset


def mean_square(estimates: Any, truth: Any) -> np.ndarray:
    return np.asarray((((estimates.value - truth) / estimates.standard_error) ** 2).mean(axis=0))


def over_keys(function: Any) -> Any:
    return jax.jit(jax.vmap(function))(jnp.arange(KEYS))


# Local energy


@pytest.mark.parametrize("multiplicative", [True, False])
def test_local_energy_of_a_quadratic(multiplicative: bool) -> None:
    strengths = jnp.array([[0.1, 0.3], [1.0, 0.0]])
    diagonal = np.diag(rotated(HESSIAN_VALUES))
    weights = diagonal * POINT**2 if multiplicative else diagonal
    truth = 0.5 * np.asarray(strengths) ** 2 * weights.sum()
    centres = jnp.array([[0.1] * 6, [0.3] * 6])

    estimates = over_keys(
        lambda key: flatness.local_energy(
            bowl, jnp.asarray(POINT), centres, strengths, multiplicative=multiplicative, key=key
        )
    )
    assert estimates.value.shape == (KEYS, 2, 2)
    np.testing.assert_allclose(estimates.value[:, 1, 1], 0, atol=1e-14)
    squares = mean_square(estimates, truth).ravel()[:3]
    assert (SQUARES[0] < squares).all()
    assert (squares < SQUARES[1]).all()


def test_local_energy_of_an_error_rate() -> None:
    net = network(7)

    def error(params: Any, batch: Any) -> Any:
        return (net.loss.model(params, batch).argmax(-1) != batch[1]).mean()

    stacked, ragged = (
        flatness.local_energy(error, net.params, batches, 0.5, num_samples=20)
        for batches in (net.batches, net.ragged)
    )
    assert stacked.value.shape == ()
    assert -1 <= stacked.value <= 1
    assert stacked.standard_error > 0
    np.testing.assert_allclose(stacked, ragged, atol=1e-6)


# Sharpness


def test_sharpness_of_a_minimum_is_that_of_the_largest_eigenvalue() -> None:
    centre = jnp.asarray(POINT)
    rise = flatness.sharpness(bowl, centre, centre[None], 0.1, num_steps=60)
    np.testing.assert_allclose(rise, 0.5 * 0.1**2 * 4, rtol=1e-6)


def test_sharpness_of_a_slope_and_against_the_first_step() -> None:
    slope = jnp.array([3.0, 4.0])
    rise = flatness.sharpness(lambda w, batch: w @ slope, jnp.zeros(2), [None], 0.1)
    np.testing.assert_allclose(rise, 0.5, rtol=1e-6)

    net = network(7)
    loss = plain(net.loss)
    gradient = jax.grad(loss)(net.params, net.whole)
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    moved = jax.tree.map(lambda w, g: w + 0.5 * g / length, net.params, gradient)
    first = loss(moved, net.whole) - loss(net.params, net.whole)
    for batches in (net.batches, net.ragged):
        one, many = (
            flatness.sharpness(loss, net.params, batches, 0.5, num_steps=n) for n in (1, 20)
        )
        np.testing.assert_allclose(one, first, rtol=1e-4)
        assert many > 1.01 * one


# Local entropy


def entropy_of_the_bowl(scope: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """log ∫ exp(−½ (x′ − c)ᵀ H (x′ − c) − γ/2 ‖x′ − x‖²) dx′ at x = POINT."""
    hessian = np.asarray(rotated(HESSIAN_VALUES))
    offset = POINT - centre
    pull = hessian @ offset
    values = []
    for gamma in np.atleast_1d(scope):
        total = hessian + gamma * np.eye(6)
        exponent = -0.5 * offset @ pull + 0.5 * pull @ np.linalg.solve(total, pull)
        values.append(exponent + 0.5 * np.linalg.slogdet(2 * np.pi * np.linalg.inv(total))[1])
    return np.array(values)


def test_local_entropy_of_a_quadratic() -> None:
    scopes, centre = jnp.array([0.5, 3.0, 30.0]), jnp.full(6, 0.2)
    estimates = over_keys(
        lambda key: flatness.local_entropy(
            bowl, jnp.asarray(POINT), centre[None], scopes, num_steps=64, key=key
        )
    )
    truth = entropy_of_the_bowl(np.asarray(scopes), np.asarray(centre))
    assert (abs(estimates.value - truth) < 4 * estimates.standard_error).all()
    assert (estimates.standard_error < 1e-12).all()  # it is the Gaussian's integral


def double_well(x: jax.Array, batch: Any) -> jax.Array:
    """A sharp, deep valley at 1 and a wide one at −1."""
    wide, sharp = jnp.exp(-2 * (x + 1) ** 2), jnp.exp(-50 * (x - 1) ** 2)
    return jnp.sum(0.25 * x**2 - 2.5 * wide - 3 * sharp)


def entropy_by_quadrature(x: float, scope: float, beta: float = 1) -> float:
    nodes = np.linspace(-12, 12, 200_001)
    heights = np.asarray(jax.vmap(lambda node: double_well(node, None))(nodes))
    exponent = -beta * heights - 0.5 * scope * (nodes - x) ** 2
    return float(np.log(np.exp(exponent).sum() * (nodes[1] - nodes[0])))


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_local_entropy_of_a_double_well(beta: float) -> None:
    x, scopes = 0.9, jnp.array([0.3, 2.0, 20.0])
    estimates = over_keys(
        lambda key: flatness.local_entropy(
            double_well, jnp.array(x), jnp.zeros((1, 1)), scopes,
            inverse_temperature=beta, num_steps=64, num_chains=64, key=key,
        )
    )  # fmt: skip
    truth = np.array([entropy_by_quadrature(x, scope, beta) for scope in np.asarray(scopes)])
    squares = mean_square(estimates, truth)
    # The error may be more than it need be, where it allows for a tail that was not seen.
    assert (squares > 0.1).all()
    assert (squares < 1.8).all()
    errors = estimates.value.mean(axis=0) - truth
    assert (abs(errors) < 4.5 * estimates.value.std(axis=0) / np.sqrt(KEYS) + 0.01).all()


def test_a_flat_loss_has_the_volume_alone() -> None:
    def flat(params: Any, batch: Any) -> Any:
        return 0.7 + 0 * jnp.sum(params)

    value, error = flatness.local_entropy(flat, jnp.ones(50), [None], 3.0, num_steps=2)
    np.testing.assert_allclose(value, 25 * np.log(2 * np.pi / 3) - 0.7, rtol=1e-12)
    assert error < 1e-9
    value, _ = flatness.local_entropy(
        flat, jnp.ones(50), [None], 3.0, num_steps=2, include_volume=False
    )
    np.testing.assert_allclose(value, -0.7, rtol=1e-12)


@pytest.mark.parametrize("dimension", [1, 20, 200])
def test_local_entropy_of_a_quadratic_at_every_scope(dimension: int) -> None:
    """In float32, from 10⁻¹² to 10⁶, at eigenvalues from 0.01 to 100, away from the minimum."""
    rng = np.random.default_rng(dimension)
    hessian = np.asarray(rotated(np.geomspace(0.01, 100, dimension)), np.float32)
    point, centre = rng.normal(size=(2, dimension)).astype(np.float32)
    hessian, offset = hessian.astype(float), (point - centre).astype(float)

    def loss(params: Any, batch: Any) -> Any:
        matrix, centre = batch
        image = jnp.matmul(matrix, params - centre, precision="highest")
        return 3 + 0.5 * (params - centre) @ image

    batches = (jnp.asarray(hessian, jnp.float32)[None], jnp.asarray(centre)[None])
    scopes = 10.0 ** np.arange(-12, 7, 3)
    value, error = jax.jit(
        lambda scopes: flatness.local_entropy(loss, jnp.asarray(point), batches, scopes)
    )(jnp.asarray(scopes, jnp.float32))
    assert value.dtype == jnp.float32
    truth = []
    for scope in scopes:
        total, pull = hessian + scope * np.eye(dimension), hessian @ offset
        exponent = -3 - 0.5 * offset @ pull + 0.5 * pull @ np.linalg.solve(total, pull)
        truth.append(exponent - 0.5 * np.linalg.slogdet(total / (2 * np.pi))[1])
    assert (abs(value - np.array(truth)) < 3 * error).all()
    assert (error < 1e-4 * np.maximum(abs(np.array(truth)), dimension)).all()


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_local_entropy_of_a_double_well_at_every_scope(beta: float) -> None:
    """In float32; error bars are neither too small in the mean nor useless."""
    scopes, keys = np.array([1e-12, 1e-6, 1e-2, 1.0, 1e3, 1e6], np.float32), 40
    function = jax.jit(jax.vmap(lambda key: flatness.local_entropy(
        double_well, jnp.float32(0.9), jnp.zeros((1, 1), jnp.float32), scopes,
        inverse_temperature=beta, key=key,
    )), compiler_options=ROUNDED_AS_USUAL)  # fmt: skip
    estimates = function(jnp.arange(keys))
    # At the largest scopes, nodes must be dense where the integrand is.
    truth = np.array([fine_quadrature(0.9, scope, beta) for scope in scopes.astype(float)])
    deviations = abs(np.asarray(estimates.value, float) - truth)
    assert (deviations < 6 * estimates.standard_error).all()
    squares = ((deviations / np.asarray(estimates.standard_error)) ** 2).mean(axis=0)
    assert (squares < 3).all()  # those of skewed weights exceed Student's by about a half
    typical = np.median(estimates.standard_error, axis=0)
    assert (typical < 3 * np.sqrt((deviations**2).mean(axis=0)) + 1e-5).all()


def fine_quadrature(x: float, scope: float, beta: float) -> float:
    x = float(np.float32(x))
    near = x + np.linspace(-12, 12, 100_001) / np.sqrt(scope)
    nodes = np.unique(np.concatenate([np.linspace(-30, 30, 400_001), near[abs(near) < 30]]))
    heights = np.asarray(jax.vmap(lambda node: double_well(node, None))(nodes))
    exponent = -beta * heights - 0.5 * scope * (nodes - x) ** 2
    return float(exponent.max() + np.log(np.trapezoid(np.exp(exponent - exponent.max()), nodes)))


def test_a_bad_estimate_is_warned_of() -> None:
    """A funnel in 40 dimensions, in two steps: W varies by more than exp(−W) can average."""
    rough = lambda w, batch: 50 * jnp.sum((w**2 - 1) ** 2)  # noqa: E731
    with pytest.warns(UserWarning, match=r"standard error .* raise `num_steps`"):
        _, error = flatness.local_entropy(rough, jnp.zeros(40), [None], 1.0, num_steps=2)
    assert error > 1


@pytest.mark.parametrize("height", [1e3, 1e5])
def test_local_entropy_at_a_wall_beside_a_plain(height: float) -> None:
    """f = h max(x, 0): F = log(√(π/2) + ∫₀^∞ exp(−h x − x²/2) dx), of which the last is 1/h."""
    estimate = jax.jit(
        lambda key: flatness.local_entropy(
            lambda x, batch: height * jnp.maximum(x, 0), jnp.zeros(()), jnp.zeros((1, 1)), 1.0,
            num_chains=256, key=key,
        )
    )  # fmt: skip
    values, errors = map(np.array, zip(*map(estimate, range(10)), strict=True))
    exact = math.log(math.sqrt(math.pi / 2) + 1 / height)
    assert errors.max() < 0.3
    assert abs(values.mean() - exact) < 3 * np.sqrt(np.mean(errors**2) / 10)


def test_local_entropy_between_walls() -> None:
    """A loss of 0 in (−1.5, 1.5), else infinite: F = log √2π P(|ξ| < 1.5)."""

    def walls(params: Any, batch: Any) -> Any:
        return jnp.where(jnp.abs(params) < 1.5, 0.0, jnp.inf)

    estimate = flatness.local_entropy(walls, jnp.zeros(()), [None], 1.0, num_chains=400)
    inside = math.erf(1.5 / math.sqrt(2))
    error = estimate.standard_error
    np.testing.assert_allclose(error, math.sqrt((1 - inside) / inside / 400), rtol=0.3)
    assert abs(estimate.value - math.log(math.sqrt(2 * math.pi) * inside)) < 3 * error


@pytest.mark.parametrize("beta", [100.0, 1000.0])
def test_the_digits_of_the_loss_are_part_of_the_error(beta: float) -> None:
    def loss(params: Any, batch: Any) -> jax.Array:
        return (1.003 + 0.5 * jnp.sum(params**2)).astype(jnp.bfloat16)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        value, error = flatness.local_entropy(
            loss, jnp.zeros(6), [None], 1.0, inverse_temperature=beta
        )
    truth = -beta * 1.003 + 3 * np.log(2 * np.pi / (1 + beta))
    assert abs(value - truth) < error < beta / 64  # 2⁻⁷ is bfloat16's own
    assert bool(said) == (error > 1)


def test_gradient_is_the_pull_of_the_chains() -> None:
    """∇F = γ (⟨x′⟩ − x): by differences of F, and by the mean over the chains that make it."""
    scope, chains, step = 2.0, 20_000, 0.1
    data = DataSet(jnp.zeros((1, 1)), None)

    def entropy(x: Any) -> Any:
        return flatness.local_entropy(
            double_well, x, jnp.zeros((1, 1)), scope, num_chains=chains, num_steps=64
        )

    @jax.jit
    def pull(x: Any) -> Any:
        end, axes, start, _ = integrate(
            double_well, x, data, jnp.asarray(scope), jnp.asarray(1.0), chains, 64,
            jax.random.key(0),
        )  # fmt: skip
        offsets = jax.vmap(axes.join)(start.place(end.point))[:chains]
        return scope * jnp.average(offsets, weights=jnp.exp(-end.work))

    entropy = jax.jit(entropy)
    for x in (-0.5, 0.0, 0.8):
        low, high = (entropy(jnp.array(x + side * step)) for side in (-1, 1))
        difference = (high.value - low.value) / (2 * step)
        exact = (
            entropy_by_quadrature(x + step, scope) - entropy_by_quadrature(x - step, scope)
        ) / (2 * step)
        np.testing.assert_allclose(pull(jnp.array(x)), exact, atol=0.06)
        np.testing.assert_allclose(difference, exact, atol=0.2)


def test_no_perturbation_is_no_error() -> None:
    value, error = flatness.local_energy(
        lambda params, batch: 1 + jnp.sum(params**2), jnp.ones(5), [None], jnp.array([0.0, 0.1])
    )
    assert value[0] == error[0] == 0
    assert error[1] > 0


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_sharpness_is_the_highest_of_all_steps(num_steps: int) -> None:
    """x − x² at 0.8 is 0.16, with a slope that leads to the other side, −1.44, and back."""
    rise = flatness.sharpness(
        lambda x, batch: x - x**2, jnp.zeros(()), [None], 0.8, num_steps=num_steps
    )
    np.testing.assert_allclose(rise, 0.16, rtol=1e-5)


def test_pilots_beyond_a_wall_are_left_out_of_the_ladder() -> None:
    for energies in ([0.0, 3.0, np.inf, np.nan], [np.inf, np.inf]):
        ladder = _annealing._ladder(jnp.array(energies, jnp.float32), 10)
        assert (ladder[0], ladder[-1]) == (0, 1)
        assert (jnp.diff(ladder) > 0).all()


def test_beyond_the_axes_that_are_fitted_one_by_one_the_rest_counts_too() -> None:
    """400 parameters, of which 256 have an axis: −(n/2) log(1 + h/γ), for all of them."""
    curvature, count = 1e3, 400
    value, error = flatness.local_entropy(
        lambda params, batch: 0.5 * curvature * jnp.sum(params**2), jnp.zeros(count),
        jnp.zeros((1, 1)), 1.0, include_volume=False, num_chains=16, num_steps=32,
    )  # fmt: skip
    assert abs(value + 0.5 * count * np.log(1 + curvature)) < 5 * error + 0.05
    assert error < 1


def test_the_logarithm_of_a_mean_is_right_to_second_order() -> None:
    """It falls short by half of the mean's relative variance."""
    logs = 0.5 * np.random.default_rng(0).normal(size=20)
    terms = np.exp(logs)
    spread = terms.var(ddof=1) / (20 * terms.mean() ** 2)
    value, _ = _entropy._log_mean_exp(jnp.asarray(logs))
    np.testing.assert_allclose(value, np.log(terms.mean()) + spread / 2, atol=1e-6)


def test_where_the_loss_is_infinite_everywhere_the_error_is_too() -> None:
    def wall(params: Any, batch: Any) -> Any:
        return jnp.where(params < 9, jnp.inf, 0.0)

    with pytest.warns(UserWarning, match="standard error of local_entropy is above 1 nat"):
        _, error = flatness.local_entropy(wall, jnp.zeros(()), [None], 1e6, num_steps=2)
    assert error == jnp.inf
