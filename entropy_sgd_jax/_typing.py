"""The types that a user's editor and type checker see."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

import jax
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

if TYPE_CHECKING:
    from entropy_sgd_jax._state import EntropicState

PyTree: TypeAlias = Any  # a tree of arrays, of any structure
Tree = TypeVar("Tree")  # one whose structure comes back
Scalar: TypeAlias = float | np.number[Any] | np.ndarray | jax.Array
Schedule: TypeAlias = Callable[[jax.Array], ArrayLike]
ScalarOrSchedule: TypeAlias = Scalar | Schedule
Key: TypeAlias = int | np.integer[Any] | np.ndarray | jax.Array  # a seed, or JAX's of either kind
AxisName: TypeAlias = Hashable  # of vmap, pmap or shard_map; a tuple of names for several axes
Noise: TypeAlias = Literal["gaussian", "rademacher"]
GradFn: TypeAlias = Callable[[Any, Any], PyTree]  # (params, batch) -> gradients
ValueAndGradFn: TypeAlias = Callable[[Any, Any], tuple[ArrayLike, PyTree]]


class LangevinOptions(TypedDict, total=False):
    """The options that every factory has; `entropic` documents them."""

    scope: ScalarOrSchedule
    noise_scale: ScalarOrSchedule
    averaging: ScalarOrSchedule
    reset_inner_state: bool
    noise: Noise
    scale_by_scope: bool
    streaming: bool
    batch_axis_name: AxisName | None
    accumulator_dtype: DTypeLike | None
    diagnostics: bool
    key: Key


class EntropicOptions(LangevinOptions, total=False):
    """All options of `entropic`, for the factories that pass them on."""

    inner_steps: int
    inner_learning_rate: ScalarOrSchedule
    inner_transform: optax.GradientTransformation | None


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
