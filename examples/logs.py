"""The log of a training: one JSON object per line, and the same for TensorBoard."""

from __future__ import annotations

import importlib.metadata
import json
import math
import pathlib
import platform
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from checkpoints import differences
from errors import InputError
from files import write_whole
from training import Measurement

PACKAGES = ("entropy-sgd-jax", "jax", "jaxlib", "optax", "flax", "numpy")
FILE = "metrics.jsonl"


def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "device": jax.devices()[0].device_kind, **packages}


class Log:
    """Writes measurements down, line by line.

    Where a training goes on from a checkpoint, what the log holds before the first measurement is
    kept, and what it holds from there on, which was measured but not saved, makes way.
    """

    def __init__(self, folder: pathlib.Path, configuration: dict[str, Any]):
        """The `configuration` says as `part` what stands in for the test set, if anything."""
        self.folder, self.configuration = folder, configuration
        self.count, self.seconds = 0, 0.0  # gradient evaluations and training time so far

    def follow(self, measurements: Iterable[Measurement]) -> Iterator[Measurement]:
        """Passes the measurements on, after each is written."""
        writer = None
        for measurement in measurements:
            if writer is None:
                self._make_way(measurement.gradient_evaluations)
                step = measurement.gradient_evaluations
                writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
            line = self._line(measurement)
            with (self.folder / FILE).open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            _write_scalars(writer, line)
            yield measurement
        if writer is not None:
            writer.close()

    def _make_way(self, count: int) -> None:
        """Keeps the lines below `count` gradient evaluations."""
        path = self.folder / FILE
        head, *lines = _lines(path) or [{"configuration": self.configuration}]
        if different := differences(head["configuration"], self.configuration):
            raise InputError(
                f"{path} is of other settings: {different}. Give another --out, or move it away"
            )
        kept = [line for line in lines if line["gradient_evaluations"] < count]
        if count > 0 and not kept:
            raise InputError(f"{path}, which belongs to the checkpoints, is gone: give --out")
        if kept:
            self.count, self.seconds = kept[-1]["gradient_evaluations"], kept[-1]["seconds"]
        head = {"configuration": self.configuration, "versions": versions()}
        write_whole(path, "".join(json.dumps(line) + "\n" for line in [head, *kept]))

    def _line(self, measurement: Measurement) -> dict[str, Any]:
        """Numbers only; what is not finite, as after a divergence, becomes null."""
        count, rate = measurement.gradient_evaluations, measurement.evaluations_per_second
        if count > self.count:
            self.seconds += len(measurement.train_loss) * (count - self.count) / rate
            self.count = count
        values = {
            name.replace("test", self.configuration["part"]): np.asarray(value).tolist()
            for name, value in measurement._asdict().items()
        }
        return jax.tree.map(_finite, values) | {"seconds": round(self.seconds, 3)}


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """All whole lines, the configuration first; a crash may have cut the last."""
    try:
        whole = path.read_text().splitlines(keepends=True) if path.is_file() else []
        lines = [json.loads(line) for line in whole if line.endswith("\n")]
        if lines:
            dict(lines[0]["configuration"])
        return [line for line in lines if line is lines[0] or line["gradient_evaluations"] >= 0]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no log of train.py ({type(error).__name__})") from error


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_scalars(writer: SummaryWriter, line: dict[str, Any]) -> None:
    for name, values in line.items():
        for seed, value in enumerate(values) if isinstance(values, list) else ():
            if value is not None:
                writer.add_scalar(f"{name}/seed {seed}", value, line["gradient_evaluations"])
    writer.flush()


def read(folder: pathlib.Path, name: str = FILE) -> tuple[dict[str, Any], list[Measurement], float]:
    """The configuration, all measurements and the seconds of training."""
    lines = _lines(folder / name)
    if len(lines) < 2:
        raise InputError(f"{folder / name} is missing or no log of train.py")
    configuration = lines[0]["configuration"]
    keys = {field: field.replace("test", configuration["part"]) for field in Measurement._fields}
    measurements = [
        Measurement(**{field: np.array(line[key], float)[()] for field, key in keys.items()})
        for line in lines[1:]
    ]
    return configuration, measurements, lines[-1]["seconds"]
