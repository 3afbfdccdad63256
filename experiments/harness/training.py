"""Trains several seeds at once, and counts every gradient evaluation alike for every optimizer.

The unit is a *round*: `inner_steps` gradient evaluations, as a rule one on each of as many
mini-batches. An Optax optimizer makes `inner_steps` updates of them, Entropy-SGD one. A seed stands
for the initial parameters, the batches, the dropout masks and the Langevin noise; optimizers with
the same seed and rounds start from the same parameters and see the same batches.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.harness import evaluation
from experiments.harness.evaluation import Model, Params
from experiments.io.dataset import Dataset
from experiments.io.errors import InputError

MEASUREMENTS = 40  # at most this many points on a curve


class Contestant(NamedTuple):
    """An optimizer, and how it spends one round of mini-batches."""

    optimizer: optax.GradientTransformationExtraArgs
    # (optimizer, grad_fn, params, state, batches) -> (params, state); in streams, `grad_fn` is
    # from (params, batch, carry) to (gradient, carry), and a carry comes in and out last.
    take_round: Callable[..., Any]
    # Replicas are trained instead of one network if these two are given.
    prepare: Callable[[Params], Params] = lambda params: params  # what to train, from the start
    reported: Callable[[Params], Params] = lambda params: params  # what to evaluate, from that


class Budget(NamedTuple):
    """How much every optimizer may spend."""

    rounds: int
    inner_steps: int  # gradient evaluations per round
    batch_size: int
    gradients_per_batch: int = 1  # SAM evaluates two
    measurements: int = MEASUREMENTS
    sampling: str = "passes"  # in `settings.SAMPLINGS`

    @property
    def gradient_evaluations(self) -> int:
        """In all, per seed."""
        return self.rounds * self.inner_steps

    @property
    def batches(self) -> int:
        """Mini-batches per round."""
        return self.inner_steps // self.gradients_per_batch

    @property
    def segments(self) -> list[int]:
        """Rounds between one measurement and the next; the last segment may be shorter."""
        longest = math.ceil(self.rounds / self.measurements)
        return [min(longest, self.rounds - done) for done in range(0, self.rounds, longest)]

    @property
    def measured(self) -> list[int]:
        """Gradient evaluations so far, per seed, at each measurement."""
        return [rounds * self.inner_steps for rounds in itertools.accumulate([0, *self.segments])]


class Measurement(NamedTuple):
    """What is measured at one point of training, for every seed."""

    gradient_evaluations: int  # so far, per seed
    train_loss: np.ndarray  # shape (seeds,)
    test_loss: np.ndarray  # shape (seeds,)
    test_error: np.ndarray  # percent, shape (seeds,)
    evaluations_per_second: float  # since the last measurement, all seeds together
    validation_loss: np.ndarray | None = None  # of text that is judged by both, shape (seeds,)


PER_SEED = ("train_loss", "test_loss", "test_error", "validation_loss")


class Checkpoints(Protocol):
    """Where to keep the state between segments; `checkpoints.Checkpoints` is one."""

    def restore(self, like: Any) -> tuple[int, Any] | None: ...  # noqa: D102
    def save(self, step: int, tree: Any) -> None: ...  # noqa: D102


def make_budget(
    effective_epochs: float, examples: int, batch_size: int, inner_steps: int, **rest: Any
) -> Budget:
    """The whole rounds nearest to `effective_epochs`, each of examples / batch_size evaluations."""
    if batch_size > examples:
        raise InputError(f"--batch-size {batch_size} is above the {examples:,} training examples")
    evaluations = effective_epochs * examples / batch_size
    if not inner_steps / 2 <= evaluations < 2**31:
        raise InputError(
            f"--effective-epochs {effective_epochs:g} are {evaluations:,.0f} gradient evaluations; "
            f"allowed are {inner_steps / 2:,.0f}, half a round, to 2,147,483,647"
        )
    rounds = round(effective_epochs * examples / (batch_size * inner_steps))
    return Budget(max(rounds, 1), inner_steps, batch_size, **rest)


def train(
    contestant: Contestant,
    model: Model,
    dataset: Dataset,
    budget: Budget,
    seeds: int,
    checkpoints: Checkpoints | None = None,
    map_seeds: Callable = jax.vmap,
    first_seed: int = 0,
) -> Iterator[Measurement]:
    """Trains one network per seed, and yields a measurement before training and per segment.

    The seeds are `first_seed` and those that follow it.

    With `checkpoints` it resumes from the newest one, and yields what comes after it: batches and
    masks are functions of seed and segment, so the rest is the same bit for bit.
    """
    data = jax.device_put(dataset)
    keys = jax.vmap(jax.random.key)(first_seed + jnp.arange(seeds))
    trained = start(contestant, model, keys, budget)
    measure = functools.partial(_measure, contestant.reported, model, map_seeds)

    first = 0
    if checkpoints and (restored := checkpoints.restore(trained)):
        first, trained = restored
    else:
        yield Measurement(0, evaluations_per_second=math.nan, **measure(trained[0], data))
    if first == len(budget.segments):
        return
    advance = _compile_segment(contestant, model, trained, keys, budget, data, map_seeds)
    for index in range(first, len(budget.segments)):
        rounds = budget.segments[index]
        began = time.perf_counter()
        order = draw_segment(keys, index, budget, len(dataset.train_labels))
        trained = jax.block_until_ready(advance(trained, *order, rounds, data))
        rate = seeds * rounds * budget.inner_steps / (time.perf_counter() - began)
        done = budget.measured[index + 1]
        yield Measurement(done, evaluations_per_second=rate, **measure(trained[0], data))
        if checkpoints:
            # A copy, since the next segment writes over these arrays.
            checkpoints.save(index + 1, jax.tree.map(jnp.copy, trained))


def start(contestant: Contestant, model: Model, keys: jax.Array, budget: Budget) -> tuple[Any, ...]:
    """Parameters and optimizer state of every seed; the same parameters for every optimizer.

    In streams also the network's state.
    """
    params = jax.jit(jax.vmap(contestant.prepare))(_initial_params(model, keys))
    state = jax.jit(jax.vmap(contestant.optimizer.init))(params)
    # Under vmap every seed starts from the optimizer's one key: give each its own noise.
    if (same := optax.tree.get(state, "rng_key")) is not None:
        own = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        own = own.reshape((-1,) + (1,) * (same.ndim - 1))
        state = optax.tree.set(state, rng_key=jnp.broadcast_to(own, same.shape))
    if budget.sampling != "streams":
        return params, state
    zeros = contestant.prepare(model.carry(budget.batch_size))
    return params, state, jnp.stack([zeros] * len(keys))


def _compile_segment(
    contestant: Contestant,
    model: Model,
    trained: tuple[Any, ...],
    keys: jax.Array,
    budget: Budget,
    data: Dataset,
    map_seeds: Callable,
) -> Callable[..., tuple[Any, ...]]:
    """Compiles in advance, so that no measured time includes compilation."""
    streams = budget.sampling == "streams"
    grad_fn = jax.grad(model.carried_loss, has_aux=True) if streams else jax.grad(model.loss)

    def advance(trained: Any, order: jax.Array, masks: jax.Array, rounds: Any, data: Dataset):
        def one_round(index: jax.Array, trained: Any) -> Any:
            rows = order[index]
            batches = data.train_inputs[rows], data.train_labels[rows], masks[index]
            params, state, *carry = trained
            if streams:
                batches += (rows[:, 0] == 0,)  # where the first stream, and so each, starts
            return contestant.take_round(
                contestant.optimizer, grad_fn, params, state, batches, *carry
            )

        return lax.fori_loop(0, rounds, one_round, trained)

    def advance_seeds(trained: Any, order: Any, masks: Any, rounds: Any, data: Dataset) -> Any:
        own = map_seeds(lambda seed: advance(*seed, rounds, data))
        return own((trained, order, masks))

    order = draw_segment(keys, 0, budget, len(data.train_labels))
    jitted = jax.jit(advance_seeds, donate_argnums=0)
    return jitted.lower(trained, *order, 0, data).compile()


def one_by_one(function: Callable) -> Callable:
    """In place of `jax.vmap`: the same results in the memory of one seed."""
    return functools.partial(lax.map, function)


@functools.partial(jax.jit, static_argnums=0)
def _initial_params(model: Model, keys: jax.Array) -> Params:
    return jax.vmap(lambda key: model.init(jax.random.fold_in(key, 1)))(keys)


@functools.partial(jax.jit, static_argnums=(2, 3))
def draw_segment(
    keys: jax.Array, index: Any, budget: Budget, examples: int
) -> tuple[jax.Array, jax.Array]:
    """Indices into the training set, of shape (seeds, rounds, batches, batch_size), and the key of
    each batch, for its dropout mask.
    """
    rounds, batches = budget.segments[0], budget.batches

    def draw_seed(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(key, 2)
        own = jax.random.fold_in(key, index)
        count = rounds * batches * budget.batch_size
        if budget.sampling == "streams":
            order = in_streams(index * rounds * batches, count, budget.batch_size, examples)
        elif budget.sampling == "replacement":
            order = jax.random.randint(own, (count,), 0, examples)
        else:
            order = shuffled_passes(key, index, count, examples)
        masks = jax.random.split(jax.random.fold_in(own, 3), (rounds, batches))
        return order.reshape(rounds, batches, budget.batch_size), masks

    return jax.vmap(draw_seed)(keys)


def shuffled_passes(key: jax.Array, part: Any, count: int, examples: int) -> jax.Array:
    """`count` indices, which are part number `part`, of shuffled passes over the examples.

    A pass goes on where a part ends. There is a key for as many passes as a part holds in full.
    """
    passes, rest = divmod(count, examples)
    together = max(passes, 1)
    start = part * rest  # after part · passes of them; the product of all is beyond 32 bits
    numbers = part * passes + start // examples + jnp.arange(passes + 2)

    def shuffled(number: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, number // together), together)
        return jax.random.permutation(keys[number % together], examples)

    order = jax.vmap(shuffled)(numbers).reshape(-1)
    return lax.dynamic_slice(order, (start % examples,), (count,))


def in_streams(first: Any, count: int, streams: int, examples: int) -> jax.Array:
    """`count` indices from batch `first` on: in each batch, the next window of every stream.

    Streams are equally long parts of the text; the remainder at its end is not read.
    """
    length = examples // streams
    windows = (first + jnp.arange(count // streams)) % length
    return (windows[:, None] + length * jnp.arange(streams)).reshape(-1)


def _measure(reported: Callable, model: Model, map_seeds: Callable, params: Params, data: Dataset):
    """What `evaluation.measure` says, each of shape (seeds,)."""
    return jax.device_get(_compiled_measure(reported, model, map_seeds, params, data))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled_measure(
    reported: Callable, model: Model, map_seeds: Callable, params: Params, data: Dataset
) -> dict[str, jax.Array]:
    return map_seeds(lambda params: evaluation.measure(model, reported(params), data))(params)
