"""A network as pure functions, and how it is judged: dropout off, BatchNorm statistics at x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from experiments.io.dataset import Dataset

LOSS_EXAMPLES = 10_000  # the training loss is taken on at most the first so many images
LOSS_WINDOWS = 2_000  # or windows of text
STATISTICS_BATCHES = 40  # BatchNorm statistics are taken on at most the first so many batches
STATISTICS_BATCH = 128  # of so many examples
CHUNK = 2_000  # examples evaluated at once, at most

Params = Any
Statistics = Any  # of BatchNorm; an empty tree where there is none
Batch = tuple[jax.Array, jax.Array, jax.Array]  # inputs, labels and the key of the dropout mask


class Model(NamedTuple):
    """A network as pure functions of its parameters."""

    init: Callable[[jax.Array], Params]  # from a random key
    # From parameters, inputs and a key: dropout by the key, BatchNorm by the batch's statistics.
    training_logits: Callable[[Params, jax.Array, jax.Array], jax.Array]
    statistics: Callable[[Params, jax.Array], Statistics]  # from inputs (batches, batch_size, ...)
    logits: Callable[[Params, Statistics, jax.Array], jax.Array]  # dropout off
    chunk: int = CHUNK

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Mean cross-entropy in nats, as it is trained."""
        inputs, labels, key = batch
        return cross_entropies(self.training_logits(params, inputs, key), labels).mean()


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """One for each label. Of a sequence only the last logits count where labels are fewer."""
    if labels.ndim > 1:
        logits = logits[:, -labels.shape[1] :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def measure(model: Model, params: Params, data: Dataset) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Training loss, test loss and test error in percent, of one network."""
    statistics = model.statistics(params, statistics_batches(data.train_inputs))
    known = slice(LOSS_EXAMPLES if data.train_labels.ndim == 1 else LOSS_WINDOWS)
    train_loss, _ = judge(
        model, params, statistics, data.train_inputs[known], data.train_labels[known]
    )
    test_loss, wrong = judge(model, params, statistics, data.test_inputs, data.test_labels)
    return train_loss, test_loss, 100 * wrong


def statistics_batches(inputs: jax.Array) -> jax.Array:
    """The first training examples, as batches: the same at every measurement."""
    size = min(STATISTICS_BATCH, len(inputs))
    count = min(STATISTICS_BATCHES, len(inputs) // size)
    return inputs[: count * size].reshape(count, size, *inputs.shape[1:])


def judge(
    model: Model, params: Params, statistics: Statistics, inputs: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean loss and fraction of wrong answers over all examples, a chunk at a time."""

    def sums(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        inputs, labels = part
        logits = model.logits(params, statistics, inputs)
        if labels.ndim > 1:
            logits = logits[:, -labels.shape[1] :]
        wrong = logits.argmax(-1) != labels
        return cross_entropies(logits, labels).sum(), wrong.sum()

    if len(inputs) <= model.chunk:
        totals = sums((inputs, labels))
    else:
        whole = len(inputs) // model.chunk * model.chunk
        chunks = [x[:whole].reshape(-1, model.chunk, *x.shape[1:]) for x in (inputs, labels)]
        totals = jax.tree.map(jnp.sum, lax.map(sums, tuple(chunks)))
        if whole < len(inputs):
            rest = sums((inputs[whole:], labels[whole:]))
            totals = jax.tree.map(jnp.add, totals, rest)
    return totals[0] / labels.size, totals[1] / labels.size


def prune(params: Params, fraction: Any) -> Params:
    """The smallest weights of all matrices and kernels together, so many of them, are zero."""
    sizes = jnp.concatenate([jnp.abs(w).ravel() for w in jax.tree.leaves(params) if w.ndim > 1])
    kept_from = jnp.minimum(jnp.round(fraction * sizes.size).astype(int), sizes.size - 1)
    least = jnp.sort(sizes)[kept_from]
    return jax.tree.map(lambda w: jnp.where(jnp.abs(w) < least, 0, w) if w.ndim > 1 else w, params)
