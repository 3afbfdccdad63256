"""Trains several seeds at once, and counts every gradient evaluation alike for every optimizer.

The unit is a *round*: `inner_steps` mini-batches, and so `inner_steps` gradient evaluations. An
Optax optimizer makes `inner_steps` updates of them, Entropy-SGD one. A seed stands for the initial
parameters, the batches and the Langevin noise; optimizers with the same seed start from the same
parameters and see the same batches.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from datasets import Dataset
from errors import InputError

MEASUREMENTS = 40  # at most so many points on a curve
LOSS_EXAMPLES = 10_000  # the training loss is taken on at most the first so many images

Params = Any
Batch = tuple[jax.Array, jax.Array]  # images and labels


class Contestant(NamedTuple):
    """An optimizer, and how it spends one round of mini-batches."""

    optimizer: optax.GradientTransformationExtraArgs
    # (optimizer, grad_fn, params, state, batches) -> (params, state)
    take_round: Callable[..., tuple[Params, optax.OptState]]


class Model(NamedTuple):
    """A network as pure functions."""

    init: Callable[[jax.Array], Params]  # from a random key
    logits: Callable[[Params, jax.Array], jax.Array]  # from parameters and images

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        """Mean cross-entropy in nats."""
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(
            self.logits(params, images), labels
        ).mean()


class Budget(NamedTuple):
    """How much every optimizer may spend."""

    rounds: int
    inner_steps: int  # gradient evaluations per round
    batch_size: int

    @property
    def gradient_evaluations(self) -> int:
        """In all, per seed."""
        return self.rounds * self.inner_steps

    @property
    def segments(self) -> list[int]:
        """Rounds between one measurement and the next; the last segment may be shorter."""
        longest = math.ceil(self.rounds / MEASUREMENTS)
        return [min(longest, self.rounds - done) for done in range(0, self.rounds, longest)]


class Measurement(NamedTuple):
    """What is known at one point of training, for every seed."""

    gradient_evaluations: int  # so far, per seed
    train_loss: np.ndarray  # shape (seeds,)
    test_error: np.ndarray  # percent, shape (seeds,)
    evaluations_per_second: float  # since the last measurement, all seeds together


def make_budget(effective_epochs: int, examples: int, batch_size: int, inner_steps: int) -> Budget:
    """The whole rounds nearest to `effective_epochs`, each of examples / batch_size evaluations."""
    if batch_size > examples:
        raise InputError(f"--batch-size {batch_size} is above the {examples:,} training images")
    rounds = round(effective_epochs * examples / (batch_size * inner_steps))
    return Budget(max(rounds, 1), inner_steps, batch_size)


def train(
    contestant: Contestant, model: Model, dataset: Dataset, budget: Budget, seeds: int
) -> Iterator[Measurement]:
    """Trains one network per seed, and yields a measurement before training and per segment."""
    data = jax.device_put(dataset)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    params, state = start(contestant.optimizer, model, keys)
    order = draw_segment(keys, 0, budget, len(dataset.train_labels))
    advance = _compile_segment(contestant, model, params, state, order, data)

    done = 0
    yield Measurement(done, *jax.device_get(_measure(model, params, data)), math.nan)
    for index, rounds in enumerate(budget.segments):
        began = time.perf_counter()
        order = draw_segment(keys, index, budget, len(dataset.train_labels))
        params, state = jax.block_until_ready(advance(params, state, order, rounds, data))
        seconds = time.perf_counter() - began
        done += rounds * budget.inner_steps
        rate = seeds * rounds * budget.inner_steps / seconds
        yield Measurement(done, *jax.device_get(_measure(model, params, data)), rate)


def start(
    optimizer: optax.GradientTransformation, model: Model, keys: jax.Array
) -> tuple[Params, optax.OptState]:
    """Parameters and optimizer state of every seed; the same parameters for every optimizer."""
    params = _initial_params(model, keys)
    state = jax.jit(jax.vmap(optimizer.init))(params)
    # Under vmap every seed starts from the optimizer's one key: give each its own noise.
    if optax.tree.get(state, "rng_key") is not None:
        state = optax.tree.set(
            state, rng_key=jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        )
    return params, state


def _compile_segment(
    contestant: Contestant,
    model: Model,
    params: Params,
    state: optax.OptState,
    order: jax.Array,
    data: Dataset,
) -> Callable[..., tuple[Params, optax.OptState]]:
    """Compiles ahead, so that no measured time holds compilation."""
    grad_fn = jax.grad(model.loss)

    def advance(
        params: Params, state: optax.OptState, order: jax.Array, rounds: Any, data: Dataset
    ) -> tuple[Params, optax.OptState]:
        def one_round(index: jax.Array, carry: tuple[Params, optax.OptState]) -> Any:
            batches = data.train_images[order[index]], data.train_labels[order[index]]
            return contestant.take_round(contestant.optimizer, grad_fn, *carry, batches)

        return lax.fori_loop(0, rounds, one_round, (params, state))

    advance_seeds = jax.jit(jax.vmap(advance, (0, 0, 0, None, None)), donate_argnums=(0, 1))
    return advance_seeds.lower(params, state, order, 0, data).compile()


@functools.partial(jax.jit, static_argnums=0)
def _initial_params(model: Model, keys: jax.Array) -> Params:
    return jax.vmap(lambda key: model.init(jax.random.fold_in(key, 1)))(keys)


@functools.partial(jax.jit, static_argnums=(2, 3))
def draw_segment(keys: jax.Array, index: Any, budget: Budget, examples: int) -> jax.Array:
    """Indices into the training set, of shape (seeds, rounds, inner_steps, batch_size)."""
    rounds = budget.segments[0]

    def draw_seed(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, 2), index)
        order = shuffled_passes(key, rounds * budget.inner_steps * budget.batch_size, examples)
        return order.reshape(rounds, budget.inner_steps, budget.batch_size)

    return jax.vmap(draw_seed)(keys)


def shuffled_passes(key: jax.Array, count: int, examples: int) -> jax.Array:
    """The first `count` indices of shuffled passes over the examples, one after another."""
    keys = jax.random.split(key, math.ceil(count / examples))
    return jax.vmap(lambda key: jax.random.permutation(key, examples))(keys).reshape(-1)[:count]


@functools.partial(jax.jit, static_argnums=0)
def _measure(model: Model, params: Params, data: Dataset) -> tuple[jax.Array, jax.Array]:
    """Training loss and test error in percent, each of shape (seeds,)."""
    known = data.train_images[:LOSS_EXAMPLES], data.train_labels[:LOSS_EXAMPLES]

    def measure_seed(params: Params) -> tuple[jax.Array, jax.Array]:
        wrong = model.logits(params, data.test_images).argmax(-1) != data.test_labels
        return model.loss(params, known), 100 * wrong.mean()

    return jax.vmap(measure_seed)(params)
