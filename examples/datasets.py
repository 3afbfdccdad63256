"""The data of the examples: scikit-learn's digits, and MNIST from the published IDX files."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import zlib
from typing import BinaryIO, NamedTuple

import numpy as np

from errors import InputError

UNSIGNED_BYTE = 0x08  # the IDX code of the one data type that MNIST uses
DEFLATE_LIMIT = 1032  # a gzip file unpacks to at most 1032 times its size
PIECE = 1 << 20  # bytes read at a time
DIGITS_TRAIN = 1280  # of 1797 images; the other 517 are the test set

MNIST_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


class Dataset(NamedTuple):
    """A classification task. Images are grey, with mean 0 and variance 1 over the training set."""

    train_images: np.ndarray  # float32, shape (examples, height, width)
    train_labels: np.ndarray  # int32 from 0 to 9, shape (examples,)
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Dataset:
    """The 8×8 digits that come with scikit-learn: 1280 to train on and 517 to test on.

    The split keeps the order of the file, as scikit-learn's own example does.
    """
    import sklearn.datasets  # here, because it is slow to import and MNIST does without it

    bunch = sklearn.datasets.load_digits()
    images, labels, split = bunch.images, bunch.target, DIGITS_TRAIN
    return _standardise(Dataset(images[:split], labels[:split], images[split:], labels[split:]))


def load_mnist(directory: str | os.PathLike[str]) -> Dataset:
    """MNIST from its four published files, each plain or packed as .gz, in `directory`."""
    paths = {field: _find(pathlib.Path(directory), name) for field, name in MNIST_FILES.items()}
    parts = {
        field: read_idx(path, dimensions=3 if field.endswith("images") else 1)
        for field, path in paths.items()
    }
    for part in ("train", "test"):
        _check_pair(paths, parts, f"{part}_images", f"{part}_labels")
    return _standardise(Dataset(**parts))


def hold_out(dataset: Dataset, fold: int, folds: int = 5) -> Dataset:
    """Puts one fold of the training set in the place of the test set, to tune on."""
    images, labels = dataset.train_images, dataset.train_labels
    held = np.arange(len(labels)) * folds // len(labels) == fold
    return Dataset(images[~held], labels[~held], images[held], labels[held])


def read_idx(path: str | os.PathLike[str], *, dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, plain or packed as .gz.

    Two zero bytes, the code of the data type, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values. The size that the header claims is checked against
    the file before memory is taken for it.
    """
    path = pathlib.Path(path)
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rb") as stream:
            shape = _read_shape(stream, path, dimensions)
            _check_claim(path, shape)
            values = _read_values(stream, path, math.prod(shape))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; fetch the file again") from error
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
    """Refuses a header that claims more bytes than the file can hold."""
    header, stored = 4 + 4 * len(shape), path.stat().st_size
    most = stored * DEFLATE_LIMIT if path.suffix == ".gz" else stored
    if header + math.prod(shape) > most:
        raise InputError(
            f"the header of {path} claims an array of shape {shape}, {math.prod(shape):,} bytes, "
            f"but the file of {stored:,} bytes cannot hold it: it is truncated or corrupt"
        )


def _read_values(stream: BinaryIO, path: pathlib.Path, count: int) -> bytearray:
    """Reads piece by piece, so that memory follows what the file holds, not what it claims."""
    values = bytearray()
    while len(values) < count and (piece := stream.read(min(count - len(values), PIECE))):
        values += piece
    if len(values) < count:
        raise InputError(
            f"{path} holds {len(values):,} values where its header claims {count:,}: "
            "it is truncated; fetch it again"
        )
    if stream.read(1):
        raise InputError(f"{path} goes on after the {count:,} values that its header claims")
    return values


def _find(directory: pathlib.Path, name: str) -> pathlib.Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(
        f"no {name} or {name}.gz in {directory}; "
        "--data-dir must name the folder that holds the four published MNIST files"
    )


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
    """Shifts and scales all pixels alike; the test set has no part in the two numbers."""
    mean, deviation = dataset.train_images.mean(), dataset.train_images.std()

    def scale(images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) - np.float32(mean)) / np.float32(deviation or 1)

    return Dataset(
        scale(dataset.train_images),
        dataset.train_labels.astype(np.int32),
        scale(dataset.test_images),
        dataset.test_labels.astype(np.int32),
    )
