"""Scikit-learn's 8×8 digits, a network 64-64-64-10 and the settings of `examples/digits.py`."""

from __future__ import annotations

import digits
from evaluation import Model
from experiments.data.images import load_digits
from experiments.io.dataset import Dataset, split_end
from settings import Settings
from workloads import Request, Workload, for_each_optimizer

WIDTH = 64  # ours
VALIDATION = 256  # ours


def load(request: Request) -> tuple[Dataset, int]:
    """1,280 images to train on and 517 to test on."""
    dataset = load_digits()
    if request.validation is not None:
        train = dataset.train_inputs, dataset.train_labels
        dataset = split_end(*train, request.validation or VALIDATION)
    return dataset, 10


def make_model(settings: Settings, dataset: Dataset, classes: int) -> Model:
    """Two hidden layers."""
    width = settings.width or WIDTH
    return digits.make_model((dataset.train_inputs[0].size, width, width, classes))


usual = digits.SETTINGS["digits"]
WORKLOAD = Workload(
    load,
    make_model,
    for_each_optimizer(
        digits.TWO_LOOPS
        | {"effective_epochs": usual.effective_epochs, "batch_size": usual.batch_size},
        **{recipe: usual.arguments[name] for name, (recipe, _) in digits.OPTIMIZERS.items()},
    ),
)
