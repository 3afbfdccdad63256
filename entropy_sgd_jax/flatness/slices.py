"""The loss on the line through two solutions, and on the plane through three."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure

from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import vectors
from entropy_sgd_jax.flatness.curvature import Loss
from entropy_sgd_jax.flatness.data import BatchSize, DataSet
from entropy_sgd_jax.flatness.figures import BLUE, INK, new_figure


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

    Cost: `points` evaluations of the loss over the data.

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
    direction = jax.tree.map(jnp.subtract, second, first)
    steps = np.linspace(-0.5, 1.5, points)
    values = _losses(loss, first, [direction], steps[:, None], batches, batch_size)
    distance = float(vectors.norm(direction))
    figure, axes = new_figure(6.5, 4.2, title)
    axes.plot(steps * distance, values, color=BLUE, lw=2)
    for place, name in zip((0, distance), names, strict=True):
        axes.axvline(place, color=INK, lw=0.8, ls=":")
        axes.text(place, 1.0, f" {name}", transform=axes.get_xaxis_transform(), va="top")
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

    The third may be a solution too, the starting point, or any other that is not in line.

    Cost: points² evaluations of the loss over the data.

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
    along, across = (jax.tree.map(jnp.subtract, other, first) for other in (second, third))
    width = float(vectors.norm(along))
    along = jax.tree.map(lambda leaf: leaf / width, along)
    shift = float(vectors.inner_product(along, across))
    across = jax.tree.map(lambda a, b: a - shift * b, across, along)
    height = float(vectors.norm(across))
    across = jax.tree.map(lambda leaf: leaf / height, across)

    places = np.array([[0, 0], [width, 0], [shift, height]])
    low, high = places.min(axis=0), places.max(axis=0)
    margin = 0.3 * (high - low).max()
    x, y = (np.linspace(low[i] - margin, high[i] + margin, points) for i in (0, 1))
    steps = np.stack(np.meshgrid(x, y), axis=-1)
    values = _losses(loss, first, [along, across], steps.reshape(-1, 2), batches, batch_size)
    figure, axes = new_figure(6.2, 5.2, title)
    logarithms = np.log10(np.maximum(values.reshape(points, points), 1e-12))
    filled = axes.contourf(x, y, logarithms, levels=20, cmap="viridis")
    figure.colorbar(filled, ax=axes, label="log₁₀ of the loss")
    for (right, up), name in zip(places, names, strict=True):
        axes.plot(right, up, "o", color="white", mec=INK, ms=8)
        axes.annotate(
            name, (right, up), (0, 8), textcoords="offset points", color="white", ha="center"
        )
    axes.set(xlabel=f"distance from {names[0]}", ylabel="distance from the line", aspect="equal")
    return figure


def _losses(
    loss: Loss,
    origin: PyTree,
    directions: list[PyTree],
    steps: np.ndarray,
    batches: PyTree,
    batch_size: BatchSize | None,
) -> np.ndarray:
    """The mean loss at `origin` plus each row of `steps` times the directions; one pass."""

    def losses(origin: PyTree, directions: list[PyTree], steps: Any, batch: PyTree) -> Any:
        def at(step: Any) -> Any:
            moved = jax.tree.map(
                lambda leaf, *ways: leaf + sum(s * way for s, way in zip(step, ways, strict=True)),
                origin,
                *directions,
            )
            return loss(moved, batch)

        return lax.map(at, steps)

    mean = DataSet(batches, batch_size, single_pass=True).mean(losses)
    return np.asarray(mean(origin, directions, jnp.asarray(steps, jnp.float32)))
