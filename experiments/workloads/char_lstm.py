"""Any text by characters, War and Peace in the paper, with two LSTM layers of 128 units.

As in `ptb.py` each window starts from zeros. The authors' code has BatchNorm, of which the paper
says nothing; it is left out.
"""

from __future__ import annotations

from experiments.data.text import load_characters, windows
from experiments.harness.evaluation import Model
from experiments.harness.networks import pure, torch_uniform
from experiments.harness.settings import Settings
from experiments.io.dataset import Dataset
from experiments.workloads import Request, Workload, for_each_optimizer
from experiments.workloads.ptb import Network

WIDTH, LAYERS = 128, 2  # text
LENGTH = 50  # text: characters per training window
TEST_LENGTH, TEST_CONTEXT = 200, 100  # ours
ALL_CHARACTERS = 1 << 30
CHUNK = 400  # windows evaluated at once

PAPER = {
    "effective_epochs": 25.0,  # text: 5 epochs of L = 5
    "batch_size": 128,  # code
    "dropout": 0.0,  # code
    "clip_value": 5.0,  # code
}
ENTROPY_ADAM = {
    "inner_steps": 5,  # text: L
    "learning_rate": 0.01,  # text: η
    "b1": 0.5,  # text
    "schedule": "step",
    "drop_at": (0.2, 0.4, 0.6, 0.8),  # text: each of 5 epochs
    "drop_by": 2.0,  # text
    "inner_learning_rate": 1.0,  # code: η′
    "inner_momentum": 0.9,  # code
    "scope": 0.01,  # text: γ, without growth
    "noise_scale": 1e-4,  # code: ε
    "averaging": 0.75,  # text: α; code 0.25
}
ADAM = {
    "effective_epochs": 40.0,  # text: its table; 50 were trained
    "learning_rate": 2e-3,  # text
    "schedule": "step",
    "drop_at": (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875),  # text: every 5 epochs
    "drop_by": 2.0,  # text
}


def load(request: Request) -> tuple[Dataset, int]:
    """Of War and Peace, 2.9 million characters to train on and 163,000 to test on."""
    validation = 0 if request.validation is None else request.validation or ALL_CHARACTERS
    characters = load_characters(request.directory, request.text, validation)
    length, context = request.settings.length or LENGTH, request.settings.context
    return windows(characters, length, context, TEST_LENGTH, TEST_CONTEXT), characters.symbols


def make_model(settings: Settings, dataset: Dataset, classes: int) -> Model:
    """Two layers of 128, unless `--layers` and `--width` say otherwise."""
    width, layers = settings.width or WIDTH, settings.layers or LAYERS
    return pure(
        lambda rngs: Network(classes, width, layers, settings.dropout, torch_uniform, rngs), CHUNK
    )


WORKLOAD = Workload(
    load,
    make_model,
    for_each_optimizer(
        PAPER,
        entropy_adam=ENTROPY_ADAM,
        entropy_sgd={**ENTROPY_ADAM, "learning_rate": 1.0},  # ours
        adam=ADAM,
        sgd={"learning_rate": 1.0},  # ours
        sam={"learning_rate": 1.0},  # ours
        parle={"inner_learning_rate": 1.0},  # ours
    ),
    source="war-and-peace",
    score="nats",
)
