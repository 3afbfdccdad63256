"""A network as pure functions, and how it is judged: dropout off, BatchNorm statistics at x.

A network with a state, such as an LSTM, reads its windows in streams: each stream is a part of the
text, in order, and the state at the end of a window is where the next window starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from experiments.io.dataset import Dataset

LOSS_EXAMPLES = 10_000  # the training loss is taken on at most the first this many images
LOSS_WINDOWS = 2_000  # or windows of text
STATISTICS_BATCHES = 40  # BatchNorm statistics are taken on at most the first this many batches
STATISTICS_BATCH = 128  # of this many examples
CHUNK = 2_000  # examples evaluated at once, at most

Params = Any
Statistics = Any  # of BatchNorm; an empty tree if there is none
Batch = tuple[jax.Array, jax.Array, jax.Array]  # inputs, labels and the key of the dropout mask
Carry = Any  # the state of a network between two windows


class Model(NamedTuple):
    """A network as pure functions of its parameters."""

    init: Callable[[jax.Array], Params]  # from a random key
    # From parameters, inputs and a key: dropout by the key, BatchNorm by the batch's statistics.
    training_logits: Callable[..., Any]
    statistics: Callable[[Params, jax.Array], Statistics]  # from inputs (batches, batch_size, ...)
    logits: Callable[..., Any]  # from parameters, statistics and inputs: dropout off
    chunk: int = CHUNK
    # An array of zeros, the state of this many streams before they start. Both kinds of logits then
    # take such a state as a last argument, and return it as it is after the window.
    carry: Callable[[int], Carry] | None = None
    streams: int = 1  # in which a network with a state is judged
    summed: bool = False  # whether the training loss of a window is the sum over its steps

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Cross-entropy in nats, as it is trained: a mean over the examples."""
        inputs, labels, key = batch
        return self._reduce(self.training_logits(params, inputs, key), labels)

    def carried_loss(self, params: Params, batch: Any, carry: Carry) -> tuple[jax.Array, Carry]:
        """Likewise, with the state before and after the windows.

        The fourth part of the batch says whether a pass through the text starts: from zeros.
        """
        inputs, labels, key, starts = batch
        carry = jnp.where(starts, 0, carry)
        logits, carry = self.training_logits(params, inputs, key, carry)
        return self._reduce(logits, labels), carry

    def _reduce(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        losses = cross_entropies(logits, labels)
        return losses.sum(-1).mean() if self.summed else losses.mean()


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """One for each label. If a sequence has fewer labels, only its last logits count."""
    if labels.ndim > 1:
        logits = logits[:, -labels.shape[1] :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def measure(model: Model, params: Params, data: Dataset) -> dict[str, jax.Array]:
    """Of one network: losses, and the test error in percent."""
    batches = statistics_batches(data.train_inputs, in_order=model.carry is not None)
    statistics = model.statistics(params, batches)
    known = slice(LOSS_EXAMPLES if data.train_labels.ndim == 1 else LOSS_WINDOWS)
    train = data.train_inputs[known], data.train_labels[known]
    train_loss, _ = judge(model._replace(streams=STATISTICS_BATCH), params, statistics, *train)
    test_loss, wrong = judge(model, params, statistics, data.test_inputs, data.test_labels)
    measured = {"train_loss": train_loss, "test_loss": test_loss, "test_error": 100 * wrong}
    if data.validation_inputs is not None:
        held_out = data.validation_inputs, data.validation_labels
        measured["validation_loss"] = judge(model, params, statistics, *held_out)[0]
    return measured


def statistics_batches(inputs: jax.Array, in_order: bool = False) -> jax.Array:
    """The first training examples, as batches: the same at every measurement.

    `in_order` makes the rows of all batches streams.
    """
    size = min(STATISTICS_BATCH, len(inputs))
    count = min(STATISTICS_BATCHES, len(inputs) // size)
    if in_order:
        return in_streams(inputs[: count * size], size)
    return inputs[: count * size].reshape(count, size, *inputs.shape[1:])


def in_streams(windows: jax.Array, streams: int) -> jax.Array:
    """Of shape (windows of a stream, streams, ...); the remainder at the end is dropped."""
    count = len(windows) // streams
    whole = windows[: count * streams]
    return whole.reshape(streams, count, *windows.shape[1:]).swapaxes(0, 1)


def judge(
    model: Model, params: Params, statistics: Statistics, inputs: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean loss and fraction of wrong answers over all examples, a chunk at a time."""
    if model.carry:
        return judge_in_order(model, params, statistics, inputs, labels)

    def sums(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        inputs, labels = part
        return _sums(model.logits(params, statistics, inputs), labels)

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


def judge_in_order(
    model: Model, params: Params, statistics: Statistics, inputs: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Likewise, the windows in streams, with the state carried on."""
    streams = min(model.streams, len(inputs))
    inputs, labels = in_streams(inputs, streams), in_streams(labels, streams)

    def window(carry: Carry, part: tuple[jax.Array, jax.Array]) -> tuple[Carry, Any]:
        logits, carry = model.logits(params, statistics, part[0], carry)
        return carry, _sums(logits, part[1])

    _, totals = lax.scan(window, model.carry(streams), (inputs, labels))
    return totals[0].sum() / labels.size, totals[1].sum() / labels.size


def _sums(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss, and the number of wrong answers, of all labels together."""
    if labels.ndim > 1:
        logits = logits[:, -labels.shape[1] :]
    return cross_entropies(logits, labels).sum(), (logits.argmax(-1) != labels).sum()


def prune(params: Params, fraction: Any) -> Params:
    """Sets this many of the smallest weights, over all matrices and kernels together, to zero."""
    sizes = jnp.concatenate([jnp.abs(w).ravel() for w in jax.tree.leaves(params) if w.ndim > 1])
    kept_from = jnp.minimum(jnp.round(fraction * sizes.size).astype(int), sizes.size - 1)
    least = jnp.sort(sizes)[kept_from]
    return jax.tree.map(lambda w: jnp.where(jnp.abs(w) < least, 0, w) if w.ndim > 1 else w, params)
