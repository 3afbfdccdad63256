"""Entropy-SGD in plain float64 NumPy, in the paper's order: what the library is tested against.

Written from the equations, not from the library. Parameters are a dict of arrays. A number may be
a function of its count: of the outer step t, or for the inner learning rate of t·L + l. The noise
is given, so that both can draw the same: `noise[t][l]` is a dict like the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]
NumberOrSchedule = float | Callable[[int], float]
GradientFn = Callable[[Arrays, int, int], Arrays]  # of x′, on batch l of outer step t
Noise = Sequence[Sequence[Arrays]]


class OuterStep(NamedTuple):
    """What one outer step went through."""

    iterates: list[Arrays]  # x′ after each Langevin step
    averages: list[Arrays]  # μ after each Langevin step
    params: Arrays  # x at its end


class BaseOptimizer(Protocol):
    """Moves x along a gradient, as an Optax optimizer does."""

    def step(self, x: Arrays, gradient: Arrays, t: int) -> Arrays: ...


def at(value: NumberOrSchedule, count: int) -> float:
    return float(value(count)) if callable(value) else value


class Momentum:
    """The gradient, heavy-ball momentum or Nesterov's, after weight decay."""

    def __init__(self, decay: float = 0, nesterov: bool = False, weight_decay: float = 0) -> None:
        self.decay, self.nesterov, self.weight_decay = decay, nesterov, weight_decay
        self.buffer: dict[str, Any] = {}

    def reset(self) -> None:
        self.buffer = {}

    def direction(self, gradient: Arrays, params: Arrays) -> Arrays:
        directions = {}
        for name in params:
            d = gradient[name] + self.weight_decay * params[name]
            v = self.decay * self.buffer.get(name, 0) + d
            self.buffer[name] = v
            directions[name] = d + self.decay * v if self.nesterov else v
        return directions


class SGD:
    """Steps against the direction of `momentum`."""

    def __init__(self, learning_rate: NumberOrSchedule, momentum: Momentum | None = None) -> None:
        self.learning_rate, self.momentum = learning_rate, momentum or Momentum()

    def step(self, x: Arrays, gradient: Arrays, t: int) -> Arrays:
        d = self.momentum.direction(gradient, x)
        return {name: x[name] - at(self.learning_rate, t) * d[name] for name in x}


class Adam:
    """Kingma and Ba, 2015, algorithm 1, on the gradient after weight decay."""

    def __init__(
        self,
        learning_rate: NumberOrSchedule,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0,
    ) -> None:
        self.learning_rate, self.b1, self.b2, self.eps = learning_rate, b1, b2, eps
        self.weight_decay = weight_decay
        self.m: dict[str, Any] = {}
        self.v: dict[str, Any] = {}

    def step(self, x: Arrays, gradient: Arrays, t: int) -> Arrays:
        moved = {}
        for name in x:
            g = gradient[name] + self.weight_decay * x[name]
            self.m[name] = self.b1 * self.m.get(name, 0) + (1 - self.b1) * g
            self.v[name] = self.b2 * self.v.get(name, 0) + (1 - self.b2) * g**2
            m = self.m[name] / (1 - self.b1 ** (t + 1))
            v = self.v[name] / (1 - self.b2 ** (t + 1))
            moved[name] = x[name] - at(self.learning_rate, t) * m / (np.sqrt(v) + self.eps)
        return moved


def entropy_sgd(
    x: Arrays,
    gradient: GradientFn,
    noise: Noise,
    base_optimizer: BaseOptimizer,
    *,
    updates: int,
    inner_steps: int,
    inner_learning_rate: NumberOrSchedule,
    scope: NumberOrSchedule,
    noise_scale: NumberOrSchedule,
    averaging: NumberOrSchedule,
    inner_momentum: Momentum | None = None,
    reset_inner_state: bool = True,
    scale_by_scope: bool = False,
) -> list[OuterStep]:
    """Algorithm 1 of the paper, with the choices of the library's DESIGN."""
    momentum = inner_momentum or Momentum()
    history = []
    for t in range(updates):
        alpha, gamma, eps = at(averaging, t), at(scope, t), at(noise_scale, t)
        y, mu = x, x  # y is the paper's x′
        iterates, averages = [], []
        if reset_inner_state:
            momentum.reset()
        for l in range(inner_steps):  # noqa: E741
            eta = at(inner_learning_rate, t * inner_steps + l)
            d = momentum.direction(gradient(y, t, l), y)
            y, before = {}, y
            for name in x:
                drift = d[name] + gamma * (before[name] - x[name])
                y[name] = before[name] - eta * drift + np.sqrt(eta) * eps * noise[t][l][name]
            mu = {name: (1 - alpha) * mu[name] + alpha * y[name] for name in x}
            iterates.append(y)
            averages.append(mu)
        if inner_steps == 0:
            pseudo_gradient = gradient(x, t, 0)
        else:
            factor = gamma if scale_by_scope else 1
            pseudo_gradient = {name: factor * (x[name] - mu[name]) for name in x}
        x = base_optimizer.step(x, pseudo_gradient, t)
        history.append(OuterStep(iterates, averages, x))
    return history


def published_code(
    x: Arrays,
    gradient: GradientFn,
    noise: Noise,
    *,
    updates: int,
    inner_steps: int,
    learning_rate: float,
    momentum: float = 0,
    damping: float = 0,
    nesterov: bool = False,
    weight_decay: float = 0,
    g0: float = 0.03,
    eps: float = 1e-4,
    seeded_buffer: bool = True,
    leaking_buffer: bool = True,
    inner_learning_rate: float = 0.1,
    beta: float = 0.75,
) -> list[OuterStep]:
    """The authors' PyTorch optimizer, as it runs. Its scope is `g0` for ever.

    `gradient(x, t, -1)` is the call at x before the loop. `seeded_buffer`: at the first step its
    gradient fills the outer momentum buffer. `leaking_buffer`: under plain momentum the pull and
    the noise stay in the inner buffer.
    """
    outer = {name: np.zeros_like(x[name]) for name in x}
    history = []
    for t in range(updates):
        at_x = gradient(x, t, -1)
        if t == 0 and seeded_buffer:
            outer = dict(at_x)
        y, mu = x, x
        buffer = {name: np.zeros_like(x[name]) for name in x}
        iterates, averages = [], []
        for l in range(inner_steps):  # noqa: E741
            g = gradient(y, t, l)
            y, mu, before, mean = {}, {}, y, mu
            for name in x:
                d = g[name] + weight_decay * before[name]
                if momentum > 0:
                    buffer[name] = momentum * buffer[name] + (1 - damping) * d
                    d = d + momentum * buffer[name] if nesterov else buffer[name]
                xi = noise[t][l][name]
                u = d - g0 * (x[name] - before[name]) + eps / np.sqrt(inner_learning_rate / 2) * xi
                if momentum > 0 and not nesterov and leaking_buffer:
                    buffer[name] = u
                y[name] = before[name] - inner_learning_rate * u
                mu[name] = beta * mean[name] + (1 - beta) * y[name]
            iterates.append(y)
            averages.append(mu)
        moved = {}
        for name in x:
            d = x[name] - mu[name] if inner_steps > 0 else at_x[name]
            d = d + weight_decay * x[name]
            if momentum > 0:
                outer[name] = momentum * outer[name] + (1 - damping) * d
                d = d + momentum * outer[name] if nesterov else outer[name]
            moved[name] = x[name] - learning_rate * d
        x = moved
        history.append(OuterStep(iterates, averages, x))
    return history
