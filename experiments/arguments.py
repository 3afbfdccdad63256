"""The command line of train.py: its help, its checks, and the settings in use as its flags."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from experiments import workloads
from experiments.data import download
from experiments.harness.contestants import RECIPES
from experiments.harness.settings import (
    CHARACTERS,
    FIELDS,
    FILES,
    PARTS,
    PUBLISHED,
    Settings,
    above_zero,
    below_one,
    idle,
    number,
    one_of,
    positive,
    whole,
)
from experiments.io.errors import InputError, OneLineParser

SEEDS = 1 << 31  # int32 holds those below
PROGRAM = "python -m experiments.train"
METAVARS = {
    positive: "N",
    whole: "N",
    number: "NUMBER",
    above_zero: "NUMBER",
    below_one: "FRACTION",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Refuses what would do nothing."""
    options = make_parser().parse_args(arguments)
    pair = options.workload, options.optimizer
    for name, part in PARTS.items():
        if getattr(options, name) is not None and not part.is_of(*pair):
            raise InputError(
                f"{as_flag(name)} does nothing for {pair[0]} with {pair[1]}: it is a flag of "
                f"{', '.join(part.owners)}; {PROGRAM} {pair[0]} --optimizer {pair[1]} --help lists "
                "what applies"
            )
    if options.first_seed + options.seeds > SEEDS:
        raise InputError(
            f"--first-seed {options.first_seed} --seeds {options.seeds}: seeds below {SEEDS:,} "
            "expected"
        )
    return options


class Help(argparse.Action):
    """Shows the flags of the workload and the optimizer that stand before it; else all flags."""

    def __init__(self, option_strings: Any, dest: str, **rest: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **rest)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Called by argparse."""
        make_parser(namespace.workload, namespace.optimizer).print_help()
        parser.exit()


def make_parser(workload: str | None = None, optimizer: str = "entropy_sgd") -> OneLineParser:
    """With the flags and defaults of one workload and optimizer, or with all flags of all."""
    pairs = [(workload, optimizer)] if workload else [*itertools.product(workloads.NAMES, RECIPES)]
    parser = OneLineParser(
        prog=PROGRAM,
        usage="%(prog)s WORKLOAD [--optimizer NAME] [flags]",
        description="Trains one network with one optimizer: the paper's five experiments, digits "
        "and a small GPT. Workload and optimizer before --help: what applies to them, and their "
        "defaults, which are the paper's if it has any.",
        add_help=False,
    )
    parser.add_argument(
        "workload", type=one_of(workloads.NAMES), metavar="WORKLOAD",
        help=f"one of {', '.join(workloads.NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--optimizer", type=one_of(tuple(RECIPES)), metavar="NAME", default="entropy_sgd",
        help=f"one of {', '.join(RECIPES)} (default entropy_sgd)",
    )  # fmt: skip
    if any(PUBLISHED.is_of(*pair) for pair in pairs):
        parser.add_argument(
            "--as-published", action="store_true", default=None,
            help="α = 0.25 and √2 times the noise, as the authors' code instead of their paper",
        )  # fmt: skip
    parser.add_argument("-h", "--help", action=Help, help="show this and exit")
    parser.add_argument(
        "--seeds", type=positive, metavar="N", default=1, help="how many networks (default 1)"
    )
    parser.add_argument(
        "--first-seed", type=whole, metavar="N", default=0,
        help="the others are counted from it (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--one-by-one", action=argparse.BooleanOptionalAction,
        help="train the seeds in turn, in the memory of one (default: what suits a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", help="of the results (default runs/WORKLOAD-OPTIMIZER)"
    )
    parser.add_argument(
        "--measurements", type=positive, metavar="N", default=20,
        help="at most this many (default 20)",
    )  # fmt: skip
    parser.add_argument(
        "--prune", type=below_one, default=0.0, metavar="FRACTION",
        help="judge the networks without this part of their weights, the smallest (default 0)",
    )  # fmt: skip
    _add_data(parser.add_argument_group("data"), pairs)
    _add_settings(parser, {pair: workloads.get(pair[0]).settings[pair[1]] for pair in pairs})
    return parser


def _add_data(group: Any, pairs: list[tuple[str, str]]) -> None:
    if any(FILES.is_of(*pair) for pair in pairs):
        group.add_argument(
            "--data-dir", metavar="FOLDER", help="of the files; with --download, where to put them"
        )
        group.add_argument(
            "--download", nargs="?", const=False, metavar="SET",
            type=one_of(tuple(download.SOURCES)),
            help=f"fetch the usual files, or those of {', '.join(download.SOURCES)}",
        )  # fmt: skip
    if any(CHARACTERS.is_of(*pair) for pair in pairs):
        group.add_argument(
            "--text", metavar="FILE", help="of a character model, in --data-dir or anywhere"
        )
    group.add_argument(
        "--validation", nargs="?", type=positive, const=0, metavar="N",
        help="judge by N held-out images, or symbols of a text; the test set is not read",
    )  # fmt: skip
    group.add_argument(
        "--examples", type=positive, metavar="N",
        help="train on the first N images or windows (default all); images are scaled, and those "
        "of allcnn whitened, by the statistics of all",
    )  # fmt: skip
    group.add_argument(
        "--label-noise", type=below_one, default=0.0, metavar="FRACTION",
        help="of labels that are random (default 0)",
    )  # fmt: skip


def _add_settings(
    parser: argparse.ArgumentParser, trainings: Mapping[tuple[str, str], Settings]
) -> None:
    """The settings of these trainings, of a workload and an optimizer each, under their parts."""
    groups: dict[str, Any] = {}
    for field in FIELDS:
        part, kind = field.metadata["part"], field.metadata["kind"]
        defaults = {
            getattr(settings, field.name)
            for pair, settings in trainings.items()
            if part.is_of(*pair)
        }
        if not defaults:
            continue
        how: dict[str, Any] = {"help": f"{field.metadata['help']} (default {_show(defaults)})"}
        if kind is None:
            how["action"] = argparse.BooleanOptionalAction
        elif isinstance(kind, tuple):
            how |= {"type": one_of(kind), "metavar": f"{{{','.join(kind)}}}"}
        else:
            how |= {"type": kind, "metavar": METAVARS[kind]}
        if isinstance(field.default, tuple):
            how["nargs"] = "*"
        if part.title not in groups:
            owners = f" ({', '.join(part.owners)})" if part.owners and len(trainings) > 1 else ""
            groups[part.title] = parser.add_argument_group(f"{part.title}{owners}")
        groups[part.title].add_argument(as_flag(field.name), **how)


def _show(defaults: set[Any]) -> str:
    """One default, a few, or the least and the greatest."""
    values = sorted(defaults)
    if isinstance(values[0], bool):
        shown = ["yes" if value else "no" for value in values]
    elif isinstance(values[0], tuple):
        ends = [f"{part:.3g}" for part in values[0]]
        few = " ".join(ends) if len(ends) < 9 else f"{len(ends)}, from {ends[0]} to {ends[-1]}"
        shown = [few or "none"] if len(values) == 1 else ["differs"]
    else:
        shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return " or ".join(shown) if len(shown) <= 3 else f"{shown[0]} to {shown[-1]}"


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def in_use(settings: Settings, workload: str, optimizer: str) -> str:
    """The settings that this training depends on, as the flags that ask for them."""
    flags = []
    for name, value in dataclasses.asdict(settings).items():
        if not PARTS[name].is_of(workload, optimizer) or idle(settings, name, optimizer):
            continue
        if isinstance(value, bool):
            flags.append(as_flag(name if value else f"no_{name}"))
        else:
            values = value if isinstance(value, tuple) else [value]
            shown = [str(part).removesuffix(".0") for part in values]
            flags.append(" ".join([as_flag(name), *shown]))
    return " ".join(flags)
