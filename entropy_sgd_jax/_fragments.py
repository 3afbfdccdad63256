"""Fragments of the parameters that are synchronised in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from entropy_sgd_jax import _checks, _protocol
from entropy_sgd_jax._transformation import EntropicTransformation
from entropy_sgd_jax._typing import PyTree

Fragments: TypeAlias = PyTree | Callable[[PyTree], PyTree]  # ints like params, or how to get them

_ADVICE = (
    "Number the fragments of the parameters from 0, for example by layer: jax.tree.map over "
    "`params`, or a function that does it."
)


def in_turn(
    make: Callable[[int, int], EntropicTransformation],
    fragments: Fragments,
    inner_steps: int,
    offset: int,
    streaming: bool,
) -> EntropicTransformation:
    """An optimizer for each fragment, as `make` builds it from its offset and its number."""
    if not streaming or not inner_steps:
        raise _checks.streams_only("fragments", None, fragments)
    if not callable(fragments):
        _count(fragments, inner_steps)
    made = functools.cache(make)

    def optimizer(params: PyTree) -> optax.GradientTransformationExtraArgs:
        _protocol.params(params)
        labels = fragments(params) if callable(fragments) else fragments
        count = _count(labels, inner_steps)
        try:
            jax.tree.map(lambda *_: None, labels, params)
        except ValueError as error:
            got = f"one that does not fit ({str(error).splitlines()[0]})"
            raise _checks.error("fragments", "a tree like `params`", got, _ADVICE) from None
        offsets = [(offset + p * inner_steps // count) % inner_steps for p in range(count)]
        partition = getattr(optax, "partition", None) or optax.multi_transform
        return partition({p: made(k, p) for p, k in enumerate(offsets)}, labels)

    def init(params: PyTree) -> Any:
        return optimizer(params).init(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> Any:
        whole = optimizer(params)
        _protocol.incoming(updates, params, "in streaming mode")
        if not hasattr(state, "inner_states"):
            raise _protocol.foreign_state("that of optax.partition, which `fragments` use", state)
        return whole.update(updates, state, params, **extra)

    return EntropicTransformation(init, update)


def _count(labels: PyTree, inner_steps: int) -> int:
    """P; raises ValueError unless the labels are 0 … P − 1, and P divides L."""
    leaves = jax.tree.leaves(labels)
    odd = [label for label in leaves if not isinstance(label, int | np.integer)]
    found = set() if odd else set(leaves)
    if not found or found != set(range(len(found))):
        shown = repr(odd[0] if odd else found)
        raise _checks.error("fragments", "a tree of the ints 0 … P − 1", shown, _ADVICE)
    if inner_steps % len(found):
        raise _checks.error(
            "fragments",
            f"as many as divide `inner_steps`, {inner_steps}",
            f"{len(found)} of them",
            "They are synchronised in turn, inner_steps / P gradients apart.",
        )
    return len(found)
