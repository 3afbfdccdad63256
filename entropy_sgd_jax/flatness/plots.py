"""Pictures of valleys: one call each, which returns a matplotlib Figure.

Save it with ``figure.savefig("spectrum.png", dpi=150)``; a notebook displays it. Needs
matplotlib, an extra of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from entropy_sgd_jax import _checks
from entropy_sgd_jax.flatness._chain_figures import learning_coefficients, traces
from entropy_sgd_jax.flatness._estimates import Estimate
from entropy_sgd_jax.flatness._figures import BLUE, COLOURS, INK, new_figure
from entropy_sgd_jax.flatness._slice_figures import plane_through, slice_between
from entropy_sgd_jax.flatness._spectrum import SpectralDensity

__all__ = [
    "density",
    "energy_profiles",
    "learning_coefficients",
    "plane_through",
    "slice_between",
    "spectrum",
    "traces",
    "valleys",
]


def spectrum(eigenvalues: npt.ArrayLike, *, title: str = "Eigenvalues of the Hessian") -> Figure:
    """A histogram of all eigenvalues, with its right tail and its negative side in two insets.

    Args:
      eigenvalues: of ``exact_spectrum``, shape (n,).
      title: above the picture.

    Raises:
      ValueError: if there are none, or one is not finite.

    >>> from entropy_sgd_jax.flatness import plots
    >>> figure = plots.spectrum([-0.1, 0.0, 0.0, 0.001, 0.2, 5.0])

    References:
      Chaudhari et al., "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys", ICLR 2017,
      Figure 1.
    """
    values = np.asarray(eigenvalues)
    if not values.size or not np.isfinite(values).all():
        got = f"{np.count_nonzero(~np.isfinite(values))} of {values.size} that are not finite"
        advice = "Look at the gradient at these parameters."
        raise _checks.error("eigenvalues", "finite, one or more", got, advice)
    figure, axes = new_figure(7.5, 5, title)
    _histogram(axes, values, values.min(), values.max())
    axes.set(xlabel="eigenvalue", ylabel="number of eigenvalues")
    near_zero = f"{np.mean(np.abs(values) < 1e-4):.0%} within 10⁻⁴ of zero"
    axes.text(0.07, 0.97, near_zero, transform=axes.transAxes, va="top")
    if values.max() > 0:
        inset = axes.inset_axes((0.5, 0.6, 0.48, 0.32))
        _histogram(inset, values, 0.05 * values.max(), values.max())
        inset.set_title(f"right tail, up to {values.max():.3g}", fontsize=9)
    if values.min() < 0:
        inset = axes.inset_axes((0.5, 0.18, 0.48, 0.27))
        _histogram(inset, values, values.min(), 0)
        inset.set_title(f"negative side, down to {values.min():.2g}", fontsize=9)
    return figure


def density(
    spectra: SpectralDensity | Mapping[str, SpectralDensity],
    *,
    width: float | None = None,
    eigenvalues: npt.ArrayLike | None = None,
    title: str = "Spectral density of the Hessian",
) -> Figure:
    """The density of the spectrum on a log axis, with a band of one standard error.

    Args:
      spectra: of ``spectral_density``: one, or several by their names.
      width: of the smoothing kernel, in the units of the eigenvalues; None for a hundredth of the
        range.
      eigenvalues: exact ones to compare with, smoothed alike; None for none.
      title: above the picture.
    """
    named = {"": spectra} if isinstance(spectra, SpectralDensity) else dict(spectra)
    nodes = np.concatenate([np.ravel(s.nodes) for s in named.values()])
    width = width or max(float(np.ptp(nodes)) / 100, 1e-12)
    grid = np.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, 800)

    figure, axes = new_figure(7.5, 4.5, title)
    if eigenvalues is not None:
        rule = SpectralDensity(jnp.ravel(jnp.asarray(eigenvalues))[None], _even(eigenvalues))
        exact = rule.density(grid, width)
        axes.plot(grid, exact, color=INK, lw=3, alpha=0.35, label="all eigenvalues")
    for name, one in named.items():
        mean, error = map(np.asarray, one.density_estimate(grid, width))
        label = name or f"Lanczos quadrature, {len(one.nodes)} probes"
        (line,) = axes.plot(grid, mean, lw=1.5, label=label)
        axes.fill_between(
            grid, mean - error, mean + error, color=line.get_color(), alpha=0.25, lw=0
        )
    floor = 0.1 / (max(s.nodes.size for s in named.values()) * width * 100)
    axes.set(yscale="log", ylim=(floor, None), ylabel="density (per unit of eigenvalue)")
    axes.set_xlabel(f"eigenvalue (smoothed by a Gaussian of width {width:.2g})")
    axes.legend(frameon=False)
    return figure


def energy_profiles(
    profiles: Mapping[str, tuple[npt.ArrayLike, Estimate]],
    *,
    ylabel: str = "rise of the loss",
    title: str = "Local energy",
) -> Figure:
    """The local energy of several solutions against the strength of the perturbation.

    Args:
      profiles: from the name of each solution to its strengths, shape (points,) or (), and what
        ``local_energy`` gave for them.
      ylabel: what rises, with its unit.
      title: above the picture.
    """
    figure, axes = new_figure(6.5, 4.5, title)
    axes.set_prop_cycle(color=COLOURS)
    for name, (strengths, estimate) in profiles.items():
        at, value, error = map(np.atleast_1d, (strengths, *estimate))
        (line,) = axes.plot(at, value, "o-" if at.size == 1 else "-", lw=2, label=name)
        axes.fill_between(
            at, value - error, value + error, color=line.get_color(), alpha=0.25, lw=0
        )
    axes.set(xlabel="strength σ of the perturbation w + σ z ⊙ w", ylabel=ylabel)
    axes.margins(x=0)
    axes.legend(frameon=False)
    return figure


def valleys(
    loss: Callable[[jax.Array], jax.Array],
    scopes: Sequence[float] = (30.0, 5.0, 1.0),
    *,
    low: float = -3.0,
    high: float = 3.0,
    title: str = "A loss and its local entropy",
) -> Figure:
    """A loss of one number, and its negative local entropy at several scopes, by quadrature.

    For a loss with a sharp valley and a wide one, this is the picture that explains the idea.
    The constant of a flat loss is left out, so that −F becomes the loss as the scope grows.

    Args:
      loss: of one number; a scalar function of a scalar.
      scopes: γ, each above 0.
      low: left end of the picture.
      high: right end.
      title: above the picture.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import plots
    >>> figure = plots.valleys(lambda x: x**2 - 2 * jnp.exp(-50 * (x - 1) ** 2))
    """
    x = np.linspace(low, high, 601)
    reach = 8 / np.sqrt(min(scopes))
    nodes = np.linspace(low - reach, high + reach, 8001)
    heights = np.asarray(jax.vmap(loss)(jnp.asarray(nodes)), np.float64)
    figure, axes = new_figure(7, 4.5, title)
    axes.plot(x, np.interp(x, nodes, heights), color=INK, lw=2.5, label="loss f")
    shades = np.linspace(0.85, 0.35, len(scopes))
    for scope, shade in zip(scopes, shades, strict=True):
        kernel = np.exp(-0.5 * scope * (nodes - x[:, None]) ** 2)
        mean = kernel @ np.exp(heights.min() - heights) / kernel.sum(axis=1)
        label = f"−F at scope γ = {scope:g}"
        axes.plot(x, heights.min() - np.log(mean), color=_blue(shade), lw=2, label=label)
    axes.set(xlabel="parameter x", ylabel="loss, negative local entropy (nats)")
    axes.margins(x=0)
    axes.legend(frameon=False, loc="upper center")
    return figure


def _histogram(axes: Axes, values: np.ndarray, low: float, high: float) -> None:
    """Counts between the two, on a log axis."""
    high = high if high > low else low + 1e-12
    axes.hist(values, bins=80, range=(low, high), color=BLUE, log=True)
    axes.set_ylim(bottom=0.5)  # shows what is there once
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.01)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelsize=9)


def _blue(shade: float) -> tuple[float, float, float]:
    return (1 - shade, 1 - 0.7 * shade, 1 - 0.3 * shade)


def _even(values: npt.ArrayLike) -> jax.Array:
    """The same weight for all, as one rule."""
    size = np.size(values)
    return jnp.full((1, size), 1 / size)
