"""Pictures of Langevin chains, and of the learning coefficient through training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropy_sgd_jax.flatness._figures import BLUE, INK
from entropy_sgd_jax.flatness._learning_coefficient import LearningCoefficient


def traces(estimate: LearningCoefficient, *, title: str = "Langevin chains") -> Figure:
    """The rise of the loss, nβ (L(w) − L(w₀)), and the squared distance from w₀, at each step.

    Each chain is thin, their running mean bold, the burn-in shaded, and λ̂ a band of one standard
    error. Healthy chains cover each other, and both means are level beyond the burn-in. Where the
    distance still grows the chains have not arrived; a rise below zero started at no minimum.

    Args:
      estimate: of ``local_learning_coefficient``.
      title: above the picture.
    """
    value, error = float(estimate.value), float(estimate.standard_error)
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    loss, distance = figure.subplots(2, 1, sharex=True)
    for axes in (loss, distance):
        axes.spines[["top", "right"]].set_visible(False)
    loss.set_title(title, loc="left", fontweight="bold", color=INK)
    loss.set_title(f"λ̂ = {value:.3g} ± {error:.1g}", loc="right", fontsize=10)
    _chains(loss, float(estimate.inverse_temperature) * np.asarray(estimate.trace, np.float64))
    _chains(distance, np.asarray(estimate.distances, np.float64))
    loss.axhspan(value - error, value + error, color=INK, alpha=0.25, lw=0)
    loss.set_ylabel("nβ (L(w) − L(w₀))")
    distance.set(xlabel="step", ylabel="‖w − w₀‖²")
    return figure


def _chains(axes: Axes, series: np.ndarray) -> None:
    steps = np.arange(series.shape[1])
    width = max(len(steps) // 50, 1)
    mean = np.convolve(series.mean(axis=0), np.full(width, 1 / width), mode="valid")
    axes.plot(steps, series.T, color=BLUE, lw=0.4, alpha=0.4)
    axes.plot(np.arange(len(mean)) + width / 2, mean, color=INK, lw=1.8)
    axes.axvspan(0, len(steps) // 2, color="#999999", alpha=0.15, lw=0)
    axes.margins(x=0)


def learning_coefficients(
    courses: Mapping[str, tuple[Any, Any]],
    *,
    losses: Mapping[str, tuple[Any, Any]] | None = None,
    xlabel: str = "update",
    title: str = "Local learning coefficient",
) -> Figure:
    """λ̂ against the progress of training, with a band of one standard error.

    Args:
      courses: from a name to the numbers of the updates, shape (points,), and the estimates there,
        as many records of ``local_learning_coefficient`` or ``Estimate``.
      losses: from the same names to numbers of updates and losses, for a panel above; None for
        none.
      xlabel: what training is counted in.
      title: above the picture.
    """
    figure = Figure(figsize=(6.5, 4 if losses is None else 6), layout="constrained")
    panels = figure.subplots(1 if losses is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(title, loc="left", fontweight="bold", color=INK)
    for name, (updates, values) in (losses or {}).items():
        panels[0].plot(updates, values, lw=2, label=name)
        panels[0].set_ylabel("loss")
    for name, (updates, estimates) in courses.items():
        value, error = np.array([[float(e.value), float(e.standard_error)] for e in estimates]).T
        (line,) = panels[-1].plot(updates, value, lw=2, marker=".", label=name)
        panels[-1].fill_between(
            updates, value - error, value + error, color=line.get_color(), alpha=0.25, lw=0
        )
    panels[-1].set(xlabel=xlabel, ylabel="local learning coefficient λ̂")
    panels[0].legend(frameon=False)
    return figure
