"""What a factory returns, as a user's editor and type checker see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import optax

from entropy_sgd_jax._state import EntropicState
from entropy_sgd_jax._typing import GradFn, PyTree, ValueAndGradFn


class Init(Protocol):
    """`init` of an entropic optimizer."""

    def __call__(self, params: PyTree) -> EntropicState:
        """The state before the first update."""
        ...


class Update(Protocol):
    """`update` of an entropic optimizer."""

    def __call__(
        self,
        updates: PyTree | None,
        state: PyTree,
        params: PyTree | None = None,
        *,
        grad_fn: GradFn | None = None,
        value_and_grad_fn: ValueAndGradFn | None = None,
        batches: PyTree = None,
        **extra_args: Any,
    ) -> tuple[PyTree, EntropicState]:
        """The updates to apply to `params`, and the next state."""
        ...


class EntropicTransformation(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """An Optax transformation whose `update` may be given `grad_fn` and `batches`."""

    if TYPE_CHECKING:
        # Fields of a named tuple may not be narrowed, and these take and return more and less.
        init: Init  # pyright: ignore[reportIncompatibleVariableOverride]
        update: Update  # pyright: ignore[reportIncompatibleVariableOverride]

        def __new__(cls, init: Init, update: Update) -> EntropicTransformation:
            """The pair of functions."""
            ...
