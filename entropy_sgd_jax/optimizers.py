"""The optimizers of the paper: one expression each over `entropic`."""

from __future__ import annotations

from typing import Any

import optax

from entropy_sgd_jax import _checks
from entropy_sgd_jax.local_entropy import ScalarOrSchedule, entropic


def entropy_sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    *,
    inner_momentum: ScalarOrSchedule | None = 0.9,
    inner_nesterov: bool = True,
    inner_steps: int = 20,
    inner_learning_rate: ScalarOrSchedule = 0.1,
    scope: ScalarOrSchedule = 0.03,
    noise_scale: ScalarOrSchedule = 1e-4,
    averaging: ScalarOrSchedule = 0.75,
    inner_transform: optax.GradientTransformation | None = None,
    reset_inner_state: bool = True,
    noise: str = "gaussian",
    scale_by_scope: bool = False,
    streaming: bool = False,
    batch_axis_name: Any = None,
    accumulator_dtype: Any = None,
    diagnostics: bool = False,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""DOC"""
    learning_rate = _checks.number("learning_rate", learning_rate)
    momentum = _checks.decay("momentum", momentum)
    return entropic(
        optax.sgd(learning_rate, momentum, nesterov),
        inner_steps=inner_steps,
        inner_learning_rate=inner_learning_rate,
        scope=scope,
        noise_scale=noise_scale,
        averaging=averaging,
        inner_transform=_momentum(inner_transform, inner_momentum, inner_nesterov),
        reset_inner_state=reset_inner_state,
        noise=noise,
        scale_by_scope=scale_by_scope,
        streaming=streaming,
        batch_axis_name=batch_axis_name,
        accumulator_dtype=accumulator_dtype,
        diagnostics=diagnostics,
        key=key,
    )


def entropy_adam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    inner_momentum: ScalarOrSchedule | None = 0.9,
    inner_nesterov: bool = True,
    inner_steps: int = 20,
    inner_learning_rate: ScalarOrSchedule = 0.1,
    scope: ScalarOrSchedule = 0.03,
    noise_scale: ScalarOrSchedule = 1e-4,
    averaging: ScalarOrSchedule = 0.75,
    inner_transform: optax.GradientTransformation | None = None,
    reset_inner_state: bool = True,
    noise: str = "gaussian",
    scale_by_scope: bool = False,
    streaming: bool = False,
    batch_axis_name: Any = None,
    accumulator_dtype: Any = None,
    diagnostics: bool = False,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""DOC"""
    learning_rate = _checks.number("learning_rate", learning_rate)
    b1, b2 = _checks.decay("b1", b1), _checks.decay("b2", b2)
    return entropic(
        optax.adam(learning_rate, b1, b2, _checks.number("eps", eps)),
        inner_steps=inner_steps,
        inner_learning_rate=inner_learning_rate,
        scope=scope,
        noise_scale=noise_scale,
        averaging=averaging,
        inner_transform=_momentum(inner_transform, inner_momentum, inner_nesterov),
        reset_inner_state=reset_inner_state,
        noise=noise,
        scale_by_scope=scale_by_scope,
        streaming=streaming,
        batch_axis_name=batch_axis_name,
        accumulator_dtype=accumulator_dtype,
        diagnostics=diagnostics,
        key=key,
    )


def _momentum(
    inner_transform: optax.GradientTransformation | None, decay: Any, nesterov: bool
) -> optax.GradientTransformation | None:
    """The inner momentum, unless the caller gave a transform of his own."""
    decay = _checks.decay("inner_momentum", decay)
    if inner_transform is not None or decay is None:
        return inner_transform
    return optax.trace(decay, nesterov)
