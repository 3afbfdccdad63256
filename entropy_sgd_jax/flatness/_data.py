"""The mean over a data set, however its batches come, and the loops that go with it.

The batches of a *stacked* data set are scanned, and all loops around that are traced. Those of an
*iterable* come from the host, one at a time, so that all loops around that run in Python, over
compiled pieces. Algorithms are written once, with the loops of their data set.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from entropy_sgd_jax import _trees
from entropy_sgd_jax._typing import PyTree

T = TypeVar("T")
BatchSize: TypeAlias = Callable[[Any], jax.Array | float]


class DataSet:
    """Batches and their weights; what the user passed, checked.

    Args:
      batches: stacked or iterable, as the package's docstring says.
      batch_size: the weight of a batch; None for the length of its first array's leading axis.
      single_pass: whether there will be a single pass only, so that an iterator will do.
    """

    def __init__(self, batches: PyTree, batch_size: BatchSize | None, *, single_pass: bool = False):
        self.stacked: bool = not _is_iterable_of_batches(batches)
        if self.stacked:
            _check_stacked(batches)
        else:
            _check_iterable(batches, single_pass)
        self._batches = batches
        self._batch_size = _leading_axis if batch_size is None else _scalar(batch_size)
        self._by_shape = self._sizes_known = batch_size is None
        if self.stacked and batch_size is not None:
            _check_sizes(jax.jit(lambda batches: lax.map(self._batch_size, batches))(batches))

    def program(self, function: Callable[..., T], *args: Any) -> T:
        """`function(data, *args)`, which is one compiled program if the batches are stacked.

        Called piece by piece outside of ``jax.jit``, each piece would compile on its own.
        """
        if not self.stacked:
            return function(self, *args)

        @jax.jit
        def whole(batches: PyTree, *args: Any) -> T:
            data = copy.copy(self)
            data._batches = batches
            return function(data, *args)

        result: T = whole(self._batches, *args)
        return result

    def mean(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """From arguments to the mean over the data set of `function(*arguments, batch)`, a tree.

        Sums are kept in at least float32.
        """
        return self._scanned(function) if self.stacked else self._streamed(function)

    def loop(self, start: ArrayLike, stop: ArrayLike, body: Callable[[Any, Any], T], carry: T) -> T:
        """`carry = body(i, carry)` for i from `start` to `stop` − 1."""
        if self.stacked:
            result: T = lax.fori_loop(start, stop, body, carry)
            return result
        for i in range(_known(int, start), _known(int, stop)):
            carry = body(i, carry)
        return carry

    def while_loop(self, condition: Callable[[T], Any], body: Callable[[T], T], carry: T) -> T:
        """`carry = body(carry)` as long as `condition(carry)` holds."""
        if self.stacked:
            result: T = lax.while_loop(condition, body, carry)
            return result
        while _known(bool, condition(carry)):
            carry = body(carry)
        return carry

    def samples(self, count: int, draw: Callable[[Any], jax.Array], like: jax.Array) -> Any:
        """`draw(i)` for i from 0 to `count` − 1, one after the other, in the shape of `like`."""
        empty = jnp.zeros((count, *like.shape), like.dtype)
        return self.loop(
            0, count, lambda i, rows: rows.at[i].set(draw(i).astype(like.dtype)), empty
        )

    def _scanned(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @jax.jit
        def mean(batches: PyTree, *args: Any) -> Any:
            def add(sums: PyTree, batch: PyTree) -> Any:
                return _add(sums, function(*args, batch), self._batch_size(batch)), None

            first = jax.tree.map(lambda leaf: leaf[0], batches)
            sums, _ = lax.scan(add, _zeros(jax.eval_shape(function, *args, first)), batches)
            return _divide(*sums)

        return lambda *args: mean(self._batches, *args)

    def _streamed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @jax.jit
        def add(sums: PyTree, batch: PyTree, *args: Any) -> Any:
            return _add(sums, function(*args, batch), self._batch_size(batch))

        divide = jax.jit(_divide)
        shapes = None  # of what `function` returns, once known

        def mean(*args: Any) -> Any:
            nonlocal shapes
            sums = None
            for batch in self._batches:
                if sums is None:
                    if shapes is None:  # a single one has no truth value
                        shapes = jax.eval_shape(function, *args, batch)
                    sums = _zeros(shapes)
                sums = add(sums, batch, *args)
            if sums is None:
                raise ValueError(
                    "`batches` must hold at least one batch in each pass; got an iterable without "
                    "any. Pass a list, or an object whose __iter__ starts again."
                )
            if not self._sizes_known:
                _check_sizes(sums[1])  # any that is wrong has made the sum NaN
                self._sizes_known = True
            return divide(*sums)

        return mean


def _zeros(shapes: PyTree) -> tuple[PyTree, jax.Array]:
    """No sum and no weight yet."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _trees.wide_dtype(leaf)), shapes)
    return zeros, jnp.zeros(())


def _add(
    sums: tuple[PyTree, jax.Array], value: Any, size: jax.Array | float
) -> tuple[PyTree, jax.Array]:
    total, weight = sums
    size = jnp.asarray(size, weight.dtype)
    size = jnp.where(size >= 0, size, jnp.nan)  # under jax.jit it cannot be refused

    def add(total: jax.Array, value: Any) -> jax.Array:
        # A batch without examples has no mean, NaN most likely.
        share = jnp.asarray(value, total.dtype) * size.astype(total.dtype)
        return total + jnp.where(size == 0, 0, share)

    return jax.tree.map(add, total, value), weight + size


def _divide(total: PyTree, weight: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf / jnp.asarray(weight, leaf.dtype), total)


def _scalar(batch_size: BatchSize) -> BatchSize:
    """`batch_size`, whose every value must be one number."""

    def size(batch: Any) -> jax.Array | float:
        value = batch_size(batch)
        if np.shape(value):
            raise ValueError(
                f"`batch_size(batch)` must be one number; got the shape {np.shape(value)}. Return "
                "how many examples of the batch count, such as the sum of a mask."
            )
        return value

    return size


def _check_sizes(sizes: jax.Array) -> None:
    """Raises ValueError unless all are at least 0, and one is more, as far as it is known."""
    if isinstance(sizes, Tracer):
        return
    known = np.asarray(sizes)
    if not ((known >= 0).all() and known.any()):
        raise ValueError(
            "`batch_size` must return finite numbers of at least 0, and more for some batch; got "
            f"{known}. Return how many examples of a batch count."
        )


def _leading_axis(batch: PyTree) -> int:
    """The length of the first array's leading axis, of those that have one; else 1."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    return next((shape[0] for shape in shapes if shape), 1)


def _is_iterable_of_batches(batches: PyTree) -> bool:
    """Lists are, and whatever is neither an array nor a pytree."""
    if isinstance(batches, list):
        return True
    return jax.tree_util.all_leaves([batches]) and not hasattr(batches, "shape")


def _check_stacked(batches: PyTree) -> None:
    shapes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(shapes) != 1 or shapes & {(), (0,)}:
        got = sorted(shapes) if shapes else f"{batches!r}, which has no leaves"
        raise ValueError(
            "`batches` must be arrays with one leading axis that counts the batches, in any pytree "
            f"but a list; got leading axes {got}. Pass a list for batches of different sizes, "
            "[batch] for a single one, [None] for a loss that takes no data."
        )


def _check_iterable(batches: PyTree, single_pass: bool) -> None:
    if not isinstance(batches, Iterable):
        raise ValueError(
            "`batches` must be stacked arrays or an iterable of batches; got "
            f"{batches!r}. Pass for example a list of batches."
        )
    if isinstance(batches, Iterator) and not single_pass:
        raise ValueError(
            "`batches` must be an iterable for many passes; got an iterator, "
            f"{type(batches).__name__}, which is spent after one. Pass a list, or an object whose "
            "__iter__ starts again, such as a DataLoader."
        )


def _known(kind: Callable[[Any], Any], value: Any) -> Any:
    """A number that steers a Python loop."""
    try:
        return kind(value)
    except jax.errors.ConcretizationTypeError:
        raise ValueError(
            "`batches` must be stacked under jax.jit; got an iterable, over which only Python can "
            "loop. Stack the batches on a leading axis, or call this outside jax.jit."
        ) from None
