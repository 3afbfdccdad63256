"""The same networks in PyTorch, on the same batches, if it is installed: on a CPU only."""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import numpy as np

import timing
from experiments.workloads import char_lstm
from programs import Task
from timing import Program

FOUND = jax.default_backend() == "cpu" and importlib.util.find_spec("torch") is not None


def mlp(task: Task) -> Program:
    """Fully connected layers of the widths of the task's."""
    import torch

    layers: list[Any] = []
    for layer in task.params:
        layers += [torch.nn.Linear(*layer["w"].shape), torch.nn.ReLU()]
    return _sgd(torch.nn.Sequential(*layers[:-1]), task)


def lstm(task: Task) -> Program:
    """The paper's character LSTM, by `torch.nn.LSTM`; each window from zeros."""
    import torch

    symbols, width = int(np.max(task.batches[0])) + 1, char_lstm.WIDTH

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [char_lstm.EMBEDDING, *(char_lstm.LAYERS - 1) * [width]]
            self.embedding = torch.nn.Embedding(symbols, char_lstm.EMBEDDING)
            self.lstms = torch.nn.ModuleList(
                torch.nn.LSTM(size, width, batch_first=True) for size in sizes
            )
            self.norms = torch.nn.ModuleList(torch.nn.BatchNorm1d(width) for _ in sizes)
            self.last = torch.nn.Linear(width, symbols)

        def forward(self, text: Any) -> Any:
            hidden = self.embedding(text)
            for layer, norm in zip(self.lstms, self.norms, strict=True):
                hidden = norm(layer(hidden)[0].flatten(0, 1)).unflatten(0, text.shape)
            return self.last(hidden)

    return _sgd(Network(), task)


def _sgd(model: Any, task: Task) -> Program:
    """A step of `torch.optim.SGD` for each batch of the task's first L."""
    import torch

    torch.set_num_threads(timing.environment()["cores"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    inputs, labels = (torch.tensor(np.asarray(leaf[0])) for leaf in task.batches)

    def call() -> None:
        for batch, label in zip(inputs, labels, strict=True):
            optimizer.zero_grad()
            logits = model(batch).flatten(0, -2)
            torch.nn.functional.cross_entropy(logits, label.flatten().long()).backward()
            optimizer.step()

    return Program("torch.optim.SGD", call, task.inner_steps)
