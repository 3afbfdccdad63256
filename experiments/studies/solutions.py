"""The networks that a training ends with, and their loss as `flatness` takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.harness import evaluation
from experiments.harness.evaluation import Model
from experiments.harness.training import Budget, Contestant, Measurement, train
from experiments.io.dataset import Dataset
from experiments.io.errors import InputError

BATCH = 256  # examples at once when the Hessian is taken


class EveryState:
    """Keeps what `training.train` would write to files, to get at the parameters."""

    def __init__(self) -> None:
        """None so far."""
        self.trained: list[Any] = []

    def restore(self, like: Any) -> None:
        """Nothing to go on from."""

    def save(self, step: int, tree: Any) -> None:
        """In the order of the measurements."""
        self.trained.append(tree)


def train_to_the_end(
    contestant: Contestant, model: Model, dataset: Dataset, budget: Budget, seeds: int, **how: Any
) -> tuple[Any, Measurement]:
    """The parameters to evaluate, with a leading axis of seeds, and what is known of them; `how`
    is what else `train` takes.
    """
    states = EveryState()
    *_, end = train(contestant, model, dataset, budget, seeds, states, **how)
    return jax.vmap(contestant.reported)(states.trained[-1][0]), end


def train_until(
    reached: Callable[[Measurement], np.ndarray],
    contestant: Contestant,
    model: Model,
    dataset: Dataset,
    budget: Budget,
    seeds: int,
) -> tuple[list[Any], list[Measurement]]:
    """Parameters of each seed at its first measurement that has `reached` the aim, and that."""
    states = EveryState()
    _, *measurements = train(contestant, model, dataset, budget, seeds, states)
    there = np.array([reached(measurement) for measurement in measurements])
    if not there.any(axis=0).all():
        raise InputError(
            f"{budget.gradient_evaluations:,} gradients do not get there: raise --effective-epochs"
        )
    params, ends = [], []
    for seed, first in enumerate(there.argmax(axis=0)):
        trained = jax.tree.map(lambda leaf: leaf[seed], states.trained[first][0])  # noqa: B023
        params.append(contestant.reported(trained))
        own = {
            name: value[seed] if np.ndim(value) else value
            for name, value in measurements[first]._asdict().items()
        }
        ends.append(Measurement(**own))
    return params, ends


def logits_of(model: Model, params: Any, batch: Any) -> jax.Array:
    """As evaluated; these networks have no BatchNorm, so no statistics."""
    statistics = model.statistics(params, evaluation.statistics_batches(batch[0]))
    return model.logits(params, statistics, batch[0])


def loss_of(model: Model) -> Any:
    """Mean cross-entropy of a batch in nats, as a function of parameters and (images, labels)."""
    return lambda params, batch: evaluation.cross_entropies(
        logits_of(model, params, batch), batch[1]
    ).mean()


def stacked_batches(dataset: Dataset, examples: int) -> Any:
    """The first training images and their labels."""
    images, labels = jax.device_put(
        (dataset.train_inputs[:examples], dataset.train_labels[:examples])
    )
    size = min(BATCH, examples)
    return tuple(part.reshape(-1, size, *part.shape[1:]) for part in (images, labels))
