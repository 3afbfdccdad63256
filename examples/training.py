"""Trains several seeds at once, and counts every gradient evaluation alike for every optimizer.

The unit is a *round*: `inner_steps` mini-batches, and so `inner_steps` gradient evaluations. An
Optax optimizer makes `inner_steps` updates of them, Entropy-SGD one. A seed stands for the initial
parameters, the batches and the Langevin noise; optimizers with the same seed start from the same
parameters and see the same batches.
"""

from __future__ import annotations

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

MEASUREMENTS = 40  # at most so many points on a curve
LOSS_EXAMPLES = 10_000  # the training loss is taken on at most the first so many images

Params = Any
Batch = tuple[jax.Array, jax.Array]  # images and labels


class Contestant(NamedTuple):
    """An optimizer, and how it spends one round of mini-batches."""

    name: str
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


def make_budget(
    effective_epochs: int, examples: int, batch_size: int, inner_steps: int
) -> Budget:
    """Whole rounds nearest to `effective_epochs`, each of examples / batch_size evaluations."""
    rounds = round(effective_epochs * examples / (batch_size * inner_steps))
    return Budget(max(rounds, 1), inner_steps, batch_size)


def train(
    contestant: Contestant, model: Model, dataset: Dataset, budget: Budget, seeds: int
) -> Iterator[Measurement]:
    """Trains one network per seed, and yields a measurement before training and per segment."""
    data = jax.device_put(dataset)
    seed_keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    carry = jax.jit(jax.vmap(lambda key: _start(contestant, model, key)))(seed_keys)
    advance = _compile_segment(contestant, model, budget, carry, seed_keys, data)
    measure = jax.jit(jax.vmap(lambda carry, data: _measure(model, carry[0], data), (0, None)))

    done, rate = 0, math.nan
    yield Measurement(done, *jax.device_get(measure(carry, data)), rate)
    for index, rounds in enumerate(budget.segments):
        began = time.perf_counter()
        carry = jax.block_until_ready(advance(carry, seed_keys, index, rounds, data))
        seconds = time.perf_counter() - began
        done += rounds * budget.inner_steps
        rate = seeds * rounds * budget.inner_steps / seconds
        yield Measurement(done, *jax.device_get(measure(carry, data)), rate)


def _start(contestant: Contestant, model: Model, key: jax.Array) -> tuple[Params, optax.OptState]:
    params_key, noise_key = jax.random.split(jax.random.fold_in(key, 0))
    params = model.init(params_key)
    state = contestant.optimizer.init(params)
    # Under vmap every seed would start from the optimizer's one key: give each its own noise.
    if optax.tree.get(state, "rng_key") is not None:
        state = optax.tree.set(state, rng_key=noise_key)
    return params, state


def _compile_segment(
    contestant: Contestant, model: Model, budget: Budget, carry: Any, keys: jax.Array, data: Dataset
) -> Callable[..., Any]:
    """Compiles ahead, so that no measured time holds compilation."""
    longest = budget.segments[0]

    def advance(carry: Any, key: jax.Array, index: Any, rounds: Any, data: Dataset) -> Any:
        batch_key = jax.random.fold_in(jax.random.fold_in(key, 1), index)
        images = data.train_images
        order = shuffled_batches(
            batch_key, longest * budget.inner_steps, budget.batch_size, len(images)
        ).reshape(longest, budget.inner_steps, budget.batch_size)

        def one_round(i: jax.Array, carry: Any) -> Any:
            batches = images[order[i]], data.train_labels[order[i]]
            return contestant.take_round(
                contestant.optimizer, jax.grad(model.loss), *carry, batches
            )

        return lax.fori_loop(0, rounds, one_round, carry)

    advance_seeds = jax.jit(jax.vmap(advance, (0, 0, None, None, None)), donate_argnums=0)
    return advance_seeds.lower(carry, keys, 0, longest, data).compile()


def shuffled_batches(key: jax.Array, count: int, batch_size: int, examples: int) -> jax.Array:
    """Indices of `count` mini-batches from shuffled passes over the data, one after another."""
    passes = math.ceil(count * batch_size / examples)
    order = jax.vmap(lambda key: jax.random.permutation(key, examples))(jax.random.split(key, passes))
    return order.reshape(-1)[: count * batch_size].reshape(count, batch_size)


def _measure(model: Model, params: Params, data: Dataset) -> tuple[jax.Array, jax.Array]:
    known = data.train_images[:LOSS_EXAMPLES], data.train_labels[:LOSS_EXAMPLES]
    guesses = model.logits(params, data.test_images).argmax(-1)
    return model.loss(params, known), 100 * (guesses != data.test_labels).mean()
