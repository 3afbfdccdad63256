"""Files as a run that may be killed needs them: found, and written whole or not at all."""

from __future__ import annotations

import pathlib

from errors import InputError


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file, plain or packed as .gz."""
    try:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    except OSError as error:
        raise InputError(f"cannot look for {name} in {folder}: {error.strerror}") from error
    raise InputError(f"no {name} or {name}.gz in {folder}")


def write_whole(path: pathlib.Path, text: str) -> None:
    """In one step: whatever happens, the file is the old one or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)
