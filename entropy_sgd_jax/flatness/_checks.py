"""Checks of what a user passes in. Only concrete values are checked, not traced ones."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from entropy_sgd_jax import _checks
from entropy_sgd_jax import _noise as noise_lib
from entropy_sgd_jax._typing import PyTree


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Says what to install if an import inside it fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f'{error.name} is not installed; in a clone run: pip install ".[{name}]"'
        raise ModuleNotFoundError(message, name=error.name) from error


def params(tree: PyTree) -> int:
    """Returns the number of parameters; raises ValueError unless all are real floating arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and isinstance(leaf, float):
            dtype = jnp.result_type(leaf)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            shown = repr(leaf) if dtype is None else str(dtype)
            raise ValueError(
                f"`params{jax.tree_util.keystr(path)}` must have a real floating dtype; got "
                f"{shown}. Let `loss` close over whatever is not differentiated."
            )
    total = sum(math.prod(jnp.shape(leaf)) for _, leaf in leaves)
    if not total:
        raise ValueError(
            f"`params` must hold at least one parameter; got {tree!r}. Pass the tree of arrays "
            "with respect to which `loss` is differentiated."
        )
    return total


def scalar(value: Any, name: str = "loss") -> jax.Array:
    """What the loss returned, as an array; raises ValueError unless it is a scalar."""
    if not jax.tree_util.all_leaves([value]):
        got = f"a {type(value).__name__}"
    elif jnp.shape(value):
        got = f"an array of the shape {jnp.shape(value)}"
    else:
        return jnp.asarray(value)
    advice = "Take the mean over the batch, and drop auxiliary outputs."
    raise _checks.error(f"{name}(params, batch)", "a scalar", got, advice)


def integer(name: str, value: Any, low: int, high: float, advice: str) -> int:
    """Returns `value` as an int; raises ValueError unless it is a static integer in the range."""
    if isinstance(value, jax.Array) and not isinstance(value, Tracer):
        value = np.asarray(value)[()]  # a concrete one is as good as NumPy's
    known: int = _checks.integer(advice, low, int(min(high, _checks.INT32_MAX)))(name, value)
    return known


def choice(name: str, value: object, allowed: tuple[str, ...], advice: str) -> str:
    """Returns `value`; raises ValueError unless it is one of the names that are allowed."""
    known: str = _checks.choice(advice, allowed)(name, value)
    return known


def positive(
    name: str, value: Any, advice: str, dtype: Any, *, zero: bool = False, scalar: bool = True
) -> jax.Array:
    """Returns `value` as an array; raises ValueError unless it is a finite number above zero.

    It must be one in `dtype` too. With `zero`, zero itself is allowed; without `scalar`, an array
    of such numbers.
    """
    try:
        known = np.asarray(value, np.float64)
    except jax.errors.TracerArrayConversionError:
        known = np.ones(jnp.shape(value))  # its numbers are not known yet
    except (TypeError, ValueError, OverflowError):
        known = np.array(np.nan)
    limits = jnp.finfo(dtype)
    least = np.where(known == 0, 0, float(limits.tiny)) if zero else float(limits.tiny)
    in_range = ((known >= least) & (known <= float(limits.max))).all()
    if not in_range or (scalar and known.ndim):
        kind = "a number" if scalar else "a number, or an array of numbers,"
        limits_of = f"In {limits.dtype} it must be from {limits.tiny:.2g} to {limits.max:.2g}."
        allowed = f"{kind} in {'[' if zero else '('}0, inf)"
        raise _checks.error(name, allowed, _checks.shown(value), f"{advice} {limits_of}")
    if isinstance(value, int | float | np.number):
        value = known.astype(dtype)  # JAX would compile a program to do it
    return jnp.asarray(value, dtype)


def warn_where(wrong: jax.Array, message: str) -> None:
    """Warns if any of `wrong` holds, unless they are traced, under `jax.jit`."""
    if not isinstance(wrong, Tracer) and bool(wrong.any()):
        warnings.warn(message, stacklevel=3)


def warn_of_each(result: Any, doubts: Callable[[Any], Iterable[str]]) -> None:
    """Warns of the doubts about a result, or about each of a stack from `jax.vmap`.

    Args:
      result: a named tuple whose `value` is of shape () if it is a single one.
      doubts: what there is to say about a single one, whose arrays are NumPy's.
    """
    known = jax.tree.map(np.asarray, result)
    for place in np.ndindex(known.value.shape):
        where = f"At {list(place)}: " if place else ""
        for message in doubts(jax.tree.map(lambda leaf, place=place: leaf[place], known)):
            warnings.warn(where + message, stacklevel=3)


def key(value: Any) -> jax.Array:
    """A typed key from an int, a typed key or a legacy one; raises ValueError for anything else."""
    return noise_lib.typed_key(_checks.check("key", value))
