"""Control flow that costs nothing in the usual case."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax

from entropy_sgd_jax import _collectives
from entropy_sgd_jax._typing import PyTree


def apply_if(condition: jax.Array, change: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """`change(tree)` if the condition holds, which is rare, else `tree`.

    A loop of zero rounds or one, and free if zero: XLA runs loops in place, while a cond
    copies whatever passes through it, and a select reads both trees. What `change` computes from
    values other than its argument, XLA may compute ahead of the loop in either case.
    """
    like = [condition, *jax.tree.leaves(tree)]

    def once(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        return ~carry[0], _collectives.varying(change(carry[1]), *like)

    start = _collectives.varying((condition, tree), *like)
    return lax.while_loop(lambda carry: carry[0], once, start)[1]


def settled(verdict: jax.Array) -> jax.Array:
    """`verdict`, a scalar bool, as a value that XLA computes once.

    XLA repeats what leads to a scalar in the arithmetic of every leaf that uses it, so that a
    verdict on n leaves that n leaves use would compile in a time of n². It cannot look into a
    loop.
    """
    refused = verdict & ~verdict  # False, and of the same type where devices may differ
    refused = lax.while_loop(
        lambda carry: carry[0], lambda carry: (~carry[0], ~carry[1]), (~verdict, refused)
    )[1]
    return ~refused
