"""Mistakes of the caller, shown as one line: what was given, what is allowed, what to do."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

PACKAGES = {
    *("entropy_sgd_jax", "flax", "matplotlib", "orbax", "pooch", "rich", "sklearn", "tensorboardX")
}
INSTALL = 'pip install -e ".[examples]"  (in the root of the repository)'


LONGEST = 1000  # characters of a message


class InputError(Exception):
    """A bad argument or a bad file. The message is one line, whatever it quotes."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST]} …")


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad argument like any other mistake, without the usage text around it."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what is wrong."""
        raise InputError(f"{message}; --help lists the options")


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
        message = f"the package {package} is not installed; run: {INSTALL}"
    else:
        return
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(2)
