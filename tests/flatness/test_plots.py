"""The pictures show the numbers that they are given, under labels."""

from __future__ import annotations

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from entropy_sgd_jax import flatness
from entropy_sgd_jax.flatness import plots
from tests.flatness.cases import network, plain

NET = network(4, np.float32)
OTHER = jax.tree.map(lambda leaf: 1.5 * leaf + 0.1, NET.params)
THIRD = jax.tree.map(jnp.cos, NET.params)
EIGENVALUES = np.concatenate([np.linspace(-0.3, 0, 20), np.zeros(70), np.linspace(0.1, 5, 10)])
RULES = flatness.SpectralDensity(
    jnp.array([[0.0, 1.0, 4.0], [0.1, 1.2, 4.1]]), jnp.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
)
CHAINS = flatness.local_learning_coefficient(
    lambda params, batch: jnp.sum(params**2), jnp.zeros(3), [None], inverse_temperature=100.0
)
DRAWN = {
    "spectrum": lambda: plots.spectrum(EIGENVALUES),
    "density": lambda: plots.density(RULES, eigenvalues=EIGENVALUES, width=0.1),
    "densities": lambda: plots.density({"a": RULES, "b": RULES}),
    "profiles": lambda: plots.energy_profiles(
        {"a": (np.arange(3), flatness.Estimate(jnp.arange(3.0), jnp.ones(3)))}
    ),
    "a profile of one": lambda: plots.energy_profiles(
        {"a": (0.1, flatness.Estimate(jnp.ones(()), jnp.ones(())))}
    ),
    "line": lambda: plots.slice_between(
        plain(NET.loss), NET.params, OTHER, NET.ragged, names=("SGD", "SAM"), points=5
    ),
    "plane": lambda: plots.plane_through(
        plain(NET.loss), NET.params, OTHER, THIRD, NET.batches, points=4
    ),
    "coefficients": lambda: plots.learning_coefficients({"SGD": ([0, 10], [CHAINS, CHAINS])}),
    "valleys": lambda: plots.valleys(lambda x: x**2, scopes=(1e4, 1.0)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_has_labels_and_can_be_saved(name: str) -> None:
    figure = DRAWN[name]()
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert axes.get_title(loc="left")
    figure.savefig(io.BytesIO(), dpi=30)


def test_spectrum_has_two_insets() -> None:
    assert len(plots.spectrum(EIGENVALUES).axes[0].child_axes) == 2
    assert len(plots.spectrum(np.ones(3)).axes[0].child_axes) == 1


@pytest.mark.parametrize("eigenvalues", [[], [1.0, np.nan]], ids=str)
def test_no_picture_of_what_is_not_finite(eigenvalues: list[float]) -> None:
    with pytest.raises(ValueError, match="`eigenvalues` must be finite, one or more; got"):
        plots.spectrum(eigenvalues)


def test_traces_show_the_loss_over_the_distance() -> None:
    figure = plots.traces(CHAINS, title="Chains")
    figure.savefig(io.BytesIO(), dpi=30)
    loss, distance = figure.axes
    assert loss.get_title(loc="left") == "Chains"
    for axes, series in ((loss, 100 * CHAINS.trace), (distance, CHAINS.distances)):
        for line, row in zip(axes.lines[:8], series, strict=True):
            np.testing.assert_allclose(line.get_ydata(), row, rtol=1e-6)
    assert distance.get_xlabel() == "step"


def test_coefficients_stand_under_the_losses() -> None:
    course = {"SGD": ([0, 10], [CHAINS] * 2)}
    line = plots.learning_coefficients(course).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), CHAINS.value, rtol=1e-6)
    above, below = plots.learning_coefficients(course, losses={"SGD": ([0, 5], [2.0, 1.0])}).axes
    np.testing.assert_array_equal(above.lines[0].get_ydata(), [2.0, 1.0])
    np.testing.assert_allclose(below.lines[0].get_ydata(), CHAINS.value, rtol=1e-6)
    assert [axes.get_ylabel() for axes in (above, below)] == [
        "loss",
        "local learning coefficient λ̂",
    ]


def test_density_is_drawn_as_computed() -> None:
    line = plots.density(RULES, width=0.1).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), RULES.density(line.get_xdata(), 0.1))


def test_line_meets_both_solutions() -> None:
    loss = plain(NET.loss)
    (line,) = DRAWN["line"]().axes[0].lines[:1]
    for place, params in ((1, NET.params), (3, OTHER)):
        np.testing.assert_allclose(line.get_ydata()[place], loss(params, NET.whole), rtol=1e-5)


def test_plane_shows_the_logarithm_of_its_losses() -> None:
    plane = flatness.loss_on_plane(plain(NET.loss), NET.params, OTHER, THIRD, NET.batches, points=4)
    axes = DRAWN["plane"]().axes[0]
    markers = np.array([line.get_xydata()[0] for line in axes.lines])
    np.testing.assert_allclose(markers, plane.places, rtol=1e-6)
    low, high = axes.collections[0].get_clim()
    assert low <= np.log10(plane.losses).min() < np.log10(plane.losses).max() <= high


def test_negative_local_entropy_of_a_parabola() -> None:
    """−log ⟨exp(−x′²)⟩ over x′ ~ N(x, 1/γ): x² / (1 + 2/γ) + ½ log(1 + 2/γ)."""
    _, sharp, wide = plots.valleys(lambda x: 1000 + x**2, scopes=(1e4, 1.0)).axes[0].lines
    for line, scope in ((sharp, 1e4), (wide, 1.0)):
        x, spread = line.get_xdata(), 1 + 2 / scope
        exact = 1000 + x**2 / spread + 0.5 * np.log(spread)
        np.testing.assert_allclose(line.get_ydata(), exact, atol=2e-3)


def extents(patch: Any) -> np.ndarray:
    """Its corners, in the coordinates of the data, or of the axes where it spans them."""
    path = patch.get_path().transformed(patch.get_patch_transform())
    return path.get_extents().get_points()


def test_the_burn_in_is_shaded_and_the_value_is_in_a_band() -> None:
    loss, distance = plots.traces(CHAINS).axes
    for axes in (loss, distance):
        np.testing.assert_allclose(extents(axes.patches[0])[:, 0], [0, CHAINS.trace.shape[1] // 2])
    value, error = float(CHAINS.value), float(CHAINS.standard_error)
    band = extents(loss.patches[1])[:, 1]
    np.testing.assert_allclose(band, [value - error, value + error], rtol=1e-5)
