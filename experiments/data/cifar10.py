"""CIFAR-10 from the official binary or python archive, packed or unpacked, and its whitening.

Nothing is unpacked to disk: members are looked up by name and read into memory, so that no path in
an archive matters. Whatever a file claims, no more is read than the sizes below.
"""

from __future__ import annotations

import math
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from experiments.io import pickles
from experiments.io.dataset import Dataset, split_end
from experiments.io.errors import InputError
from experiments.io.files import first, opened, read_at_most

SHAPE = (3, 32, 32)  # channels first, as stored
RECORD = 1 + math.prod(SHAPE)  # bytes of a label and an image in the binary version
BATCH = 10_000  # images per file, at most
LARGEST = 2 * BATCH * RECORD  # bytes that a file may have
ARCHIVE = 1 << 28  # bytes that an unpacked archive may have; the official ones have 190 million
HEADERS = 1 << 18  # bytes of all headers in an archive, of which the official ones have nine
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
TEST = ["test_batch"]
REGULARISER = 1e-5  # added to every standard deviation by the whitening: code


def load_cifar10(directory: str, validation: int = 0) -> Dataset:
    """Images of bytes, (examples, 32, 32, 3), and labels, in the official order.

    With `validation` the test set is not read, see `split_end`.
    """
    batches = _read(pathlib.Path(directory), TRAIN if validation else TRAIN + TEST)
    train = _join(batches[: len(TRAIN)])
    if validation:
        return split_end(*train, validation)
    return Dataset(*train, *_join(batches[len(TRAIN) :]))


def _join(batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    images = images.reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _read(directory: pathlib.Path, names: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the batches, of the version that is there."""
    for kind, short, ending, parse in (
        ("binary", "bin", ".bin", parse_binary),
        ("python", "py", "", parse_python),
    ):
        inside, files = f"cifar-10-batches-{short}", [f"{name}{ending}" for name in names]
        if there := first(directory, files[0], f"{inside}/{files[0]}"):
            return [parse(*_from_folder(there.with_name(file))) for file in files]
        if packed := first(directory, f"cifar-10-{kind}.tar.gz", f"cifar-10-{kind}.tar"):
            members = [f"{inside}/{file}" for file in files]
            contents = _from_archive(packed, members)
            return [parse(f"{packed}: {member}", contents[member]) for member in members]
    raise InputError(
        f"no cifar-10-binary.tar.gz or cifar-10-python.tar.gz, packed or unpacked, in {directory}"
    )


def _from_folder(path: pathlib.Path) -> tuple[str, bytearray]:
    with opened(path) as stream:
        content = read_at_most(stream, LARGEST + 1)
    _check_size(str(path), len(content))
    return str(path), content


class _Headers:
    """What tarfile may see of an archive: HEADERS bytes, none of them twice.

    Otherwise it takes as much memory as a header claims, keeps every header, and may go in circles.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.tell, self._stream, self._left = stream.tell, stream, HEADERS

    def seek(self, position: int) -> int:
        if not self.tell() <= position <= ARCHIVE:
            raise tarfile.ReadError(f"a header points to byte {position:,}")
        return self._stream.seek(position)

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError(f"its headers claim more than {HEADERS:,} bytes")
        return self._stream.read(size)


def _from_archive(path: pathlib.Path, members: list[str]) -> dict[str, bytearray]:
    """The contents of the members; all of the archive is read, and its checksum tested."""
    contents: dict[str, bytearray] = {}
    with opened(path) as stream:
        for entry in _entries(path, stream):
            shown = f"{path}: {entry.name}"
            if entry.name in contents:
                raise InputError(f"{shown} is there twice")
            if entry.name in members and entry.isreg() and not entry.issparse():
                _check_size(shown, entry.size)
                contents[entry.name] = read_at_most(stream, entry.size)
                if len(contents[entry.name]) < entry.size:
                    raise InputError(f"{shown} is cut off; fetch the file again")
        stream.seek(ARCHIVE)
        if stream.read(1):
            raise InputError(f"{path} unpacks to more than {ARCHIVE:,} bytes: is it another file?")
    for member in members:
        if member not in contents:
            raise InputError(f"{path} holds no file {member}: is it another archive?")
    return contents


def _entries(path: pathlib.Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members; the stream is at the first byte of each."""
    try:
        with tarfile.open(fileobj=_Headers(stream), mode="r:") as archive:
            yield from iter(archive.next, None)
    except Exception as error:  # whatever a broken header may cause
        raise InputError(f"cannot read {path}: {error}; fetch the file again") from error


def _check_size(shown: str, size: int) -> None:
    if size > LARGEST:
        raise InputError(f"{shown} has {size:,} bytes, a batch of CIFAR-10 at most {LARGEST:,}")


def parse_binary(shown: str, content: bytes | bytearray) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label byte and 3072 pixels."""
    if not content or len(content) % RECORD or len(content) > BATCH * RECORD:
        raise InputError(
            f"{shown} has {len(content):,} bytes, which is not 1 to {BATCH:,} records of {RECORD}: "
            "it is truncated or another file"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return _check(shown, records[:, 1:], records[:, 0])


def parse_python(shown: str, content: bytes | bytearray) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dictionary with `data` and `labels`."""
    try:
        batch = pickles.read(content)
        images, labels = _entry(batch, "data").values, _entry(batch, "labels")
    except InputError as error:
        raise InputError(f"{shown} {error}") from error
    except Exception as error:  # whatever a broken pickle may cause
        raise InputError(
            f"{shown} is no batch of CIFAR-10 ({type(error).__name__}): truncated or another file"
        ) from error
    if not isinstance(labels, list):
        raise InputError(f"{shown} has no list `labels`: is it another file?")
    if not all(type(label) is int and 0 <= label <= 255 for label in labels):
        raise InputError(f"{shown} has labels that are not numbers from 0 to 9")
    return _check(shown, images, np.array(labels, np.uint8))


def _entry(batch: Any, name: str) -> Any:
    return batch[name.encode()] if name.encode() in batch else batch[name]


def _check(shown: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.shape[1:] != (RECORD - 1,) or not 0 < len(images) <= BATCH:
        raise InputError(f"{shown} has images of shape {images.shape}, not (n, {RECORD - 1})")
    if len(images) != len(labels):
        raise InputError(f"{shown} has {len(images):,} images but {len(labels):,} labels")
    if labels.max() > 9:
        raise InputError(f"{shown} has a label {labels.max()}; allowed are 0 to 9")
    return images, labels


def normalise_contrast(images: np.ndarray) -> np.ndarray:
    """Each image with mean 0 and standard deviation 1 over its pixels and channels."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(flat.std(1, keepdims=True), 1e-8)


def whiten(dataset: Dataset) -> Dataset:
    """Global contrast normalisation, then ZCA with the mean and covariance of the training set."""
    train = normalise_contrast(dataset.train_inputs)
    test = normalise_contrast(dataset.test_inputs)
    mean = train.mean(0)
    variances, axes = np.linalg.eigh(np.cov(train - mean, rowvar=False, bias=True))
    scales = 1 / (np.sqrt(np.maximum(variances, 0)) + REGULARISER)
    transform = ((axes * scales) @ axes.T).astype(np.float32)
    shape = dataset.train_inputs.shape[1:]
    return dataset._replace(
        train_inputs=((train - mean) @ transform).reshape(-1, *shape),
        test_inputs=((test - mean) @ transform).reshape(-1, *shape),
    )
