"""How the cost grows: each sweep changes one thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import programs
from programs import Task, mlp_task
from timing import Maker, Timed, interleave


class Sweep(NamedTuple):
    """A quantity, its values, and what is timed at each."""

    label: str
    values: Sequence[int]
    task: Callable[[int], Task]
    contestants: Callable[[Task], list[Maker]]

    def comparisons(self, seconds: float) -> dict[str, Callable[[], list[Timed]]]:
        """For `timing.measure`."""
        return {str(value): partial(self.compare, value, seconds) for value in self.values}

    def compare(self, value: int, seconds: float) -> list[Timed]:
        makers = self.contestants(self.task(value))
        return interleave(makers, seconds, f"{self.label}: {value}")


def against_sgd(task: Task) -> list[Maker]:
    """SGD, Entropy-SGD with each kind of noise, and in streaming mode."""
    entropy = partial(programs.entropy, task)
    return [
        partial(programs.scan, "SGD", programs.sgd(), task),
        partial(programs.loops, "Entropy-SGD, no noise", entropy(noise_scale=0), task),
        partial(programs.loops, "Entropy-SGD, Rademacher", entropy(noise="rademacher"), task),
        partial(programs.loops, "Entropy-SGD, Gaussian", entropy(), task),
        partial(programs.scan, "Entropy-SGD, Gaussian, streaming", entropy(streaming=True), task),
    ]


def replicated(task: Task) -> list[Maker]:
    """Replicas under `vmap`: apart with SGD or AdamW, and meeting once in L gradients."""
    diloco = partial(programs.diloco, task, replica_axis_name=programs.AXIS)
    return [
        partial(programs.scan, "SGD", programs.sgd(), task),
        partial(programs.loops, "Parle", programs.parle(task), task),
        partial(programs.scan, "AdamW", programs.adamw(), task),
        partial(programs.loops, "diloco over AdamW", diloco(), task),
        partial(programs.scan, "diloco over AdamW, streaming", diloco(streaming=True), task),
    ]


def square(parameters: int) -> Task:
    """Two layers, as wide as `parameters` needs in multiples of 8, on batches of 32.

    Where the width is odd, XLA's products of large matrices copy them first, in some programs.
    """
    width = 8 * round((parameters / 2) ** 0.5 / 8)
    updates = max(1, 2_000_000 // parameters // 5)
    steps = 20 if parameters < 10**7 else 5
    return mlp_task((width, width, width), 32, updates=min(updates, 50), inner_steps=steps)


def leaves(count: int) -> Task:
    """`count` leaves, weights and biases, of width 16."""
    return mlp_task((16,) * (count // 2 + 1), 32, updates=max(1, 200 // count))


def inner_steps(steps: int) -> Task:
    """A thousand gradients of a small network."""
    return mlp_task((64, 32, 10), 32, updates=1000 // steps, inner_steps=steps)


def batch(size: int) -> Task:
    return mlp_task((784, 256, 256, 10), size)


def replicas(count: int) -> Task:
    return mlp_task((784, 256, 256, 10), 32)._replace(replicas=count)


SWEEPS = {
    "inner_steps": Sweep(
        "Langevin steps per update, L", (1, 2, 5, 10, 20, 50, 200, 500), inner_steps, against_sgd
    ),
    "parameters": Sweep(
        "parameters", (10**3, 10**4, 10**5, 10**6, 10**7, 10**8), square, against_sgd
    ),
    "leaves": Sweep("leaves of the parameter tree", (2, 10, 50, 200, 1000), leaves, against_sgd),
    "batch": Sweep("batch size", (8, 32, 128, 512), batch, against_sgd),
    "replicas": Sweep("replicas on one device", (1, 2, 4, 8), replicas, replicated),
}
