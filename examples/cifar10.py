"""CIFAR-10 from the official binary or python archive, packed or unpacked, and its whitening.

Nothing is unpacked to disk: members are looked up by name and read into memory, so that no path in
an archive matters. A pickle may hold arrays of bytes, lists, numbers and text, nothing else.
"""

from __future__ import annotations

import gzip
import io
import math
import pathlib
import pickle
import tarfile
import zlib
from typing import Any, BinaryIO

import numpy as np

from datasets import Dataset, split_end
from errors import InputError

SHAPE = (3, 32, 32)  # channels first, as stored
RECORD = 1 + math.prod(SHAPE)  # bytes of a label and an image in the binary version
BATCH = 10_000  # images per file, at most
LARGEST = 2 * BATCH * RECORD  # bytes that a file may have
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
TEST = ["test_batch"]
REGULARISER = 1e-5  # added to every variance by the whitening: text


def load_cifar10(directory: str, validation: int = 0) -> Dataset:
    """Images of bytes, (examples, 32, 32, 3), and labels, in the official order.

    With `validation` the test set is not read, see `datasets.split_end`.
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
        for folder in (directory, directory / inside):
            if (folder / files[0]).is_file():
                return [parse(*_from_folder(folder / file)) for file in files]
        for packed in (directory / f"cifar-10-{kind}.tar.gz", directory / f"cifar-10-{kind}.tar"):
            if packed.is_file():
                members = [f"{inside}/{file}" for file in files]
                contents = _from_archive(packed, members)
                return [parse(f"{packed}: {member}", contents[member]) for member in members]
    raise InputError(
        f"no cifar-10-binary.tar.gz or cifar-10-python.tar.gz, packed or unpacked, in {directory}"
    )


def _from_folder(path: pathlib.Path) -> tuple[str, bytes]:
    try:
        _check_size(str(path), path.stat().st_size)
        return str(path), path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


class _Modest:
    """A stream that takes no memory for a header which claims more than a batch has."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell, self._read = stream.seek, stream.tell, stream.read

    def read(self, size: int) -> bytes:
        if size > LARGEST:
            raise tarfile.ReadError(f"it claims {size:,} bytes in one piece")
        return self._read(size)


def _from_archive(path: pathlib.Path, members: list[str]) -> dict[str, bytes]:
    """The contents of the members; all of the archive is read, and its checksum tested."""
    contents: dict[str, bytes] = {}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            with tarfile.open(fileobj=_Modest(stream), mode="r:") as archive:
                for entry in archive:
                    if entry.name in members and entry.isreg():
                        _check_size(f"{path}: {entry.name}", entry.size)
                        contents[entry.name] = archive.extractfile(entry).read()
            while stream.read(LARGEST):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; fetch the file again") from error
    for member in members:
        if member not in contents:
            raise InputError(f"{path} holds no file {member}: is it another archive?")
    return contents


def _check_size(shown: str, size: int) -> None:
    if size > LARGEST:
        raise InputError(f"{shown} has {size:,} bytes, a batch of CIFAR-10 at most {LARGEST:,}")


def parse_binary(shown: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label byte and 3072 pixels."""
    if not content or len(content) % RECORD or len(content) > BATCH * RECORD:
        raise InputError(
            f"{shown} has {len(content):,} bytes, which is not 1 to {BATCH:,} records of {RECORD}: "
            "it is truncated or another file"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return _check(shown, records[:, 1:], records[:, 0])


def parse_python(shown: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dictionary with `data` and `labels`."""
    try:
        batch = ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images, labels = (_entry(batch, name) for name in ("data", "labels"))
    except InputError as error:
        raise InputError(f"{shown} {error}") from error
    except Exception as error:  # whatever a broken pickle may cause
        raise InputError(
            f"{shown} is no batch of CIFAR-10 ({type(error).__name__}): truncated or another file"
        ) from error
    if not isinstance(images, np.ndarray) or images.ndim != 2 or not isinstance(labels, list):
        raise InputError(f"{shown} has no array `data` and list `labels`: is it another file?")
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


class _Ndarray:
    """Stands for the class of arrays, which must not be called."""


def _empty_array(subtype: Any, shape: Any, code: Any) -> np.ndarray:
    """Takes no memory for the shape that a pickle claims; the state that follows brings its own."""
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _byte_dtype(code: Any, *rest: Any) -> np.dtype:
    if code not in ("u1", b"u1"):
        raise InputError(f"holds an array of type {code!r}; only bytes are read")
    return np.dtype("u1", False, True)


def _latin(text: str, encoding: Any) -> bytes:
    """How Python 3 writes bytes in the older protocols."""
    return text.encode("latin1")


class ArraysOnly(pickle._Unpickler):
    """Reads plain data and arrays of bytes. In Python, since the one in C takes memory on claim."""

    dispatch = dict(pickle._Unpickler.dispatch)  # noqa: RUF012
    del dispatch[pickle.BYTEARRAY8[0]]  # which takes it in Python too

    ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): _Ndarray,
        ("numpy", "dtype"): _byte_dtype,
        ("_codecs", "encode"): _latin,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Called for every global name in the pickle."""
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise InputError(
                f"asks for {module}.{name}, which CIFAR-10 does not need: refused"
            ) from None


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
    scales = 1 / np.sqrt(np.maximum(variances, 0) + REGULARISER)
    transform = ((axes * scales) @ axes.T).astype(np.float32)
    shape = dataset.train_inputs.shape[1:]
    return dataset._replace(
        train_inputs=((train - mean) @ transform).reshape(-1, *shape),
        test_inputs=((test - mean) @ transform).reshape(-1, *shape),
    )
