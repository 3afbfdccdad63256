"""The log of a training: one JSON object per line, and the same for TensorBoard."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tensorboardX import SummaryWriter

from experiments.checkpoints import differences
from experiments.harness import contestants, settings
from experiments.harness.training import PER_SEED, Measurement
from experiments.io.errors import InputError
from experiments.io.files import whole_lines, write_whole

PACKAGES = ("entropy-sgd-jax", "jax", "jaxlib", "optax", "flax", "numpy")
FILE = "metrics.jsonl"
BESIDE = "validation_loss"  # in the logs of text that is judged by both


def versions() -> dict[str, str]:
    """Everything that a number may depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "device": jax.devices()[0].device_kind, **packages}


class Line(NamedTuple):
    """One measurement in a log."""

    text: str
    measurement: Measurement
    seconds: float  # of training, so far


class Known(NamedTuple):
    """What a log says."""

    head: dict[str, Any]  # configuration, versions, and where it was resumed under which
    lines: list[Line]


def _counts(lines: list[Line]) -> list[float]:
    return [line.measurement.gradient_evaluations for line in lines]


class Log:
    """Writes measurements down, line by line.

    If a training resumes from a checkpoint, the log up to the first new measurement is kept, and
    what follows, which was measured but not saved, is dropped. Without a checkpoint a finished log
    stays as it is, and another one is moved aside.
    """

    def __init__(self, folder: pathlib.Path, configuration: dict[str, Any], measured: list[int]):
        """The `configuration` says as `part` what stands in for the test set, if anything.

        `measured` has the gradient evaluations at each measurement. Raises InputError if the folder
        has a log of other settings, or another file in its place.
        """
        self.folder, self.configuration, self.measured = folder, configuration, measured
        self.count, self.seconds = 0.0, 0.0  # gradient evaluations and training time so far
        known = _read(folder / FILE) or Known({"configuration": configuration}, [])
        self.head, self.lines = known
        if different := differences(self.head["configuration"], configuration):
            raise InputError(
                f"{folder / FILE} is of other settings: {different}. Give another --out, or move "
                "it away"
            )

    @property
    def finished(self) -> bool:
        """Whether it ends where the training does."""
        return _counts(self.lines)[-1:] == self.measured[-1:]

    def set_aside(self) -> pathlib.Path | None:
        """Renames a log that has measured any training; returns its new path, else None."""
        if len(self.lines) < 2:
            return None
        names = (self.folder / f"metrics-{number}.jsonl" for number in itertools.count(1))
        free = next(path for path in names if not path.exists())
        (self.folder / FILE).rename(free)
        self.lines = []
        return free

    def follow(self, measurements: Iterable[Measurement]) -> Iterator[Measurement]:
        """Passes the measurements on, after each is written."""
        writer = None
        for measurement in measurements:
            if measurement.gradient_evaluations == 0 and self.finished:
                return  # the checkpoints are gone
            if writer is None:
                self._make_way(measurement.gradient_evaluations)
                step = measurement.gradient_evaluations
                writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
            line = self._line(measurement)
            with (self.folder / FILE).open("a") as stream:
                stream.write(json.dumps(line) + "\n")
                stream.flush()
                os.fsync(stream.fileno())  # before the checkpoint, which belongs to it
            _write_scalars(writer, line)
            yield measurement
        if writer is not None:
            writer.close()

    def _make_way(self, count: int) -> None:
        """Keeps the lines below `count` gradient evaluations."""
        path = self.folder / FILE
        kept = [line for line in self.lines if line.measurement.gradient_evaluations < count]
        if _counts(kept) != [known for known in self.measured if known < count]:
            raise InputError(
                f"{path} lacks measurements from before the checkpoint, which goes on to {count:,} "
                "gradient evaluations: give another --out, or remove the checkpoints to start over"
            )
        head = {"configuration": self.configuration, "versions": versions()}
        if kept:
            self.count, self.seconds = kept[-1].measurement.gradient_evaluations, kept[-1].seconds
            now = {"gradient_evaluations": int(self.count), "versions": head["versions"]}
            head = self.head | {"resumed": [*self.head.get("resumed", []), now]}
        texts = [json.dumps(head), *(line.text for line in kept)]
        write_whole(path, "".join(f"{text}\n" for text in texts))

    def _line(self, measurement: Measurement) -> dict[str, Any]:
        """Numbers only; what is not finite, as after a divergence, becomes null."""
        count, rate = measurement.gradient_evaluations, measurement.evaluations_per_second
        if count > self.count:
            self.seconds += len(measurement.train_loss) * (count - self.count) / rate
            self.count = count
        values = {
            name.replace("test", self.configuration["part"]): np.asarray(value).tolist()
            for name, value in measurement._asdict().items()
            if value is not None
        }
        return jax.tree.map(_finite, values) | {"seconds": round(self.seconds, 3)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_scalars(writer: SummaryWriter, line: dict[str, Any]) -> None:
    for name, values in line.items():
        for seed, value in enumerate(values) if isinstance(values, list) else ():
            if value is not None:
                writer.add_scalar(f"{name}/seed {seed}", value, line["gradient_evaluations"])
    writer.flush()


def read(folder: pathlib.Path, name: str = FILE) -> tuple[dict[str, Any], list[Measurement], float]:
    """The configuration, all measurements and the seconds of a training that is finished."""
    known = _read(folder / name)
    if known is None or not known.lines:
        raise InputError(f"{folder / name} is missing or no log of train.py")
    configuration, lines = known.head["configuration"], known.lines
    measurements = [line.measurement for line in lines]
    done, whole = measurements[-1].gradient_evaluations, configuration["gradient_evaluations"]
    if done < whole:
        raise InputError(f"{folder / name} ends at {done:,.0f} of {whole:,} gradient evaluations")
    return configuration, measurements, lines[-1].seconds


def _read(path: pathlib.Path) -> Known | None:
    """The head and the measurements, or None if there is no complete line."""
    head: dict[str, Any] = {}
    lines: list[Line] = []
    try:
        for text in whole_lines(path):
            if head:
                lines.append(_measured(text, head["configuration"], lines))
            else:
                head = _head(text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        place = f"line {len(lines) + bool(head) + 1}: {type(error).__name__}"
        raise InputError(f"{path} is no log of train.py, or damaged ({place})") from error
    return Known(head, lines) if head else None


def _head(text: str) -> dict[str, Any]:
    """Checked as far as the rest is read and shown by it."""
    head: dict[str, Any] = json.loads(text)
    known, resumed = head["configuration"], head.get("resumed", [])
    if type(resumed) is not list:
        raise TypeError("resumed")
    names = settings.WORKLOADS, contestants.RECIPES, ("test", "validation")
    for key, allowed in zip(("workload", "optimizer", "part"), names, strict=True):
        if known[key] not in allowed:
            raise ValueError(f"{key} {known[key]!r}")
    for key in ("seeds", "gradient_evaluations"):
        if type(known[key]) is not int or known[key] < 1:
            raise ValueError(f"{key} {known[key]!r}")
    return head


def _measured(text: str, configuration: dict[str, Any], before: list[Line]) -> Line:
    """The line that follows those `before`."""
    values = json.loads(text)
    names = {name: name.replace("test", configuration["part"]) for name in Measurement._fields}
    if BESIDE not in values or names["test_loss"] == BESIDE:
        del names[BESIDE]
    fields = {name: _numbers(values[written]) for name, written in names.items()}
    for name, numbers in fields.items():
        if numbers.shape != ((configuration["seeds"],) if name in PER_SEED else ()):
            raise ValueError(f"{name} has not one number for each seed")
    now = Line(text, Measurement(**fields), float(_numbers(values["seconds"])))
    first = before[0].measurement if before else now.measurement
    if (first.validation_loss is None) != (now.measurement.validation_loss is None):
        raise ValueError(f"{BESIDE} is not in every line")
    last = before[-1].measurement.gradient_evaluations if before else -1
    if not last < now.measurement.gradient_evaluations <= configuration["gradient_evaluations"]:
        raise ValueError("out of order")
    if not 0 <= now.seconds < math.inf:
        raise ValueError("no time")
    return now


def _numbers(value: Any) -> np.ndarray:
    """One number, or a list of them; null is what is not finite."""
    values = value if isinstance(value, list) else [value]
    if not {*map(type, values)} <= {int, float, type(None)}:
        raise TypeError("not numbers")
    numbers = np.array(values, float)
    return numbers if values is value else numbers[0]
