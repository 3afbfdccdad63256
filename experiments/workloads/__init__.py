"""What can be trained: one file for each, with its data, its network and the paper's settings.

The source of each number is given next to it: `text` is the paper, `code` what its authors
published, `job` a script there that started their runs, `ours` a choice of this project if none of
them says it. Where they disagree, the default is what the paper's table came from as far as that is
known, and a flag gives the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.harness.evaluation import Model
from experiments.harness.settings import WORKLOADS, Settings
from experiments.io.dataset import Dataset

NAMES = WORKLOADS


class Request(NamedTuple):
    """Which data to load, and how."""

    directory: str | None
    text: str  # the file of a character model
    validation: int | None  # images or symbols to judge by, not the test set; 0: the usual number
    settings: Settings

    def held_out(self, usual: int) -> int:
        """How many to judge by; 0 for the test set."""
        return 0 if self.validation is None else self.validation or usual


class Workload(NamedTuple):
    """A task for all optimizers."""

    load: Callable[[Request], tuple[Dataset, int]]  # the data, and the number of classes
    make_model: Callable[[Settings, Dataset, int], Model]
    settings: dict[str, Settings]  # by optimizer
    source: str | None = None  # in `download.SOURCES`; None if no file is needed
    score: str = "error"  # in `report.SCORES`
    one_by_one: bool = False  # whether the seeds train in turn, in the memory of one


# All ours, but for Parle's, which are its authors' code without its drops of the rate, and SNOO's
# outer rate, which is DiLoCo's. Workloads replace what the paper says.
USUAL: dict[str, dict[str, Any]] = {
    "entropy_sgd": {"learning_rate": 1.0},
    "entropy_adam": {"learning_rate": 0.01, "b1": 0.5},
    "sgd": {"learning_rate": 0.1, "momentum": 0.9, "schedule": "cosine"},
    "adam": {"learning_rate": 1e-3, "schedule": "cosine"},
    "adamw": {"learning_rate": 1e-3, "schedule": "cosine", "weight_decay": 1e-2},
    "sam": {"learning_rate": 0.1, "momentum": 0.9, "schedule": "cosine", "rho": 0.05},
    "snoo": {
        "learning_rate": 0.7,
        "momentum": 0.5,
        "inner_learning_rate": 2e-3,
        "inner_schedule": "cosine",
        "weight_decay": 1e-2,
    },
    "parle": {
        "learning_rate": 0.1,
        "momentum": 0.9,
        "inner_steps": 25,
        "scope": 0.01,
        "scope_growth": 1e-3,  # 1 / (2 × mini-batches per epoch), of 500
        "coupling_growth": 1e-3,
        "noise_scale": 0.0,
        "averaging": 0.25,
        "reset_inner_state": False,
    },
    "sgld": {"learning_rate": 0.1, "schedule": "power"},
}


def for_each_optimizer(common: dict[str, Any], **own: dict[str, Any]) -> dict[str, Settings]:
    """Settings of every optimizer: the usual, then the workload's, then its own for that one."""
    return {
        name: Settings(**{**usual, **common, **own.get(name, {})}) for name, usual in USUAL.items()
    }


def get(name: str) -> Workload:
    """The workload; its file is imported only now."""
    return importlib.import_module(f"experiments.workloads.{name}").WORKLOAD
