"""Pictures of the loss on the line through two solutions, and on the plane through three."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness._curvature import Loss
from entropy_sgd_jax.flatness._data import BatchSize
from entropy_sgd_jax.flatness._figures import BLUE, INK, new_figure
from entropy_sgd_jax.flatness._slices import loss_on_line, loss_on_plane


def slice_between(
    loss: Loss,
    first: PyTree,
    second: PyTree,
    batches: PyTree,
    *,
    names: tuple[str, str] = ("first", "second"),
    points: int = 41,
    batch_size: BatchSize | None = None,
    title: str = "Loss on the line through two solutions",
) -> Figure:
    """The loss over the data set along the line through two solutions.

    The numbers are those of ``flatness.loss_on_line``, at its cost.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch.
      first: parameters.
      second: parameters in the same structure.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``.
      names: of the two solutions.
      points: on the line, which goes half their distance beyond each.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      title: above the picture.
    """
    line = loss_on_line(loss, first, second, batches, points=points, batch_size=batch_size)
    figure, axes = new_figure(6.5, 4.2, title)
    axes.plot(line.x, line.losses, color=BLUE, lw=2)
    for place, name in zip(line.places, names, strict=True):
        axes.axvline(float(place), color=INK, lw=0.8, ls=":")
        axes.text(float(place), 1.0, f" {name}", transform=axes.get_xaxis_transform(), va="top")
    axes.set(xlabel="distance along the line", ylabel="loss")
    axes.margins(x=0)
    return figure


def plane_through(
    loss: Loss,
    first: PyTree,
    second: PyTree,
    third: PyTree,
    batches: PyTree,
    *,
    names: tuple[str, str, str] = ("first", "second", "third"),
    points: int = 25,
    batch_size: BatchSize | None = None,
    title: str = "Loss on the plane through three solutions",
) -> Figure:
    """The loss over the data set on the plane through two solutions and a third point.

    The numbers are those of ``flatness.loss_on_plane``, at its cost.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch.
      first: parameters, at the origin of the picture.
      second: parameters, on the horizontal axis.
      third: parameters, above it.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``.
      names: of the three.
      points: on each side of the grid.
      batch_size: the weight of a batch, a function of it; None for its number of examples.
      title: above the picture.
    """
    plane = loss_on_plane(loss, first, second, third, batches, points=points, batch_size=batch_size)
    figure, axes = new_figure(6.2, 5.2, title)
    logarithms = np.log10(np.maximum(np.asarray(plane.losses), 1e-12))
    filled = axes.contourf(plane.x, plane.y, logarithms, levels=20, cmap="viridis")
    figure.colorbar(filled, ax=axes, label="log₁₀ of the loss")
    for (right, up), name in zip(np.asarray(plane.places), names, strict=True):
        axes.plot(right, up, "o", color="white", mec=INK, ms=8)
        axes.annotate(
            name, (right, up), (0, 8), textcoords="offset points", color="white", ha="center"
        )
    axes.set(xlabel=f"distance from {names[0]}", ylabel="distance from the line", aspect="equal")
    return figure
