"""Mistakes of the caller, shown as one line: what was given, what is allowed, what to do."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

PACKAGES = {
    *("entropy_sgd_jax", "flax", "matplotlib", "orbax", "pooch", "rich", "sklearn", "tensorboardX"),
    "ray",
}
INSTALL = 'pip install -e ".[{}]"  (in the root of the repository)'


LONGEST = 1000  # characters of a message


class InputError(Exception):
    """A bad argument or a bad file. The message is one line, whatever it quotes."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        half = LONGEST // 2
        super().__init__(line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}")


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad argument like any other mistake, without the usage text around it.

    Flags must be given in full: --seed is not taken for --seeds.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what is wrong."""
        flags = re.findall(r"--[\w-]+", self.format_help())
        named = re.findall(r"--[\w-]+", message)
        meant = near(named[0], flags) if named and not {*named} & {*flags} else ""
        raise InputError(f"{message}{meant}; --help lists the options")


def near(text: str, names: Iterable[str]) -> str:
    """The name that was probably meant, which has these initials, this part, or similar letters."""
    word, names = text.strip("-"), list(names)
    found = [
        *(name for name in names if word == "".join(re.findall(r"(?<![a-z])[a-z]", name))),
        *(name for name in names if len(word) > 2 and word in name),
        *difflib.get_close_matches(text, names, 1),
    ]
    return f" (did you mean {found[0]}?)" if found else ""


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Ends `program` with one line and exit code 2 on a mistake of the caller.

    Everything else keeps its traceback: it is a mistake of ours.
    """
    try:
        yield
    except InputError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        install = INSTALL.format("islands" if package == "ray" else "examples")
        message = f"the package {package} is not installed; run: {install}"
    else:
        return
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(2)
