"""The IDX reader on small files in MNIST's format, sound and broken."""

import gzip
import pathlib
import struct
import tracemalloc

import numpy as np
import pytest

from experiments.data.images import MNIST_FILES, load_digits, load_mnist, read_idx
from experiments.io.dataset import hold_out
from experiments.io.errors import InputError

IMAGES = np.arange(6 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(6, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5, 9], np.uint8)


def idx_bytes(
    array: np.ndarray, *, code: int = 0x08, shape: tuple[int, ...] | None = None
) -> bytes:
    """The file that holds `array`; `code` and `shape` may lie."""
    shape = array.shape if shape is None else shape
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape) + array.tobytes()


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(folder: pathlib.Path, ending: str = "", **replaced: np.ndarray) -> None:
    for field, name in MNIST_FILES.items():
        array = replaced.get(field, IMAGES if field.endswith("inputs") else LABELS)
        write(folder / f"{name}{ending}", idx_bytes(array))


@pytest.fixture(params=["images", "images.gz"])
def path(request, tmp_path):
    """Where to write a file: once plain, once packed."""
    return tmp_path / request.param


def test_reads_every_value_in_order(path):
    np.testing.assert_array_equal(read_idx(write(path, idx_bytes(IMAGES)), dimensions=3), IMAGES)


def test_sizes_are_big_endian(path):
    array = np.zeros((258, 1, 1), np.uint8)  # 258 has two different bytes
    assert read_idx(write(path, idx_bytes(array)), dimensions=3).shape == (258, 1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes(IMAGES)[:-1], "truncated"),
        (idx_bytes(IMAGES) + b"\0", "goes on after"),
        (idx_bytes(IMAGES)[:10], "ends inside its header"),
        (b"", r"starts with bytes \(none\)"),
        (b"<html>not found", "an IDX file of unsigned bytes with 3"),
        (idx_bytes(IMAGES, code=0x0D), "starts with bytes 00 00 0d 03"),
        (idx_bytes(LABELS), "starts with bytes 00 00 08 01"),
    ],
)
def test_broken_content_is_refused(path, content, message):
    with pytest.raises(InputError, match=message):
        read_idx(write(path, content), dimensions=3)


@pytest.mark.parametrize("shape", [(2**32 - 1, 28, 28), (2**32 - 1, 2**32 - 1, 2**32 - 1)])
def test_huge_claim_is_refused_before_memory_is_taken(path, shape):
    write(path, idx_bytes(IMAGES, shape=shape))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="at most 67,108,864 are read"):
            read_idx(path, dimensions=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_claim_above_what_the_file_holds_is_refused(tmp_path):
    path = write(tmp_path / "images", idx_bytes(IMAGES, shape=(7, 28, 28)))
    with pytest.raises(InputError, match="the file of 4,720 bytes cannot hold it"):
        read_idx(path, dimensions=3)


def test_claim_within_what_gzip_could_hold_takes_no_more_than_the_file(tmp_path):
    path = tmp_path / "images.gz"
    content = idx_bytes(
        np.random.default_rng(0).integers(0, 256, 10**5, np.uint8), shape=(5 * 10**7,)
    )
    write(path, content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="100,000 values but its header claims 50,000,000"):
            read_idx(path, dimensions=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10**7


def test_cut_gzip_stream_is_refused(tmp_path):
    path = write(tmp_path / "images.gz", idx_bytes(IMAGES))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="fetch the file again"):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize("position", [10, -8], ids=["first block", "checksum"])
def test_damaged_gzip_stream_is_refused(tmp_path, position):
    path = write(tmp_path / "images.gz", idx_bytes(IMAGES))
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read"):
        read_idx(path, dimensions=3)


def test_plain_file_named_gz_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(idx_bytes(IMAGES))
    with pytest.raises(InputError, match="cannot read"):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_puts_each_file_in_its_place(tmp_path, ending):
    write_mnist(tmp_path, ending, test_inputs=IMAGES[:2], test_labels=LABELS[:2])
    dataset = load_mnist(tmp_path)
    assert dataset.train_inputs.shape == (6, 28, 28)
    assert dataset.test_inputs.shape == (2, 28, 28)
    assert dataset.train_inputs.dtype == np.float32
    np.testing.assert_array_equal(dataset.train_labels, LABELS)
    np.testing.assert_array_equal(dataset.test_labels, LABELS[:2])
    assert dataset.train_inputs.mean() == pytest.approx(0, abs=1e-5)
    assert dataset.train_inputs.std() == pytest.approx(1, abs=1e-5)
    # The test images are shifted and scaled by the training set's two numbers.
    np.testing.assert_array_equal(dataset.test_inputs, dataset.train_inputs[:2])


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_labels": LABELS[:5]}, "6 images but .* 5 labels"),
        ({"test_labels": LABELS[:5]}, "6 images but .* 5 labels"),
        ({"train_labels": LABELS + np.uint8(1)}, "a label 10"),
        ({"train_inputs": IMAGES[:, :8, :8]}, r"shape \(6, 8, 8\)"),
        ({"train_inputs": IMAGES[:0], "train_labels": LABELS[:0]}, r"shape \(0, 28, 28\)"),
    ],
)
def test_files_that_are_not_mnist_are_refused(tmp_path, replaced, message):
    write_mnist(tmp_path, **replaced)
    with pytest.raises(InputError, match=message):
        load_mnist(tmp_path)


@pytest.mark.parametrize("name", MNIST_FILES.values())
def test_missing_file_is_named(tmp_path, name):
    write_mnist(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"no {name} or {name}.gz"):
        load_mnist(tmp_path)


def test_digits_are_split_without_overlap():
    dataset = load_digits()
    assert dataset.train_inputs.shape == (1280, 8, 8)
    assert dataset.test_inputs.shape == (517, 8, 8)
    train, test = ({image.tobytes() for image in part} for part in dataset[:4:2])
    assert not train & test
    assert set(dataset.test_labels) == set(range(10))


def test_every_training_image_is_held_out_once():
    dataset = load_digits()
    folds = [hold_out(dataset, fold, folds=3) for fold in range(3)]
    for part, whole in (
        ("test_inputs", dataset.train_inputs),
        ("test_labels", dataset.train_labels),
    ):
        np.testing.assert_array_equal(
            np.concatenate([getattr(fold, part) for fold in folds]), whole
        )
    for fold in folds:
        assert len(fold.train_labels) + len(fold.test_labels) == 1280
        train, held = ({image.tobytes() for image in part} for part in fold[:4:2])
        assert not train & held
