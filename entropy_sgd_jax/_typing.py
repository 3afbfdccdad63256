"""The types of arguments, and each option's once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import jax
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

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
