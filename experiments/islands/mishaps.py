"""What may happen to an island, as flags, to watch what the others do."""

from __future__ import annotations

import argparse

from experiments.io.errors import InputError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--kill``, ``--slow`` and ``--join``."""
    pair = {"type": _pair, "metavar": "ROUND:ISLAND", "default": (-1, -1)}
    parser.add_argument("--kill", help="SIGKILL in mid-round", **pair)
    parser.add_argument("--slow", help="that sleeps a while", **pair)
    parser.add_argument("--join", metavar="ROUND", type=int, help="in which another one comes")


def check(options: argparse.Namespace, cluster: bool) -> None:
    """Refuses what cannot happen."""
    for name in ("kill", "slow"):
        number, island = getattr(options, name)
        if number == 0 or number > options.rounds:
            raise InputError(f"--{name} {number}:{island}: the rounds are 1 to {options.rounds}")
        if island >= (count := islands_in(number, options)):
            raise InputError(f"--{name} {number}:{island}: the islands are 0 to {count - 1} then")
    if options.kill[0] > 0 and cluster:
        raise InputError("--kill is for one machine: leave RAY_ADDRESS out")


def islands_in(number: int, options: argparse.Namespace) -> int:
    """How many there are in this round."""
    return options.islands + (options.join is not None and options.join <= number)


def _pair(text: str) -> tuple[int, int]:
    number, _, island = text.partition(":")
    if not (number.isdecimal() and island.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} given, a round and an island expected, as 3:0")
    return int(number), int(island)
