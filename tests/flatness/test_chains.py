"""Chains by their parts: what is tuned and when not, their errors, and when to doubt them."""

from __future__ import annotations

import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_sgd_jax import flatness
from entropy_sgd_jax.flatness import _chains, _convergence, _learning_coefficient, _metropolis
from entropy_sgd_jax.flatness._data import DataSet
from tests.flatness.test_learning_coefficient import quadratic


@pytest.mark.parametrize("num_steps", [8, 30, 31])
def test_the_step_size_is_the_mean_of_the_late_burn_in_and_then_stays(num_steps: int) -> None:
    plan, changes = _chains.plan(2, num_steps), np.random.default_rng(0).normal(size=num_steps)
    size, seen = _chains.StepSize.start(plan, jnp.float32(0.5)), []
    for number, change in enumerate(changes):
        size = size.moved(plan, number, change)
        seen.append(float(size.log))
    walk, burn_in = np.log(0.5) + np.cumsum(changes), num_steps // 2
    np.testing.assert_allclose(seen[: burn_in - 1], walk[: burn_in - 1], rtol=1e-5)
    np.testing.assert_allclose(seen[burn_in - 1 :], walk[burn_in // 2 : burn_in].mean(), rtol=1e-5)


def test_the_mean_squares_are_those_of_the_burn_in() -> None:
    plan = _chains.plan(2, 20)
    force, squares = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros(2)
    np.testing.assert_array_equal(_chains.mean_squares(plan, 0, squares, force), [5, 10])
    for number in (10, 19):
        np.testing.assert_array_equal(_chains.mean_squares(plan, number, squares, force), squares)


def test_the_error_of_series_that_alternate_is_finite() -> None:
    """Which have less than no correlation: it is taken as no less than Vehtari et al. do."""
    samples = np.tile([1.0, -1.0], (4, 100))
    pooled = 100 / 99 * 99 / 100  # within; the halves have one mean
    expected = np.sqrt(pooled / np.log10(800) / 800)
    np.testing.assert_allclose(_convergence.standard_error(samples), expected, rtol=1e-5)


def test_the_second_number_is_that_of_the_same_point() -> None:
    """Where a proposal is refused, of the old one."""
    plan = _chains.plan(4, 40)._replace(step_size=jnp.float32(1.0), precondition=False)

    def loss(params: Any, batch: Any) -> jax.Array:
        return quadratic(params, batch)

    sample = _metropolis.sampler(loss, jnp.ones(20), DataSet(jnp.zeros((1, 1)), None), plan, loss)
    target = _chains.Target(jnp.float32(1.0), jnp.float32(1.0))
    run, _ = sample(target, jax.random.key(0), jnp.zeros((4, 20)), 1.0)
    assert run.samples.acceptance.mean() < 0.95
    np.testing.assert_allclose(run.samples.errors, run.samples.losses + run.here, rtol=1e-4)


def test_half_chains_apart_are_the_error_of_what_else_forgets_at_once() -> None:
    """Two steps up, two steps down: no correlation is left, but for the means of the halves."""
    apart = 0.3 * np.random.default_rng(0).normal(size=(4, 2))
    samples = np.tile([1.0, 1.0, -1.0, -1.0], (4, 250)) + np.repeat(apart, 500, axis=1)
    expected = apart.std(ddof=1) / np.sqrt(8)
    np.testing.assert_allclose(_convergence.standard_error(samples), expected, rtol=1e-5)


def estimate(**fields: Any) -> flatness.LearningCoefficient:
    """A healthy one of 1 ± 0.1, from eight chains, with these fields."""
    healthy = dict.fromkeys(flatness.LearningCoefficient._fields, 0.0)
    healthy |= {"value": 1.0, "standard_error": 0.1, "acceptance": 0.8, "r_hat": 1.0}
    numbers = {**healthy, "chains": np.ones(8), **fields}
    return flatness.LearningCoefficient(*(jnp.asarray(number) for number in numbers.values()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, None),
        ({"r_hat": 1.09, "drift": -4.0, "departure": 4.0, "rounding": 0.29}, None),
        ({"step_bias": -0.29, "acceptance": 0.31}, None),
        ({"departure": -9.0}, None),  # towards w₀: nothing is still on its way out
        ({"r_hat": 1.11}, "have not arrived"),
        ({"drift": 4.2}, "have not arrived"),
        ({"drift": -4.2}, "have not arrived"),
        ({"departure": 4.2}, "have not arrived"),
        ({"rounding": 0.31}, "The digits of the loss"),
        ({"step_bias": -0.31}, "The finite step size adds -0.31"),
        ({"acceptance": 0.29}, "Only 29% of the proposals"),
        ({"value": -0.31}, "`params` is no minimum"),
        ({"chains": [np.nan] + [1.0] * 7}, "1 of 8 chains diverged"),
    ],
    ids=str,
)
def test_each_doubt_by_itself(fields: dict, message: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimate(**fields).check()
    found = [str(warning.message) for warning in caught]
    assert len(found) == (message is not None)
    assert all(re.search(message or "", text) for text in found)


def test_what_all_chains_have_in_common_is_no_more_than_one_chain() -> None:
    """As mini-batches that they share: eight equal series tell as much as one."""
    series = np.tile(np.random.default_rng(0).normal(size=2000), (8, 1))
    plan = _chains.plan(8, 2000)
    samples = _chains.Samples.empty(plan, jnp.float32)._replace(losses=jnp.asarray(series))
    run = _chains.Run(samples, jnp.float32(1.0), jnp.float32(0.0))
    own, shared = (
        _learning_coefficient._estimate(run, jnp.float32(1.0), 1000, each, 0.0).standard_error
        for each in (False, True)
    )
    np.testing.assert_allclose(shared, 1 / np.sqrt(1000), rtol=0.15)
    assert own < 0.6 * shared
