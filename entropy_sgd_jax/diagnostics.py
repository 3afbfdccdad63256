"""What the Langevin loop saw: one record per update, measured as the loop runs."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from entropy_sgd_jax import _trees


class EntropicDiagnostics(NamedTuple):
    """Statistics of the last update; in streaming mode, of the cycle so far.

    Every field but `first_gradient` is a scalar. Means run over the L Langevin steps of one
    update, norms over all parameters.
    """

    inner_loss: chex.Array  # mean loss, float32; NaN where no loss was given
    inner_gradient_norm: chex.Array  # mean of ‖∇f(x′)‖, before `inner_transform`, float32
    langevin_distance: chex.Array  # mean of ‖x′ − x‖, float32
    nonfinite_gradients: chex.Array  # inner gradients with a NaN or Inf in them, int32
    pseudo_gradient_norm: chex.Array  # ‖x − μ‖ at the end of the loop, float32
    alignment: chex.Array  # cosine of x − μ and the first gradient, float32, 0 where undefined
    scope: chex.Array  # γ, float32
    gradient_evaluations: chex.Array  # since the start: outer steps × L, int32
    first_gradient: chex.ArrayTree | None  # kept while a cycle runs (streaming only)


def blank(first_gradient: chex.ArrayTree | None) -> EntropicDiagnostics:
    """The record before the first update."""
    zero, none_yet = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    return EntropicDiagnostics(
        inner_loss=jnp.full((), jnp.nan, jnp.float32),
        inner_gradient_norm=zero,
        langevin_distance=zero,
        nonfinite_gradients=none_yet,
        pseudo_gradient_norm=zero,
        alignment=zero,
        scope=zero,
        gradient_evaluations=none_yet,
        first_gradient=first_gradient,
    )


def observe_step(
    record: EntropicDiagnostics,
    step: chex.Numeric,
    loss: chex.Numeric | None,
    gradient: chex.ArrayTree,
    displacement: chex.ArrayTree,
) -> EntropicDiagnostics:
    """Takes in Langevin step number `step`; step 0 starts the means afresh."""
    first = step == 0

    def mean(so_far: chex.Array, value: chex.Numeric) -> chex.Array:
        value = jnp.asarray(value, jnp.float32)
        return jnp.where(first, value, so_far + (value - so_far) / (step + 1))

    finite = _trees.all_finite(gradient)
    nonfinite_so_far = jnp.where(first, 0, record.nonfinite_gradients)
    return record._replace(
        inner_loss=mean(record.inner_loss, jnp.nan if loss is None else loss),
        inner_gradient_norm=mean(record.inner_gradient_norm, _trees.norm(gradient)),
        langevin_distance=mean(record.langevin_distance, _trees.norm(displacement)),
        nonfinite_gradients=nonfinite_so_far + jnp.where(finite, 0, 1).astype(jnp.int32),
        first_gradient=jax.tree.map(
            lambda new, kept: jnp.where(first, new, kept), gradient, record.first_gradient
        ),
    )


def observe_update(
    record: EntropicDiagnostics,
    pseudo_gradient: chex.ArrayTree,
    scope: chex.Numeric,
    gradient_evaluations: chex.Numeric,
) -> EntropicDiagnostics:
    """Takes in the end of the loop, where x − μ is known."""
    norm = _trees.norm(pseudo_gradient)
    norms = norm * _trees.norm(record.first_gradient)
    inner_product = _trees.inner_product(pseudo_gradient, record.first_gradient)
    alignment = jnp.where(norms > 0, inner_product / jnp.where(norms > 0, norms, 1), 0)
    return record._replace(
        pseudo_gradient_norm=jnp.asarray(norm, jnp.float32),
        alignment=jnp.asarray(alignment, jnp.float32),
        scope=jnp.asarray(scope, jnp.float32),
        gradient_evaluations=jnp.asarray(gradient_evaluations, jnp.int32),
    )
