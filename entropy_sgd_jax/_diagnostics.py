"""What the Langevin loop saw: one record per update, measured as the loop runs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from entropy_sgd_jax import _guard, _trees
from entropy_sgd_jax._typing import PyTree


class EntropicDiagnostics(NamedTuple):
    """Statistics of the last update; in streaming mode, of the cycle so far.

    Every field but `first_gradient` is a scalar. Means run over the L Langevin steps of one
    update, norms over all parameters. Without a loss `inner_loss` is NaN, which
    `jax_debug_nans` reports. In streaming mode `pseudo_gradient_norm`, `alignment` and `scope` are
    those of the last whole cycle.
    """

    inner_loss: jax.Array  # mean of the losses that were given, float32; NaN without any
    inner_gradient_norm: jax.Array  # mean of ‖∇f(x′)‖, before `inner_transform`, float32
    langevin_distance: jax.Array  # mean of ‖x′ − x‖, float32
    nonfinite_gradients: jax.Array  # inner gradients with a NaN or Inf in them, int32
    pseudo_gradient_norm: jax.Array  # ‖x − μ‖ at the end of the loop, float32
    alignment: jax.Array  # cosine of x − μ and the first gradient, float32, 0 where undefined
    scope: jax.Array  # γ, float32
    gradient_evaluations: jax.Array  # since the start: outer steps × L, int32
    refused_updates: jax.Array  # since the start: those that did not count, int32
    first_gradient: PyTree | None  # kept while a cycle runs (streaming only)


def blank(first_gradient: PyTree | None) -> EntropicDiagnostics:
    """The record before the first update. Each field has a buffer of its own, to be donated."""

    def real(value: float = 0) -> jax.Array:
        return jnp.full((), value, jnp.float32)

    def whole() -> jax.Array:
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
        refused_updates=whole(),
        first_gradient=first_gradient,
    )


def observe_step(
    record: EntropicDiagnostics,
    step: ArrayLike,
    grads: PyTree,
    loss: ArrayLike | None,
    known_losses: ArrayLike,
    iterate: PyTree,
    x: PyTree,
) -> EntropicDiagnostics:
    """Records Langevin step number `step`, to x′; step 0 starts the means again.

    Args:
      record: of the steps before.
      step: ℓ, from 0.
      grads: what the step was taken on, in the accumulator's dtype.
      loss: on the same mini-batch; None if it is not known.
      known_losses: how many earlier steps came with a loss.
      iterate: x′ after the step.
      x: where the chain started.
    """

    def mean(so_far: jax.Array, value: ArrayLike, before: ArrayLike) -> jax.Array:
        value, before = jnp.asarray(value, jnp.float32), jnp.asarray(before, jnp.float32)
        return jnp.where(before == 0, value, so_far + (value - so_far) / (before + 1))

    nan = jnp.full((), jnp.nan, jnp.float32)
    if loss is None:
        inner_loss = jnp.where(jnp.equal(step, 0), nan, record.inner_loss)
    else:
        inner_loss = mean(record.inner_loss, loss, known_losses)

    displacement = jax.tree.map(jnp.subtract, iterate, x)
    bad = jnp.where(_guard.all_finite(grads), 0, 1).astype(jnp.int32)
    is_first = jnp.equal(step, 0)
    return record._replace(
        inner_loss=inner_loss,
        inner_gradient_norm=mean(record.inner_gradient_norm, _length(grads), step),
        langevin_distance=mean(record.langevin_distance, _length(displacement), step),
        nonfinite_gradients=jnp.where(is_first, 0, record.nonfinite_gradients) + bad,
        first_gradient=_trees.where(is_first, grads, record.first_gradient),
    )


def observe_update(
    record: EntropicDiagnostics,
    difference: PyTree,
    scope: ArrayLike,
    gradient_evaluations: ArrayLike,
    counts: jax.Array,
) -> EntropicDiagnostics:
    """Records the end of the loop, when the `difference` x − μ is known, and whether it counts."""
    norm = _length(difference)
    norms = norm * _length(record.first_gradient)
    inner_product = _trees.inner_product(difference, record.first_gradient)
    defined = norms > 0
    alignment = inner_product / jnp.where(defined, norms, jnp.ones_like(norms))
    alignment = jnp.where(defined, alignment, jnp.zeros_like(alignment))
    return record._replace(
        pseudo_gradient_norm=jnp.asarray(norm, jnp.float32),
        alignment=jnp.asarray(alignment, jnp.float32),
        scope=jnp.asarray(scope, jnp.float32),
        gradient_evaluations=jnp.asarray(gradient_evaluations, jnp.int32),
        refused_updates=record.refused_updates + (~counts).astype(jnp.int32),
    )


def _length(tree: PyTree) -> jax.Array:
    """The Euclidean norm over all leaves; shape ()."""
    return jnp.sqrt(_trees.inner_product(tree, tree))
