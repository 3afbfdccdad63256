"""Where the gradients of an update come from: checked, each device's own, averaged, with losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from entropy_sgd_jax import _checks, _collectives, _protocol, _trees
from entropy_sgd_jax._typing import AxisName, PyTree


class Gradient(NamedTuple):
    """∇f(x′) on one mini-batch, the mean over the devices that share it."""

    value: PyTree
    loss: ArrayLike | None  # f(x′), if it is known
    step: ArrayLike  # how many gradients of this cycle came before it
    known_losses: ArrayLike  # how many of these came with their loss


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of the devices: those that share a batch, and those of the replicas."""

    batch: AxisName | None = None
    replicas: AxisName | None = None

    def check(self) -> None:
        """Raises ValueError for an axis that is not bound."""
        _protocol.bound("batch_axis_name", self.batch)
        _protocol.bound("replica_axis_name", self.replicas)

    def given(
        self, grads: PyTree, params: PyTree, step: ArrayLike, mode: str, value: Any = None
    ) -> Gradient:
        """The user's gradient at `params`, with its loss if `value` was passed."""
        _protocol.incoming(grads, params, mode)
        _protocol.scalar_value(value)
        _protocol.not_summed(grads, self.replicas)
        grads, value = _collectives.mean((grads, value), self.batch)
        return Gradient(grads, value, step, known_losses=step)

    def own(self, tree: PyTree) -> PyTree:
        """`tree` marked as differing from device to device."""
        return _collectives.own(tree, self.batch, self.replicas)

    def for_base(self, extra_args: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments meant for the base optimizer, one loss and weight for a batch."""
        own = ("grad_fn", "value_and_grad_fn", "batches")
        kept = {name: value for name, value in extra_args.items() if name not in own}
        if self.batch is None:
            return kept
        if kept.get("replica_weight") is not None:
            kept["replica_weight"] = _checks.check("replica_weight", kept["replica_weight"])
        shared = {name: kept[name] for name in ("value", "replica_weight") if name in kept}
        return kept | _collectives.mean(shared, self.batch)


@dataclasses.dataclass(frozen=True)
class Scanned:
    """The gradients that one update takes from the user's function."""

    axes: Axes
    like: PyTree  # `params`: the dtypes in which the function sees x′
    evaluate: Callable[[PyTree, PyTree], tuple[Any, PyTree]] | None
    calls: int  # of the function: L, or L − 1 if the first gradient was given
    spent: int  # gradients before the first call: 0 or 1
    losses_before: int  # of these, how many came with their loss
    by_number: bool  # whether the function gets the number of the call for a batch

    def __call__(self, iterate: PyTree, call: jax.Array, batch: PyTree) -> Gradient:
        """∇f(x′), by call number `call` of the function."""
        assert self.evaluate is not None
        point = self.axes.own(_trees.cast_like(iterate, self.like))
        loss, grads = self.evaluate(point, call if self.by_number else batch)
        loss, grads = _collectives.mean((loss, grads), self.axes.batch)
        known_losses = 0 if loss is None else call + self.losses_before
        return Gradient(grads, loss, call + self.spent, known_losses)


def scanned(
    axes: Axes,
    params: PyTree,
    inner_steps: int,
    incoming: Gradient | None,
    *,
    grad_fn: Any = None,
    value_and_grad_fn: Any = None,
    batches: PyTree = None,
    **extra_args: Any,
) -> Scanned:
    """The gradients of a scan, checked."""
    spent = 0 if incoming is None else 1
    calls = inner_steps - spent
    _protocol.stacked(batches, calls, inner_steps)
    evaluate = None
    if calls:
        _protocol.whole(params)
        evaluate = _protocol.gradient_function(grad_fn, value_and_grad_fn, batches, extra_args)
    return Scanned(
        axes=axes,
        like=params,
        evaluate=evaluate,
        calls=calls,
        spent=spent,
        losses_before=0 if incoming is None or incoming.loss is None else 1,
        by_number=batches is None,
    )
