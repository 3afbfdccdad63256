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
    update, norms over all parameters. Without a loss `inner_loss` is NaN, at which
    `jax_debug_nans` stops.
    """

    inner_loss: chex.Array  # mean of the losses that were given, float32; NaN without any
    inner_gradient_norm: chex.Array  # mean of ‖∇f(x′)‖, before `inner_transform`, float32
    langevin_distance: chex.Array  # mean of ‖x′ − x‖, float32
    nonfinite_gradients: chex.Array  # inner gradients with a NaN or Inf in them, int32
    pseudo_gradient_norm: chex.Array  # ‖x − μ‖ at the end of the loop, float32
    alignment: chex.Array  # cosine of x − μ and the first gradient, float32, 0 where undefined
    scope: chex.Array  # γ, float32
    gradient_evaluations: chex.Array  # since the start: outer steps × L, int32
    first_gradient: chex.ArrayTree | None  # kept while a cycle runs (streaming only)


def blank(first_gradient: chex.ArrayTree | None) -> EntropicDiagnostics:
    """The record before the first update. Each field has a buffer of its own, to be donated."""

    def real(value: float = 0) -> chex.Array:
        return jnp.full((), value, jnp.float32)

    def whole() -> chex.Array:
        return jnp.zeros((), jnp.int32)

    return EntropicDiagnostics(
        inner_loss=real(jnp.nan),
        inner_gradient_norm=real(),
        langevin_distance=real(),
        nonfinite_gradients=whole(),
        pseudo_gradient_norm=real(),
        alignment=real(),
        scope=real(),
        gradient_evaluations=whole(),
        first_gradient=first_gradient,
    )


def observe_step(
    record: EntropicDiagnostics,
    step: chex.Numeric,
    losses: chex.Numeric,
    loss: chex.Numeric | None,
    gradient: chex.ArrayTree,
    displacement: chex.ArrayTree,
) -> EntropicDiagnostics:
    """Takes in Langevin step number `step`, `losses` of the steps before it with a known loss.

    Step 0 starts the means afresh.
    """

    def mean(so_far: chex.Array, value: chex.Numeric, before: chex.Numeric) -> chex.Array:
        value = jnp.asarray(value, jnp.float32)
        return jnp.where(before == 0, value, so_far + (value - so_far) / (before + 1))

    if loss is None:
        inner_loss = jnp.where(step == 0, jnp.nan, record.inner_loss)
    else:
        inner_loss = mean(record.inner_loss, loss, losses)

    finite = _trees.all_finite(gradient)
    nonfinite_so_far = jnp.where(step == 0, 0, record.nonfinite_gradients)
    return record._replace(
        inner_loss=inner_loss,
        inner_gradient_norm=mean(record.inner_gradient_norm, _trees.norm(gradient), step),
        langevin_distance=mean(record.langevin_distance, _trees.norm(displacement), step),
        nonfinite_gradients=nonfinite_so_far + jnp.where(finite, 0, 1).astype(jnp.int32),
        first_gradient=jax.tree.map(
            lambda new, kept: jnp.where(step == 0, new, kept), gradient, record.first_gradient
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
