"""Everything that may differ between two trainings of one network; each field is a flag."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from errors import InputError

SCHEDULES = ("constant", "cosine", "step")


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given, a whole number of at least 1 expected")
    return int(text)


def whole(text: str) -> int:
    """A whole number, zero included."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} given, a whole number of at least 0 expected")
    return int(text)


def number(text: str) -> float:
    """A finite number of at least zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} given, a finite number of at least 0 expected")
    return value


def above_zero(text: str) -> float:
    """A finite number above zero."""
    if number(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} given, a number above 0 expected")
    return number(text)


def below_one(text: str) -> float:
    """A number from 0 to below 1."""
    if number(text) >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} given, a number from 0 to below 1 expected")
    return number(text)


def flag(default: Any, kind: Callable[[str], Any] | tuple[str, ...] | None, text: str) -> Any:
    """A field with its default, its parser or its choices (None: yes or no) and its help."""
    return dataclasses.field(default=default, metadata={"kind": kind, "help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings; the ones of an optimizer that does not take part are ignored."""

    effective_epochs: float = flag(10.0, above_zero, "gradients × batch size / training examples")
    batch_size: int = flag(128, positive, "examples per gradient")

    # The network. 0 stands for the workload's own.
    width: int = flag(0, whole, "units or channels of the first layer; the others keep proportion")
    layers: int = flag(0, whole, "layers of an LSTM or GPT")
    length: int = flag(0, whole, "characters or words per training example")
    context: int = flag(0, whole, "characters or words read before these, without a loss")
    dropout: float = flag(0.0, below_one, "probability to drop a unit")

    # All optimizers. In the entropic ones the learning rate and its schedule are the outer ones.
    learning_rate: float = flag(0.1, number, "peak learning rate")
    schedule: str = flag("constant", SCHEDULES, "of the learning rate")
    drop_at: tuple[float, ...] = flag((), below_one, "step: fractions of the budget, one per drop")
    drop_by: float = flag(10.0, above_zero, "step: divisor at each drop")
    warmup: float = flag(0.0, below_one, "cosine: first part of the budget, in which rates rise")
    momentum: float = flag(0.0, below_one, "Nesterov momentum; outer where there are two loops")
    b1: float = flag(0.9, below_one, "Adam's first decay")
    b2: float = flag(0.999, below_one, "Adam's second decay")
    weight_decay: float = flag(0.0, number, "L2, added to the gradients; decoupled in adamw")
    clip_norm: float = flag(0.0, number, "greatest norm of a gradient; 0 for any")
    clip_value: float = flag(0.0, number, "greatest entry of a gradient; 0 for any")

    # The inner loop of entropy_sgd, entropy_adam, snoo and parle; the last six are not snoo's.
    inner_steps: int = flag(20, positive, "L, gradients per update")
    inner_learning_rate: float = flag(0.1, number, "η′")
    inner_schedule: str = flag("constant", SCHEDULES[:2], "of η′")
    inner_momentum: float = flag(0.9, below_one, "Nesterov momentum of the inner gradients")
    scope: float = flag(0.03, number, "γ₀")
    scope_growth: float = flag(0.0, number, "γ₁, by which γ grows at each update, relatively")
    noise_scale: float = flag(1e-4, number, "ε")
    averaging: float = flag(0.75, number, "α, weight of the newest x′ in μ")
    reset_inner_state: bool = flag(True, None, "start the inner momentum afresh at each update")

    # SAM and Parle.
    rho: float = flag(0.05, number, "radius of SAM")
    replicas: int = flag(3, positive, "networks that Parle pulls together")
    coupling: float = flag(1.0, number, "ρ, Parle's pull towards their mean")
    coupling_growth: float = flag(0.0, number, "by which ρ grows at each update, relatively")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field; without it, the workload's setting stands."""
    group = parser.add_argument_group("settings, by default the paper's for workload and optimizer")
    for field in dataclasses.fields(Settings):
        kind, options = field.metadata["kind"], {"help": field.metadata["help"], "default": None}
        if kind is None:
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(kind, tuple):
            options["choices"] = kind
        else:
            options |= {"type": kind, "metavar": "X"}
        if isinstance(field.default, tuple):
            options["nargs"] = "*"
        group.add_argument(f"--{field.name.replace('_', '-')}", **options)


def override(settings: Settings, options: argparse.Namespace) -> Settings:
    """The settings with those replaced that the command line names."""
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Settings)
        if getattr(options, field.name) is not None
    }
    if "drop_at" in given:
        given["drop_at"] = tuple(given["drop_at"])
    chosen = dataclasses.replace(settings, **given)
    if chosen.schedule == "step" and not chosen.drop_at:
        raise InputError("--schedule step needs --drop-at, the fractions of the budget to drop at")
    if {"drop_at", "drop_by"} & {*given} and chosen.schedule != "step":
        raise InputError(f"--drop-at and --drop-by need --schedule step; got {chosen.schedule}")
    if "warmup" in given and "cosine" not in (chosen.schedule, chosen.inner_schedule):
        raise InputError("--warmup needs --schedule cosine or --inner-schedule cosine")
    return chosen
