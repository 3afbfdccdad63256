"""Data sets: scikit-learn's digits, and MNIST or Fashion-MNIST from the published IDX files."""

from __future__ import annotations

import math
import os
import pathlib
from typing import BinaryIO

import numpy as np

from experiments.io.dataset import Dataset, split_end
from experiments.io.errors import InputError
from experiments.io.files import find, opened, read_at_most

UNSIGNED_BYTE = 0x08  # the IDX code of the one data type that MNIST uses
LARGEST = 1 << 26  # bytes that an IDX file may claim; MNIST's largest has 47 million
DEFLATE_LIMIT = 1032  # a gzip file unpacks to at most 1032 times its size
DIGITS_TRAIN = 1280  # of 1797 images; the other 517 are the test set

MNIST_FILES = {
    "train_inputs": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_inputs": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def load_digits() -> Dataset:
    """The 8×8 digits that come with scikit-learn: 1280 to train on and 517 to test on.

    The split keeps the order of the file, as scikit-learn's own example does.
    """
    import sklearn.datasets  # here, because it is slow to import and MNIST does without it

    bunch = sklearn.datasets.load_digits()
    images, labels, split = bunch.images, bunch.target, DIGITS_TRAIN
    return _standardise(Dataset(images[:split], labels[:split], images[split:], labels[split:]))


def load_mnist(directory: str | os.PathLike[str]) -> Dataset:
    """MNIST as `read_mnist` gives it, with mean 0 and variance 1 over the training set."""
    return _standardise(read_mnist(directory))


def read_mnist(directory: str | os.PathLike[str], validation: int = 0) -> Dataset:
    """MNIST from its four published files, each plain or packed as .gz, in `directory`.

    With `validation`, this many images from the end of the training set replace the test set,
    whose files are then not opened.
    """
    names = {
        field: name
        for field, name in MNIST_FILES.items()
        if field.startswith("train") or not validation
    }
    paths = {field: find(pathlib.Path(directory), name) for field, name in names.items()}
    parts = {
        field: read_idx(path, dimensions=3 if field.endswith("inputs") else 1)
        for field, path in paths.items()
    }
    for part in ("train",) if validation else ("train", "test"):
        _check_pair(paths, parts, f"{part}_inputs", f"{part}_labels")
    if validation:
        return split_end(parts["train_inputs"], parts["train_labels"], validation)
    return Dataset(**parts)


def read_idx(path: str | os.PathLike[str], *, dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, plain or packed as .gz.

    Two zero bytes, the code of the data type, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values. The size that the header claims is checked before
    memory is taken for it, and no more than one byte beyond it is read.
    """
    path = pathlib.Path(path)
    with opened(path) as stream:
        shape = _read_shape(stream, path, dimensions)
        _check_claim(path, shape)
        values = _read_values(stream, path, math.prod(shape))
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_shape(stream: BinaryIO, path: pathlib.Path, dimensions: int) -> tuple[int, ...]:
    expected = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    magic = stream.read(4)
    if magic != expected:
        raise InputError(
            f"{path} starts with bytes {magic.hex(' ') or '(none)'}; an IDX file of unsigned bytes "
            f"with {dimensions} dimension(s) starts with {expected.hex(' ')}: is it another file?"
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise InputError(f"{path} ends inside its header; fetch the file again")
    return tuple(np.frombuffer(sizes, ">u4").tolist())


def _check_claim(path: pathlib.Path, shape: tuple[int, ...]) -> None:
    """Refuses a header that claims more bytes than any set has, or than the file can hold."""
    claim, stored = math.prod(shape), path.stat().st_size
    start = f"the header of {path} claims an array of shape {shape}, {claim:,} bytes"
    if claim > LARGEST:
        raise InputError(f"{start}; at most {LARGEST:,} are read: is it another file?")
    most = stored * DEFLATE_LIMIT if path.suffix == ".gz" else stored
    if 4 + 4 * len(shape) + claim > most:
        raise InputError(
            f"{start}, but the file of {stored:,} bytes cannot hold it: it is truncated or corrupt"
        )


def _read_values(stream: BinaryIO, path: pathlib.Path, count: int) -> bytearray:
    values = read_at_most(stream, count + 1)
    if len(values) < count:
        raise InputError(
            f"{path} holds {len(values):,} values but its header claims {count:,}: "
            "it is truncated; fetch it again"
        )
    if len(values) > count:
        raise InputError(f"{path} goes on after the {count:,} values that its header claims")
    return values


def _check_pair(paths: dict, parts: dict, images: str, labels: str) -> None:
    """Checks that a file of images and a file of labels are MNIST and belong together."""
    if parts[images].shape[1:] != (28, 28) or not len(parts[images]):
        raise InputError(f"{paths[images]} has shape {parts[images].shape}; MNIST's is (n, 28, 28)")
    if len(parts[images]) != len(parts[labels]):
        raise InputError(
            f"{paths[images]} holds {len(parts[images]):,} images but {paths[labels]} "
            f"{len(parts[labels]):,} labels; both must come from one set"
        )
    if parts[labels].max() > 9:
        raise InputError(f"{paths[labels]} has a label {parts[labels].max()}; allowed are 0 to 9")


def _standardise(dataset: Dataset) -> Dataset:
    """The test set does not enter the two numbers."""
    return scaled(dataset, dataset.train_inputs.mean(), dataset.train_inputs.std() or 1)


def scaled(dataset: Dataset, zero: float, unit: float) -> Dataset:
    """Every pixel x becomes (x − zero) / unit; all in 32 bits."""

    def scale(images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) - np.float32(zero)) / np.float32(unit)

    return Dataset(
        scale(dataset.train_inputs),
        dataset.train_labels.astype(np.int32),
        scale(dataset.test_inputs),
        dataset.test_labels.astype(np.int32),
    )
