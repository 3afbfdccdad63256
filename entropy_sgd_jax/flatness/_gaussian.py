"""The Gaussian that annealing starts from: the scope's, narrowed to the parabola in the loss.

It starts as wide as the scope allows. The line through the gradients at random points of it says
where the parabola has its minimum and how narrow it is, in each direction. A parabola is matched,
however narrow. Any other loss is followed only as long as it varies by much more than annealing can
deal with, since what is not parabolic, such as a second valley, must stay within reach. Of all that
were tried, annealing gets the one whose points alone account for most of the integral: at a wall
with a plain behind it, each round is narrower than the last, until the plain is out of reach.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import PyTree
from entropy_sgd_jax.flatness import _lanczos, _vectors
from entropy_sgd_jax.flatness._data import DataSet

_ROUNDS = 64  # of the fit, at most
_STRAIGHT = 0.9  # of a gradient's variance is explained by a line if the loss is a parabola
_TOO_MUCH = 100  # nats by which the energy varies, and ten times the square root of the dimension
_CLOSE = 0.1  # nats by which a later round may fall behind an earlier one
_AXES, _NUMBERS = 256, 2**24  # directions that are fitted one by one, at most; numbers in them


class Axes(NamedTuple):
    """Coordinates: one along each vector of an orthonormal basis, and the rest, a tree."""

    basis: PyTree
    complete: bool  # whether the basis spans the whole space; the rest is None then

    def split(self, vector: PyTree) -> tuple[jax.Array, Any]:
        """The coordinates of a vector."""
        if self.complete:
            return _trees.inner_product(self.basis, vector), None
        rest, along = _vectors.orthogonalised(vector, self.basis)
        return along, rest

    def join(self, coordinates: tuple[jax.Array, Any]) -> Any:
        """The vector with these coordinates."""
        along, rest = coordinates
        vector = _vectors.combine(along, self.basis)
        return vector if self.complete else _vectors.add_scaled(vector, 1, rest)

    def noise(self, key: jax.Array, like: PyTree) -> tuple[jax.Array, Any]:
        """Unit normal in all coordinates."""
        along_key, rest_key = jax.random.split(key)
        shape = jax.tree.leaves(self.basis)[0].shape[:1]
        along = jax.random.normal(along_key, shape, _trees.wide_dtype(like))
        if self.complete:
            return along, None
        return along, self.split(_vectors.draw("gaussian", rest_key, like))[1]


class Gaussian(NamedTuple):
    """Independent in all coordinates."""

    mean: tuple[jax.Array, Any]
    precision: tuple[jax.Array, jax.Array]  # along each axis; one number for the rest

    def place(self, points: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        """The coordinates of points that are given in units of the widths, from the mean."""
        mean = jax.tree.map(lambda leaf: leaf[None], self.mean)
        moved: tuple[jax.Array, Any] = _vectors.add_scaled(mean, 1, self.in_units(points))
        return moved

    def in_units(self, gradients: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        """Gradients in the coordinates, as those in units of the widths."""
        along, rest = (precision**-0.5 for precision in self.precision)
        return gradients[0] * along[None], jax.tree.map(lambda leaf: leaf * rest, gradients[1])


def principal_axes(
    data: DataSet, product: Callable[[Any], Any], params: PyTree, count: int, key: jax.Array
) -> Axes:
    """Eigenvectors of the Hessian: all of a small one, else those of a Krylov space."""
    rows = min(count, max(_NUMBERS // count, 32), _AXES)

    def finite_product(vector: PyTree) -> Any:
        return _finite(product(vector))

    krylov = _lanczos.start(params, rows, key)
    krylov = _lanczos.extend(data, finite_product, krylov, -1, rows)
    _, rotation = jnp.linalg.eigh(krylov.projected)
    return Axes(_vectors.combine(rotation.T, krylov.basis), complete=rows == count)


class _Round(NamedTuple):
    """A Gaussian that was tried."""

    gaussian: Gaussian
    least: jax.Array  # energy of the points that were drawn from it
    evidence: jax.Array  # how much of the integral they account for


class _Search(NamedTuple):
    """How far the fit has come."""

    found: Gaussian
    best: _Round
    settled: jax.Array
    rounds: jax.Array


def fit(
    data: DataSet,
    evaluate: Callable[[Any], tuple[jax.Array, Any]],
    noise: Callable[[jax.Array], Any],
    scope: jax.Array,
    key: jax.Array,
) -> tuple[Gaussian, jax.Array]:
    """The Gaussian, and an energy within it.

    Args:
      data: for its loop.
      evaluate: the energy β f and its gradient, from and in the coordinates of several places.
      noise: from a key to as many points, unit normal in all coordinates.
      scope: γ.
      key: of the points.
    """

    def one_round(search: _Search) -> _Search:
        points = noise(jax.random.fold_in(key, search.rounds))
        refined: _Search = _refined(search, points, *evaluate(search.found.place(points)), scope)
        return refined

    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), noise(key))
    flat = Gaussian(mean=zeros, precision=(jnp.full_like(zeros[0], scope), scope))
    nothing = _Round(flat, scope * 0, jnp.full_like(scope, -jnp.inf))
    search = _Search(flat, nothing, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    search = data.while_loop(
        lambda search: ~search.settled & (search.rounds < _ROUNDS), one_round, search
    )
    best = one_round(search).best  # which tries the last one too
    return best.gaussian, best.least


@jax.jit
def _refined(
    search: _Search, points: PyTree, energy: jax.Array, gradient: PyTree, scope: jax.Array
) -> _Search:
    """The next Gaussian."""
    known = jnp.where(jnp.isfinite(energy), energy, jnp.nan)
    least = jnp.nanmin(known)
    count = sum(leaf[0].size for leaf in jax.tree.leaves(points))
    evidence = _evidence(search.found, points, energy, scope)
    tried = _Round(search.found, jnp.nan_to_num(least), evidence)
    close = _CLOSE + count * jnp.finfo(evidence.dtype).eps
    best = _trees.where(evidence >= search.best.evidence - close, tried, search.best)
    varied = ~(jnp.nanmax(known) - least < _TOO_MUCH + 10 * count**0.5)
    gradient = _finite(search.found.in_units(gradient))
    columns = zip(points, gradient, *search.found, (False, True), strict=True)
    parts = [_refined_part(*column, scope, varied) for column in columns]
    mean, precision, settled = zip(*parts, strict=True)
    found = Gaussian(mean, precision)
    return _Search(found, best, settled[0] & settled[1], search.rounds + 1)


def _evidence(gaussian: Gaussian, points: PyTree, energy: jax.Array, scope: jax.Array) -> jax.Array:
    """The logarithm of the integral over that of the scope's own Gaussian, from these points.

    By importance sampling: the mean weight less two standard errors, since one lucky point is no
    evidence.
    """
    squares = [
        jax.vmap(_trees.inner_product)(tree, tree) for tree in (gaussian.place(points), points)
    ]
    logs = -energy - 0.5 * (scope * squares[0] - squares[1])
    counts = [sum(leaf[0].size for leaf in jax.tree.leaves(part)) for part in points]
    along, rest = (jnp.log(precision / scope) for precision in gaussian.precision)
    volume = jnp.sum(along) + counts[1] * rest
    highest = jnp.nan_to_num(jnp.nanmax(logs))
    weights = jnp.nan_to_num(jnp.exp(logs - highest))
    sure = weights.mean() - 2 * weights.std(ddof=1) / len(weights) ** 0.5
    return jnp.log(jnp.maximum(sure, 0)) + highest - 0.5 * volume


def _refined_part(
    points: PyTree,
    gradient: PyTree,
    mean: Any,
    precision: jax.Array,
    pooled: bool,
    scope: jax.Array,
    varied: jax.Array,
) -> tuple[Any, jax.Array, Any]:
    """Mean, precision, and whether they are settled, from the gradients at the points.

    By a line with a slope for each coordinate; with `pooled`, with one for all of them.
    """
    if not jax.tree.leaves(points):
        return mean, precision, True

    def dot(a: PyTree, b: PyTree) -> jax.Array:
        return _trees.inner_product(a, b) if pooled else jnp.sum(a * b, axis=0)

    unit = _vectors.binary_scale(_vectors.peak(gradient))  # what is squared below may overflow
    centred = jax.tree.map(_centred, points)
    steep = jax.tree.map(lambda leaf: _centred(leaf) / unit, gradient)
    square, product, variance = dot(centred, centred), dot(centred, steep), dot(steep, steep)
    unexplained = variance - product**2 / square
    slope = unit * product / square
    # The whole exponent is β f + γ/2 ‖·‖²: its curvature here, and the way to its minimum.
    own = scope / precision
    curvature = jnp.maximum(slope + own, own / 4)
    straight = (unexplained <= (1 - _STRAIGHT) * variance) & (slope + own >= curvature)
    reach = jnp.where(straight, 100.0, jnp.where(varied, 1.0, 0.0)).astype(precision.dtype)
    width = precision**-0.5

    def way(mean: jax.Array, points: jax.Array, gradient: jax.Array) -> jax.Array:
        pull = gradient.mean(axis=0) - slope * points.mean(axis=0) + scope * width * mean
        return jnp.clip(-pull / curvature, -reach, reach)

    ways = jax.tree.map(way, mean, points, gradient)
    distance = _root_mean_square(ways) if pooled else jnp.abs(ways)
    # Far from the minimum even a wall looks straight: go there first.
    careful = jnp.clip(jnp.sqrt(curvature), 0.25, 4)
    factor = jnp.where(straight, jnp.clip(curvature, 0.01, 100), careful)
    factor = jnp.where(jnp.where(straight, distance < 1, varied), factor, 1)
    settled = ~varied & jnp.all((distance < 0.5) & (jnp.abs(jnp.log(factor)) < 0.5))
    moved = jax.tree.map(lambda mean, way: mean + width * way, mean, ways)
    return moved, precision * factor, settled


def _centred(leaf: jax.Array) -> jax.Array:
    return leaf - leaf.mean(axis=0, keepdims=True)


def _root_mean_square(tree: PyTree) -> jax.Array:
    count: int = sum(leaf.size for leaf in jax.tree.leaves(tree))
    return _vectors.norm(tree) / jnp.sqrt(count)


def _finite(tree: PyTree) -> Any:
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), tree)
