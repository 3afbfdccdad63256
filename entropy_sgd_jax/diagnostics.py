"""What the Langevin loop saw: one record per update, measured as the loop runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp


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

    finite = all_finite(gradient)
    nonfinite_so_far = jnp.where(first, 0, record.nonfinite_gradients)
    return record._replace(
        inner_loss=mean(record.inner_loss, jnp.nan if loss is None else loss),
        inner_gradient_norm=mean(record.inner_gradient_norm, _norm(gradient)),
        langevin_distance=mean(record.langevin_distance, _norm(displacement)),
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
    norm = _norm(pseudo_gradient)
    norms = norm * _norm(record.first_gradient)
    inner_product = _inner_product(pseudo_gradient, record.first_gradient)
    alignment = jnp.where(norms > 0, inner_product / jnp.where(norms > 0, norms, 1), 0)
    return record._replace(
        pseudo_gradient_norm=jnp.asarray(norm, jnp.float32),
        alignment=jnp.asarray(alignment, jnp.float32),
        scope=jnp.asarray(scope, jnp.float32),
        gradient_evaluations=jnp.asarray(gradient_evaluations, jnp.int32),
    )


def all_finite(tree: Any) -> chex.Array:
    """Whether no leaf has a NaN or Inf in it; shape (), bool."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.array(finite)) if finite else jnp.array(True)


def _inner_product(a: Any, b: Any) -> chex.Numeric:
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), start=jnp.zeros(()))


def _norm(tree: Any) -> chex.Numeric:
    return jnp.sqrt(_inner_product(tree, tree))
