"""Everything that may differ between two trainings of one network; each field is a flag.

Each flag is part of some trainings: the table below says of which, for --help, which shows no
others, and to refuse a flag that would do nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.io.errors import InputError, near

WORKLOADS = ("digits", "mnistfc", "lenet", "allcnn", "ptb", "ptb_small", "char_lstm", "char_gpt")
SAMPLINGS = ("passes", "replacement", "streams")
SCHEDULES = ("constant", "cosine", "step", "power")
OWN = "0 for the workload's own"


class Part(NamedTuple):
    """Of a training: a heading in --help, and the workloads or optimizers that have it."""

    title: str
    owners: tuple[str, ...] = ()  # none: all

    def is_of(self, workload: str, optimizer: str) -> bool:
        """Whether their training has this part."""
        return not self.owners or workload in self.owners or optimizer in self.owners


TRAINING = Part("training")
FILES = Part("data files", WORKLOADS[1:])
CHARACTERS = Part("text", ("char_lstm", "char_gpt"))
NETWORK = Part("network")
DROPOUT = Part("dropout", FILES.owners)
BATCH_NORM = Part("batch normalisation", ("lenet",))
SEQUENCES = Part("sequences", ("ptb", "ptb_small", "char_lstm", "char_gpt"))
OPTIMIZER = Part("optimizer; the outer loop of one that has two")
MOMENTUM = Part("momentum", ("sgd", "sam", "entropy_sgd", "snoo", "parle"))
ADAM = Part("Adam", ("adam", "adamw", "entropy_adam", "snoo"))
INNER = Part("inner loop", ("entropy_sgd", "entropy_adam", "snoo", "parle"))
ENTROPY = Part("local entropy", ("entropy_sgd", "entropy_adam", "parle"))
PUBLISHED = Part("as published", ("entropy_sgd", "entropy_adam"))  # Parle is, by default
NOISE = Part("Langevin noise", (*ENTROPY.owners, "sgld"))
SAM = Part("SAM", ("sam",))
PARLE = Part("Parle", ("parle",))


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


def one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    """One of these names."""

    def choose(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"{text!r} given, one of {', '.join(names)} expected{near(text, names)}"
            )
        return text

    return choose


def flag(
    part: Part, default: Any, kind: Callable[[str], Any] | tuple[str, ...] | None, text: str
) -> Any:
    """A field: part, default, parser or choices (None: yes or no), and help."""
    return dataclasses.field(default=default, metadata={"part": part, "kind": kind, "help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings; those of parts that a training does not have are ignored."""

    effective_epochs: float = flag(
        TRAINING, 10.0, above_zero, "gradients × batch size / training examples"
    )
    batch_size: int = flag(TRAINING, 128, positive, "examples per gradient")
    sampling: str = flag(
        TRAINING,
        "passes",
        SAMPLINGS,
        "shuffled passes; draws with replacement; or, of an LSTM, windows in order, each batch "
        "from the state after the last",
    )

    width: int = flag(
        NETWORK, 0, whole, f"units or channels of the first layer; the others follow; {OWN}"
    )
    affine: bool = flag(BATCH_NORM, False, None, "scales, which start from U(0, 1), and shifts")
    layers: int = flag(SEQUENCES, 0, whole, f"layers of an LSTM or GPT; {OWN}")
    length: int = flag(SEQUENCES, 0, whole, f"characters or words per training example; {OWN}")
    context: int = flag(SEQUENCES, 0, whole, "characters or words read before, without a loss")
    dropout: float = flag(DROPOUT, 0.0, below_one, "probability to drop a unit")

    learning_rate: float = flag(OPTIMIZER, 0.1, number, "peak learning rate")
    schedule: str = flag(OPTIMIZER, "constant", SCHEDULES, "of the learning rate")
    drop_at: tuple[float, ...] = flag(
        OPTIMIZER, (), below_one, "step: fractions of the budget, one per drop"
    )
    drop_by: float = flag(OPTIMIZER, 10.0, above_zero, "step: divisor at each drop")
    power: float = flag(OPTIMIZER, 0.25, number, "power: b of η / (1 + t)^b")
    warmup: float = flag(OPTIMIZER, 0.0, below_one, "cosine: first part of the budget, rates rise")
    momentum: float = flag(MOMENTUM, 0.0, below_one, "Nesterov; outer, if there are two loops")
    b1: float = flag(ADAM, 0.9, below_one, "first decay")
    b2: float = flag(ADAM, 0.999, below_one, "second decay")
    weight_decay: float = flag(
        OPTIMIZER, 0.0, number, "L2, added to the gradients; decoupled in adamw and snoo"
    )
    clip_norm: float = flag(OPTIMIZER, 0.0, number, "greatest norm of a gradient; 0 for any")
    clip_value: float = flag(OPTIMIZER, 0.0, number, "greatest entry of a gradient; 0 for any")

    inner_steps: int = flag(INNER, 20, positive, "L, gradients per update")
    inner_learning_rate: float = flag(INNER, 0.1, number, "η′")
    inner_schedule: str = flag(INNER, "constant", SCHEDULES[:2], "of η′")
    inner_momentum: float = flag(ENTROPY, 0.9, below_one, "Nesterov, of the inner gradients")
    scope: float = flag(ENTROPY, 0.03, number, "γ₀")
    scope_growth: float = flag(ENTROPY, 0.0, number, "γ₁, relative growth of γ at each update")
    noise_scale: float = flag(NOISE, 1e-4, number, "ε")
    decay_after_momentum: bool = flag(
        ENTROPY, False, None, "add the weight decay to the inner momentum, not to the gradients"
    )
    averaging: float = flag(ENTROPY, 0.75, number, "α, weight of the newest x′ in μ")
    reset_inner_state: bool = flag(ENTROPY, True, None, "each update drops the inner momentum")

    rho: float = flag(SAM, 0.05, number, "radius")
    replicas: int = flag(PARLE, 3, positive, "networks that are pulled together")
    coupling: float = flag(PARLE, 1.0, number, "ρ, the pull towards their mean")
    coupling_growth: float = flag(PARLE, 0.0, number, "relative growth of ρ at each update")


FIELDS = dataclasses.fields(Settings)
PARTS: dict[str, Part] = {field.name: field.metadata["part"] for field in FIELDS}
PARTS |= {"as_published": PUBLISHED, "data_dir": FILES, "download": FILES, "text": CHARACTERS}


def as_published(settings: Settings) -> Settings:
    """With α = 0.25, and noise of standard deviation √(2η′) ε, as the authors' code has them.

    Their paper has α = 0.75 and √η′ ε.
    """
    return dataclasses.replace(
        settings, averaging=0.25, noise_scale=math.sqrt(2) * settings.noise_scale
    )


def override(settings: Settings, options: argparse.Namespace) -> Settings:
    """The settings with those replaced that the command line names."""
    settings = as_published(settings) if options.as_published else settings
    given = {
        field.name: getattr(options, field.name)
        for field in FIELDS
        if getattr(options, field.name) is not None
    }
    if "drop_at" in given:
        given["drop_at"] = tuple(given["drop_at"])
    chosen = dataclasses.replace(settings, **given)
    if chosen.schedule == "step" and not chosen.drop_at:
        raise InputError("--schedule step needs --drop-at, the fractions of the budget to drop at")
    for name in given:
        if needed := idle(chosen, name, options.optimizer):
            raise InputError(needed)
    return chosen


def idle(settings: Settings, name: str, optimizer: str) -> str:
    """What a setting lacks to have an effect; empty if it has one."""
    if name in ("drop_at", "drop_by") and settings.schedule != "step":
        return f"--drop-at and --drop-by need --schedule step; got {settings.schedule}"
    if name == "power" and settings.schedule != "power":
        return f"--power needs --schedule power; got {settings.schedule}"
    if name == "warmup" and settings.schedule != "cosine":
        if not INNER.is_of("", optimizer):
            return "--warmup needs --schedule cosine"
        if settings.inner_schedule != "cosine":
            return "--warmup needs --schedule cosine or --inner-schedule cosine"
    if name == "decay_after_momentum" and not settings.weight_decay:
        return "--decay-after-momentum needs --weight-decay"
    if name == "context" and settings.sampling == "streams":
        return "--context needs --sampling passes or replacement: a stream carries its state on"
    equal = settings.sampling == "streams" and not settings.noise_scale
    if name in ("coupling", "coupling_growth") and equal:
        return "--coupling needs --noise-scale: replicas that read the same streams stay equal"
    return ""
