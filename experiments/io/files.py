"""Files as a run that may be killed needs them: found, read within bounds, written whole or not."""

from __future__ import annotations

import contextlib
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, Any

from experiments.io.errors import InputError

PIECE = 1 << 16  # bytes read at a time
LINE = 1 << 22  # bytes of a line; 60,000 seeds need as many


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file, plain or packed as .gz."""
    if (found := first(folder, name, f"{name}.gz")) is None:
        raise InputError(f"no {name} or {name}.gz in {folder}")
    return found


def first(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
    """The first of these files that is there; refuses a folder that is not."""
    try:
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None and not folder.is_dir():
            raise InputError(f"there is no folder {folder}")
    except OSError as error:
        raise InputError(f"cannot look for {names[0]} in {folder}: {error.strerror}") from error
    return found


@contextlib.contextmanager
def made(folder: pathlib.Path, flag: str) -> Iterator[None]:
    """A folder that `flag` asks for. If it stays empty because of an error, it is removed again."""
    new: list[pathlib.Path] = []
    try:
        try:
            new = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot make this folder: {error.strerror}"
            raise InputError(f"{flag} {folder}: {reason}") from error
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if it is a .gz. What is wrong with them is told in one line."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; fetch the file again") from error


def read_at_most(stream: IO[bytes], most: int) -> bytearray:
    """Up to `most` bytes, in memory that grows with what is read, not with `most`."""
    content = bytearray()
    while len(content) < most and (piece := stream.read(min(most - len(content), PIECE))):
        content += piece
    return content


def whole_lines(path: pathlib.Path) -> Iterator[str]:
    """Of a log, if there is one. A crash may have cut the last line, which is left out."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        while (line := stream.readline(LINE)).endswith(b"\n"):
            yield line[:-1].decode()
    if len(line) == LINE:
        raise ValueError(f"a line of more than {LINE:,} bytes")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Atomically: whatever happens, the file is the old one or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def kept(path: pathlib.Path, nothing: Any) -> Any:
    """What an earlier run of a study left in this JSON file; `nothing` if there is none."""
    return json.loads(path.read_text()) if path.exists() else nothing
