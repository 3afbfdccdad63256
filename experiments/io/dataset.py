"""A data set in memory, and parts of it held out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.io.errors import InputError


class Dataset(NamedTuple):
    """A classification task; a held-out part of the training set may stand in for the test set."""

    train_inputs: np.ndarray  # images: (examples, height, width, ...); text: (windows, length)
    train_labels: np.ndarray  # images: (examples,); text: (windows, length), or fewer, the last
    test_inputs: np.ndarray
    test_labels: np.ndarray
    validation_inputs: np.ndarray | None = None  # of text, which is judged by both
    validation_labels: np.ndarray | None = None


def split_end(inputs: np.ndarray, labels: np.ndarray, validation: int) -> Dataset:
    """The last `validation` examples in place of the test set."""
    if validation >= len(labels):
        raise InputError(
            f"--validation {validation} leaves nothing of the {len(labels):,} training examples"
        )
    return Dataset(
        inputs[:-validation], labels[:-validation], inputs[-validation:], labels[-validation:]
    )


def hold_out(dataset: Dataset, fold: int, folds: int = 5) -> Dataset:
    """Puts one fold of the training set in place of the test set, to tune on."""
    images, labels = dataset.train_inputs, dataset.train_labels
    held = np.arange(len(labels)) * folds // len(labels) == fold
    return Dataset(images[~held], labels[~held], images[held], labels[held])
