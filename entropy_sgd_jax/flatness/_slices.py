"""The loss on the line through two solutions, and on the plane through three."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from entropy_sgd_jax import _protocol, _trees
from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import _checks, _vectors
from entropy_sgd_jax.flatness._curvature import Loss, ScalarLoss
from entropy_sgd_jax.flatness._data import BatchSize, DataSet


class LossLine(NamedTuple):
    """The loss at points of a line, by their distance from the first solution."""

    x: jax.Array  # shape (points,), in the parameters' units
    losses: jax.Array  # shape (points,)
    places: jax.Array  # of the two solutions, shape (2,): 0 and their distance


class LossPlane(NamedTuple):
    """The loss on a grid in a plane, whose first axis goes from the first solution to the second.

    The axes are orthonormal, so that distances in the plane are those between parameters.
    """

    x: jax.Array  # shape (points,), in the parameters' units
    y: jax.Array  # shape (points,)
    losses: jax.Array  # shape (points, points): of y, then of x, as matplotlib has it
    places: jax.Array  # of the three solutions, (x, y) each, shape (3, 2)


def loss_on_line(
    loss: Loss,
    first: PyTree,
    second: PyTree,
    batches: PyTree,
    *,
    points: int = 41,
    batch_size: BatchSize | None = None,
) -> LossLine:
    """The loss over the data set along the line through two solutions.

    Cost: `points` evaluations of the loss over the data, in one pass; memory of three trees like
    `first`. ``flatness.plots.slice_between`` draws it.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar. It is not differentiated,
        so an error rate will do.
      first: real floating arrays in any pytree.
      second: a tree in the structure and shapes of `first`.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``. An iterator will do.
      points: how many, evenly from half the distance before the first solution to as much beyond
        the second; a static int of at least 2.
      batch_size: the weight of a batch, a function of it; None for its number of examples.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form, and for two
        solutions that are the same.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import loss_on_line
    >>> loss = lambda params, batch: jnp.sum(params**2)
    >>> line = loss_on_line(loss, jnp.array([0.0, 0.0]), jnp.array([0.0, 2.0]), [None], points=5)
    >>> print(line.x, line.losses)
    [-1.  0.  1.  2.  3.] [1. 0. 1. 4. 9.]
    """
    points = _points(points)
    first, along = _difference("second", second, first)
    distance = _vectors.norm(along)
    _require_apart("second", distance, 0, "`first`")
    steps = jnp.linspace(-0.5, 1.5, points, dtype=distance.dtype)
    data = DataSet(batches, batch_size, single_pass=True)
    losses = _losses(loss, first, [along], steps[:, None], data)
    return LossLine(steps * distance, losses, jnp.stack([jnp.zeros_like(distance), distance]))


def loss_on_plane(
    loss: Loss,
    first: PyTree,
    second: PyTree,
    third: PyTree,
    batches: PyTree,
    *,
    points: int = 25,
    batch_size: BatchSize | None = None,
) -> LossPlane:
    """The loss over the data set on the plane through two solutions and a third point.

    The third may be a solution too, the starting point, or any other not collinear with them. The
    grid goes beyond all three by 0.3 of its longer side.

    Cost: points² evaluations of the loss over the data, in one pass; memory of four trees like
    `first`. ``flatness.plots.plane_through`` draws it.

    Args:
      loss: from ``(params, batch)`` to the mean over the batch, a scalar. It is not differentiated.
      first: real floating arrays in any pytree; at the origin.
      second: a tree in the structure and shapes of `first`; at (‖second − first‖, 0).
      third: another such tree; at a positive y.
      batches: stacked or iterable, see ``entropy_sgd_jax.flatness``. An iterator will do.
      points: on each side of the grid, a static int of at least 2.
      batch_size: the weight of a batch, a function of it; None for its number of examples.

    Raises:
      ValueError: for arguments out of range, parameters or batches of another form, and for three
        points in line.

    >>> import jax.numpy as jnp
    >>> from entropy_sgd_jax.flatness import loss_on_plane
    >>> loss = lambda params, batch: jnp.sum(params**2)
    >>> corners = jnp.zeros(2), jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0])
    >>> print(loss_on_plane(loss, *corners, [None], points=2).places)
    [[0. 0.]
     [2. 0.]
     [1. 1.]]
    """
    points = _points(points)
    first, along = _difference("second", second, first)
    _, across = _difference("third", third, first)
    width, reach = _vectors.norm(along), _vectors.norm(across)
    _require_apart("second", width, 0, "`first`")
    along = _vectors.normalised(along)
    shift = _trees.inner_product(along, across)
    across = _vectors.add_scaled(across, -shift, along)
    height = _vectors.norm(across)
    _require_apart("third", height, reach, "the line through `first` and `second`")
    across = _vectors.normalised(across)

    zero = jnp.zeros_like(width)
    places = jnp.array([[zero, zero], [width, zero], [shift, height]])
    low, high = places.min(axis=0), places.max(axis=0)
    margin = 0.3 * (high - low).max()
    x, y = jnp.linspace(low - margin, high + margin, points, axis=1)
    steps = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)
    data = DataSet(batches, batch_size, single_pass=True)
    losses = _losses(loss, first, [along, across], steps, data)
    return LossPlane(x, y, losses.reshape(points, points), places)


def _points(points: Any) -> int:
    return _checks.integer("points", points, 2, float("inf"), "25 to 41 is usual.")


def _difference(name: str, other: PyTree, first: PyTree) -> tuple[PyTree, PyTree]:
    """The first solution, and the way from there to the other, as arrays."""
    _checks.params(first)
    _protocol.same_tree(name, other, first, "Pass parameters of the same model.")
    first, other = _vectors.arrays(first), _vectors.arrays(other)
    wide = jax.tree.map(lambda leaf: leaf.astype(_trees.wide_dtype(leaf)), other)
    return first, _vectors.add_scaled(wide, -1, first)


def _require_apart(name: str, distance: jax.Array, size: ArrayLike, of: str) -> None:
    """Raises ValueError if the distance is known, and no more than rounding."""
    if _trees.is_traced(distance):
        return
    if distance <= 10 * jnp.finfo(distance.dtype).eps * size:
        raise ValueError(
            f"`{name}` must be apart from {of}; got a distance of {distance:.3g}. Pass the "
            "parameters of another solution."
        )


def _losses(
    loss: Loss, origin: PyTree, directions: list[PyTree], steps: jax.Array, data: DataSet
) -> jax.Array:
    """The mean loss at `origin` plus each row of `steps` times the directions; one pass."""
    loss = ScalarLoss(loss)

    def losses(
        origin: PyTree, directions: list[PyTree], steps: jax.Array, batch: PyTree
    ) -> jax.Array:
        def at(step: jax.Array) -> jax.Array:
            moved = origin
            for i, direction in enumerate(directions):
                moved = _vectors.add_scaled(moved, step[i], direction)
            return loss(moved, batch)

        values: jax.Array = lax.map(at, steps)
        return values

    mean: jax.Array = data.mean(losses)(origin, directions, steps)
    return mean
