"""Reads pickles of plain data and arrays of bytes from untrusted sources.

A pickle can call only what is defined here, and it takes no more memory than a few times the size
of its file, and some 100 bytes for each of its operations.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.io.errors import InputError

OPERATIONS = 200_000  # a batch of CIFAR-10 has 60,000


def read(content: bytes | bytearray) -> Any:
    """What was pickled, with `Array` for arrays. A broken pickle may raise anything."""
    return _Unpickler(io.BytesIO(content), len(content)).load()


class Array:
    """Stands for an array. Its claimed size takes no memory; its state brings the values."""

    def __init__(self, *claim: Any) -> None:
        self.values = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Bytes):
            raise TypeError(kind)
        values = np.frombuffer(content, np.uint8)
        self.values = values.reshape(shape, order="F" if by_columns else "C")


class _Bytes:
    """Stands for the type of an array's values."""

    def __init__(self, code: Any, *rest: Any) -> None:
        if code not in ("u1", b"u1"):
            raise InputError(f"holds an array of type {code!r}; only bytes are read")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which bytes do not have."""


def _build(unpickler: _Unpickler) -> None:
    """Gives a state to arrays and their types, and to nothing else."""
    state = unpickler.stack.pop()
    unpickler.stack[-1].__setstate__(state)


def _counted(operation: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(unpickler: _Unpickler) -> None:
        unpickler.operations += 1
        if unpickler.operations > OPERATIONS:
            raise InputError(f"has more than {OPERATIONS:,} parts: is it another file?")
        operation(unpickler)

    return counted


class _Unpickler(pickle._Unpickler):
    """In Python, since the one in C takes memory on claim; BYTEARRAY8 does in Python too."""

    dispatch = {  # noqa: RUF012
        code: _counted(_build if code == pickle.BUILD[0] else operation)
        for code, operation in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, stream: io.BytesIO, size: int) -> None:
        super().__init__(stream, encoding="bytes")
        self.operations, self.left = 0, size

    def find_class(self, module: str, name: str) -> Any:
        """Called for every global name in the pickle."""
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): Array,
            ("numpy._core.multiarray", "_reconstruct"): Array,
            ("numpy", "ndarray"): Array,
            ("numpy", "dtype"): _Bytes,
            ("_codecs", "encode"): self.encode,
        }
        if (module, name) not in allowed:
            raise InputError(f"asks for {module}.{name}, which no array of bytes needs: refused")
        return allowed[module, name]

    def encode(self, text: str, encoding: Any) -> bytes:
        """How Python 3 writes bytes in the older protocols; in total no more than the file has."""
        self.left -= len(text)
        if self.left < 0:
            raise InputError("writes out more bytes than it has: is it another file?")
        return text.encode("latin1")
