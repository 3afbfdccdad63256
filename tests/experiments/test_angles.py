"""The angle between local entropy's slope and the loss's."""

from __future__ import annotations

import math
import pathlib

import jax
import numpy as np
import pytest

from experiments import train
from experiments.harness import training
from experiments.studies import angles

SMALL = {
    "digits": "--width 8 --effective-epochs 5",
    "char_lstm": "--width 8 --length 5 --batch-size 8 --effective-epochs 1 --text a.txt "
    "--optimizer entropy_adam",
}


def test_angles_are_free_of_the_noise_that_is_common() -> None:
    """60 degrees between the expectations; the same noise, as long as 3 of them, on both."""
    random = np.random.default_rng(0)
    noise = 3 * random.normal(size=(400, 1_000)) / math.sqrt(1_000)
    slope, grad = np.zeros((2, 1_000))
    slope[0], grad[:2] = 1, (0.5, math.sqrt(0.75))
    found = angles.angles({"a": slope + noise}, {"a": grad + noise})
    assert tuple(found) == angles.NAMES
    one = math.degrees(math.acos(0.5 / math.sqrt(10))), math.degrees(math.acos(1 / math.sqrt(10)))
    # Each expectation times the mean of the noise has deviation 3 / √1000 / √400; there are two.
    error = 3 * math.degrees(2 * 3 / math.sqrt(1_000) / math.sqrt(400))
    np.testing.assert_allclose(list(found.values()), [60, *one], atol=error)


@pytest.mark.parametrize("workload", SMALL)
def test_short_steps_without_noise_go_along_the_gradient(
    workload: str, tmp_path: pathlib.Path
) -> None:
    """Then every x′ is x to first order, and x − μ the sum of the gradients that are averaged."""
    text = np.random.default_rng(0).integers(97, 123, 4_000).astype(np.uint8)
    (tmp_path / "a.txt").write_bytes(text.tobytes())
    flags = [workload, *SMALL[workload].split(), "--inner-steps", "3", "--measurements", "1"]
    flags += ["--data-dir", str(tmp_path)] if workload != "digits" else []
    found = {}
    for step in ("1e-3", "1"):
        own = ["--inner-learning-rate", step, "--inner-momentum", "0", "--averaging", "1"]
        run = train.prepare(train.parse_arguments([*flags, *own, "--noise-scale", "0"]))
        keys = jax.random.key(0)[None]
        start = training.start(run.contestant, run.model, keys, run.budget)
        order, masks = training.draw_segment(keys, 0, run.budget, len(run.dataset.train_labels))
        trained = jax.tree.map(lambda leaf: leaf[0], start)
        look, data = angles.probe(run), jax.device_put(run.dataset)
        found[step] = look(trained, order[0, :20], masks[0, :20], 0.0, keys[0], data)
    assert found["1e-3"][angles.NAMES[0]] < 3
    assert found["1"][angles.NAMES[0]] > 5
    np.testing.assert_allclose(
        found["1e-3"][angles.NAMES[2]], found["1"][angles.NAMES[2]], rtol=1e-3
    )
