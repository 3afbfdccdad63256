"""Files that were damaged or made to harm: read right, or refused in one line, within bounds."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pathlib
import pickle
import struct
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments.data import cifar10, images, text
from experiments.data.cifar10 import RECORD, TEST, TRAIN
from experiments.harness import logs
from experiments.io.errors import InputError

MEBIBYTE = 1 << 20
PIXELS = np.random.default_rng(0).integers(0, 256, (2, RECORD - 1), np.uint8)
LINES = "the cat sat on the mat \n and the dog ran after the cat \n" * 40


@contextlib.contextmanager
def within(memory: int, seconds: float = 10) -> Iterator[None]:
    """Not more bytes at any time, nor more time of the processor."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        assert time.process_time() - began < seconds
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()


class Unknown(Exception):
    """The plain reader cannot tell."""


class Kind(NamedTuple):
    """A sound file, how the programs read it, and how a plain reader does, without any check."""

    name: str
    content: bytes
    read: Callable[[pathlib.Path], Any]
    plain: Callable[[bytes], Any]


def log() -> bytes:
    configuration = {
        **{"workload": "digits", "optimizer": "sgd", "part": "test", "seeds": 2},
        **{"gradient_evaluations": 60, "learning_rate": 0.1, "drop_at": []},
    }
    lines: list[dict[str, Any]] = [{"configuration": configuration, "versions": {"jax": "0.10"}}]
    for count in (0, 20, 40, 60):
        values = {"train_loss": [2.3, None], "test_loss": [2.4, 2.5], "test_error": [90.0, 12.5]}
        values["validation_loss"] = [2.6, 2.7]
        rate = {"evaluations_per_second": 11.5 if count else None, "gradient_evaluations": count}
        lines.append({**rate, **values, "seconds": 0.25 * count})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_log(path: pathlib.Path) -> Any:
    _, measurements, seconds = logs.read(path.parent, path.name)
    rows = [np.concatenate([np.ravel(v) for v in m if v is not None]) for m in measurements]
    return rows, seconds


def plain_log(content: bytes) -> Any:
    head, *lines = [json.loads(line) for line in content.decode().split("\n")[:-1]]
    names = ("gradient_evaluations", "train_loss", "test_loss", "test_error")
    part = head["configuration"]["part"]
    keys = [name.replace("test", part) for name in (*names, "evaluations_per_second")]
    beside = [] if part == "validation" else ["validation_loss"]
    rows = []
    for line in lines:
        there = [name for name in (*keys, *beside) if name in line or name in keys]
        rows.append(np.concatenate([np.ravel(np.array(line[name], float)) for name in there]))
    return rows, lines[-1]["seconds"]


def idx() -> bytes:
    return struct.pack(">BBBB3I", 0, 0, 8, 3, 5, 4, 3) + bytes(range(60))


def plain_idx(content: bytes) -> Any:
    return np.frombuffer(content[16:], np.uint8).reshape(struct.unpack(">3I", content[4:16]))


def binary_batch() -> bytes:
    return np.concatenate([np.array([[3], [8]], np.uint8), PIXELS], 1).tobytes()


def plain_binary(content: bytes) -> Any:
    rows = np.array([list(content[i : i + RECORD]) for i in range(0, len(content), RECORD)])
    return rows[:, 1:], rows[:, 0]


def python_batch(protocol: int) -> bytes:
    batch = {b"data": PIXELS, b"labels": [3, 8], b"filenames": [b"a.png", b"b.png"]}
    return pickle.dumps(batch, protocol)


def plain_python(content: bytes) -> Any:
    """Right as long as only pixels differ."""
    sound = python_batch(4)
    start, stop = sound.index(PIXELS.tobytes()), sound.index(PIXELS.tobytes()) + PIXELS.size
    if content[:start] + content[stop:] != sound[:start] + sound[stop:]:
        raise Unknown
    return np.frombuffer(content[start:stop], np.uint8).reshape(2, -1), np.array([3, 8])


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as packed:
        for name in TRAIN + TEST:
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = 2 * RECORD
            packed.addfile(entry, io.BytesIO(binary_batch()))
    return stream.getvalue()


def plain_archive(content: bytes) -> Any:
    """Members lie where they were."""
    if len(content) != len(archive()):
        raise Unknown
    starts = [at for at in range(0, len(content), 512) if content[at : at + 5] == b"cifar"]
    batches = [plain_binary(content[at + 512 :][: 2 * RECORD]) for at in starts]
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def read_archive(path: pathlib.Path) -> Any:
    data = cifar10.load_cifar10(str(path.parent))
    images, labels = (np.concatenate(parts) for parts in (data[:4:2], data[1:4:2]))
    return images, labels


def read_characters(path: pathlib.Path) -> Any:
    cut = text.load_characters(None, str(path))
    return np.concatenate([cut.train, cut.validation, cut.test]), cut.symbols


def plain_characters(content: bytes) -> Any:
    known = sorted(set(content))
    return [known.index(byte) for byte in content], len(known)


def read_words(path: pathlib.Path) -> Any:
    for name in ("ptb.valid.txt", "ptb.test.txt"):
        path.with_name(name).write_bytes(b"<eos>\n")
    cut = text.load_ptb(str(path.parent))
    return cut.train, cut.symbols


def plain_words(content: bytes) -> Any:
    lines = content.decode().removesuffix("\n").split("\n")
    words = [word for line in lines for word in [*line.split(), "<eos>"]]
    known = ["<eos>", *sorted({*words} - {"<eos>"})]
    return [known.index(word) for word in words], len(known)


def packed(kind: Kind) -> Kind:
    """The same file as .gz; one that gzip itself does not read has to be refused."""
    content = gzip.compress(kind.content)
    return Kind(f"{kind.name}.gz", content, kind.read, lambda c: kind.plain(gzip.decompress(c)))


PLAIN = [
    Kind("metrics.jsonl", log(), read_log, plain_log),
    Kind("images", idx(), lambda path: images.read_idx(path, dimensions=3), plain_idx),
    Kind(
        "a.bin", binary_batch(), lambda p: cifar10.parse_binary("x", p.read_bytes()), plain_binary
    ),
    Kind(
        "a.py", python_batch(4), lambda p: cifar10.parse_python("x", p.read_bytes()), plain_python
    ),
    Kind(
        "b.py", python_batch(0), lambda p: cifar10.parse_python("x", p.read_bytes()), plain_python
    ),
    Kind("cifar-10-binary.tar", archive(), read_archive, plain_archive),
    Kind("a.txt", LINES.encode(), read_characters, plain_characters),
    Kind("ptb.train.txt", LINES.encode(), read_words, plain_words),
]
KINDS = PLAIN + [packed(kind) for kind in PLAIN if kind.name in ("images", "a.txt")]
KINDS.append(packed(PLAIN[5]))
TELLING = [b"\0", b"\xff", b"\n", b"9", b"-", b"e", b'"', b"[", b"{", b".", b"\x7f\xff\xff\xff"]


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """One to three of: other bytes, bytes lost, bytes put in, a part twice, an end cut off.

    Half of all places are where the file is not just pixels.
    """
    for _ in range(random.integers(1, 4)):
        pixels = content.find(PIXELS[0].tobytes()) if random.random() < 0.5 else -1
        at = int(random.integers(0, pixels if pixels > 0 else len(content) + 1))
        size, piece = int(random.integers(1, 9)), random.bytes(int(random.integers(1, 5)))
        if random.random() < 0.5:
            piece = TELLING[random.integers(len(TELLING))]
        content = [
            content[:at] + piece + content[at + len(piece) :],
            content[:at] + piece + content[at + len(piece) :],
            content[:at] + content[at + size :],
            content[:at] + piece + content[at:],
            content[: at + 40 * size] + content[at:],
            content[:at] or content,
        ][random.integers(6)]
    return content


def same(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one, float), np.asarray(other, float))


def survive(kind: Kind, count: int, folder: pathlib.Path) -> int:
    """How many damaged files are read; each one right, the others refused in one line."""
    random = np.random.default_rng(zlib.crc32(kind.name.encode()))
    read = 0
    for _ in range(count):
        path = folder / kind.name
        path.write_bytes(damage(kind.content, random))
        try:
            found = kind.read(path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 1010  # noqa: PT017
            continue
        read += 1
        with contextlib.suppress(Unknown):
            same(found, kind.plain(path.read_bytes()))
    return read


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_sound_file_is_read_right(kind, tmp_path):
    (tmp_path / kind.name).write_bytes(kind.content)
    found = kind.read(tmp_path / kind.name)
    same(
        found, PLAIN[3].plain(PLAIN[3].content) if kind.name == "b.py" else kind.plain(kind.content)
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_files_are_read_right_or_refused(kind, tmp_path):
    with within(8 * MEBIBYTE, seconds=60):
        survive(kind, 100, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_many_damaged_files_are_read_right_or_refused(kind, tmp_path):
    assert survive(kind, 2_000, tmp_path) > 0


def test_a_message_is_one_short_line_whatever_it_quotes():
    assert str(InputError("no a\nb\u2028c\r\n  d")) == "no a b c d"
    assert len(str(InputError("x" * 10**6))) < 1010


ZEROS = gzip.compress(bytes(16 * MEBIBYTE), mtime=0)  # 16 KB; 200 of them unpack to 3 GB


def test_a_gzip_that_claims_gigabytes_is_refused_unread(tmp_path):
    """With a file that could hold them: 13 MB may unpack to 13 GB."""
    head = gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 4_000_000, 28, 28))
    (tmp_path / "a.gz").write_bytes(head + 200 * ZEROS)
    with within(MEBIBYTE), pytest.raises(InputError, match="at most 67,108,864 are read"):
        images.read_idx(tmp_path / "a.gz", dimensions=3)


def test_a_gzip_that_holds_gigabytes_is_read_to_the_claim_and_no_further(tmp_path):
    head = gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 60_000, 28, 28))
    (tmp_path / "a.gz").write_bytes(head + 200 * ZEROS)
    with within(56 * MEBIBYTE), pytest.raises(InputError, match="goes on after the 47,040,000"):
        images.read_idx(tmp_path / "a.gz", dimensions=3)


def test_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(200 * ZEROS)
    with within(160 * MEBIBYTE), pytest.raises(InputError, match="has more bytes; allowed are 1"):
        text.load_characters(str(tmp_path), "a.txt")
    (tmp_path / "ptb.train.txt.gz").write_bytes(200 * ZEROS)
    with within(10 * MEBIBYTE), pytest.raises(InputError, match="allowed are 1 to 8,388,608"):
        text.load_ptb(str(tmp_path))


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(archive()) + 200 * ZEROS)
    with within(MEBIBYTE), pytest.raises(InputError, match="unpacks to more than 268,435,456"):
        cifar10.load_cifar10(str(tmp_path))


def member(name: str = "x", **fields: Any) -> bytes:
    entry = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry.tobuf(tarfile.GNU_FORMAT if "size" in fields else tarfile.PAX_FORMAT)


HARMFUL_ARCHIVES = {
    "20,000 members": (20_000 * member(), "headers claim more than"),
    "20,000 extended headers": (
        20_000 * member(pax_headers={"comment": "x"}),
        r"RecursionError|headers claim more than|maximum recursion",
    ),
    "a sparse size in letters": (member(pax_headers={"GNU.sparse.size": "x"}), "cannot read"),
    "a sparse size and no map": (
        member(pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
        + b"999999999\n" + MEBIBYTE * b"0\n",
        "headers claim more than",
    ),
    "a size below nothing": (member(size=-1024), "points to byte"),
    "a long name of a gigabyte": (
        member(type=tarfile.GNUTYPE_LONGNAME, size=10**9),
        "headers claim more than",
    ),
    "a member twice": (2 * member("cifar-10-batches-bin/test_batch.bin"), "is there twice"),
    "a member cut off": (member(f"cifar-10-batches-bin/{TRAIN[0]}.bin", size=9), "is cut off"),
    "a size of a terabyte": (member(size=10**12), "points to byte 1,000,000,"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL_ARCHIVES)
def test_harmful_archives_are_refused(name, tmp_path):
    content, message = HARMFUL_ARCHIVES[name]
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(content, 1))
    with within(4 * MEBIBYTE), pytest.raises(InputError, match=message) as caught:
        cifar10.load_cifar10(str(tmp_path))
    assert "\n" not in str(caught.value)


ENCODE = b"c_codecs\nencode\n"
HARMFUL_PICKLES = {
    "lists without end": (b"\x80\x02" + MEBIBYTE * b"]", "more than 200,000 parts"),
    "one text written out again and again": (
        ENCODE + b"q\0X" + struct.pack("<I", 10**5) + 10**5 * b"x" + b"q\1"
        + 10_000 * b"h\0h\1U\6latin1\x86R",
        "writes out more bytes than it has",
    ),
    "a state for a function": (ENCODE + b"}U\1aK\1sb.", "is no batch"),
    "a state for a class": (b"cnumpy\nndarray\n(K\1K\1tb.", "is no batch"),
    "an array that claims a terabyte": (
        b"\x80\x02cnumpy\nndarray\n\x8a\6" + (10**12).to_bytes(6, "little") + b"\x85R.",
        "is no batch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL_PICKLES)
def test_harmful_pickles_are_refused(name):
    content, message = HARMFUL_PICKLES[name]
    with within(40 * MEBIBYTE), pytest.raises(InputError, match=message):
        cifar10.parse_python("x", content)


def test_a_log_without_line_ends_is_not_read_to_its_end(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(20 * MEBIBYTE * b"[")
    with within(10 * MEBIBYTE), pytest.raises(InputError, match=r"no log of train\.py"):
        logs.read(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 10**5,
        b'{"configuration": 3}',
        b"\xff",
        b"NaN",
        b"1" * 10**5,
        b'{"configuration": {}}',
    ],
)
def test_a_log_that_begins_otherwise_is_refused(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n")
    with pytest.raises(InputError, match=r"no log of train\.py, or damaged \(line 1: "):
        logs.read(tmp_path)


@pytest.mark.parametrize("change", ["less", "more", "twice", "string", "seeds", "huge", "lost"])
def test_a_log_with_a_wrong_line_is_refused(change, tmp_path):
    lines = log().decode().splitlines(keepends=True)
    lines[2] = {
        "less": lines[2].replace(" 20,", " -20,"),
        "more": lines[2].replace(" 20,", " 45,"),
        "twice": 2 * lines[2],
        "string": lines[2].replace("2.3", '"2.3"'),
        "seeds": lines[2].replace("2.4, ", ""),
        "huge": lines[2].replace("2.3", "9" * 400),
        "lost": lines[2].replace('"seconds"', '"second"'),
    }[change]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    with pytest.raises(InputError, match=r"damaged \(line [34]: "):
        logs.read(tmp_path)


def test_a_finished_log_that_lost_its_end_is_refused(tmp_path):
    """One whose last line is cut is no mistake while a training may go on, but it is at the end."""
    (tmp_path / "metrics.jsonl").write_bytes(log()[:-1] + b"\x1c")
    with pytest.raises(InputError, match="ends at 40 of 60 gradient evaluations"):
        logs.read(tmp_path)
