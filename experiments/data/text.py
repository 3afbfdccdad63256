"""Text as windows of numbers: the Penn Treebank by words, any file by bytes."""

from __future__ import annotations

import itertools
import pathlib
from typing import NamedTuple

import numpy as np

from experiments.io.dataset import Dataset
from experiments.io.errors import InputError
from experiments.io.files import find, opened, read_at_most

ALL = 1 << 30  # of the text that is held out
LARGEST = 1 << 27  # bytes of a text, unpacked; 100 million characters are common
PTB_FILES = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
PTB_LARGEST = 1 << 23  # bytes; the training text has 5 million
PTB_WORDS = 10_000  # different ones in the published files
SHARES = (0.9, 0.95)  # ours: where training and validation end, as parts of a text of characters


class Text(NamedTuple):
    """A text to train on and one to judge by, as numbers below `symbols`."""

    train: np.ndarray
    test: np.ndarray
    symbols: int
    validation: np.ndarray | None = None  # if it is judged by beside the test text


def load_ptb(directory: str, validation: int = 0) -> Text:
    """The Penn Treebank as Mikolov cut it; word 0 ends a line.

    With `validation`, the first this many words of the validation file are judged by, and the test
    file is not opened.
    """
    folder = pathlib.Path(directory)
    train = _words(find(folder, PTB_FILES["train"]))
    numbers = {word: index for index, word in enumerate(sorted(set(train), key=_end_first))}
    if len(numbers) > PTB_WORDS:
        raise InputError(
            f"{PTB_FILES['train']} in {folder} has {len(numbers):,} different words, "
            f"more than {PTB_WORDS:,}: is it another file?"
        )

    def read(part: str) -> np.ndarray:
        path = find(folder, PTB_FILES[part])
        words = _words(path)
        if unknown := next((word for word in words if word not in numbers), None):
            raise InputError(f"{path} has a word {unknown!r} that the training text has not")
        return np.array([numbers[word] for word in words], np.int32)

    known, held_out = np.array([numbers[word] for word in train], np.int32), read("validation")
    if validation:
        return Text(known, _first(held_out, validation), len(numbers))
    return Text(known, read("test"), len(numbers), held_out)


def load_characters(
    directory: str | None,
    name: str,
    validation: int = 0,
    shares: tuple[float, float] = SHARES,
) -> Text:
    """Any file, byte by byte: 90 % to train on, 5 % to validate, 5 % to test, or other shares.

    `name` is looked for in `directory`, if there is one, or is a path.
    """
    path = find(pathlib.Path(directory or ""), name)
    content = np.frombuffer(read_text(path, LARGEST), np.uint8)
    known = np.zeros(256, bool)
    known[content] = True
    numbers = (np.cumsum(known, dtype=np.int32) - 1)[content]
    first, second = (int(share * len(numbers)) for share in shares)
    train, held_out, symbols = numbers[:first], numbers[first:second], int(known.sum())
    if validation:
        return Text(train, _first(held_out, validation), symbols)
    return Text(train, numbers[second:], symbols, held_out)


def _first(held_out: np.ndarray, validation: int) -> np.ndarray:
    if len(held_out) < validation < ALL:
        raise InputError(f"--validation {validation}: there are {len(held_out):,}")
    return held_out[:validation]


def windows(text: Text, length: int, context: int, test_length: int, test_context: int) -> Dataset:
    """Cuts all parts: each window predicts `length` symbols and sees `context` more before."""
    judged = [text.test] if text.validation is None else [text.test, text.validation]
    parts = [_cut(text.train, length, context, "training text")]
    parts += [_cut(part, test_length, test_context, "text to judge by") for part in judged]
    return Dataset(*itertools.chain(*parts))


def _cut(symbols: np.ndarray, length: int, context: int, name: str) -> tuple[np.ndarray, ...]:
    """All inputs and the labels, one symbol later; the remainder at the end is dropped."""
    count = (len(symbols) - 1) // length
    if count < 1:
        raise InputError(f"the {name} has {len(symbols):,} symbols, too few for one of {length}")
    if count * (context + length) > LARGEST:
        raise InputError(f"--context {context}: too much for {count:,} windows of the {name}")
    padded = np.concatenate([np.zeros(context, symbols.dtype), symbols])
    whole = np.lib.stride_tricks.sliding_window_view(padded, context + length + 1)[::length]
    return whole[:, :-1].copy(), whole[:, context + 1 :].copy()


def read_text(path: pathlib.Path, most: int) -> bytearray:
    """The whole file, which may have `most` bytes when it is unpacked."""
    with opened(path) as stream:
        content = read_at_most(stream, most + 1)
    if not 0 < len(content) <= most:
        size = f"{len(content):,}" if len(content) <= most else "more"
        raise InputError(f"{path} has {size} bytes; allowed are 1 to {most:,}")
    return content


def _words(path: pathlib.Path) -> list[str]:
    try:
        lines = read_text(path, PTB_LARGEST).decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error.reason} at byte {error.start}") from error
    return [word for line in lines for word in [*line.split(), "<eos>"]]


def _end_first(word: str) -> tuple[bool, str]:
    return word != "<eos>", word
