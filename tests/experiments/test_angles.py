"""The angle between local entropy's slope and the loss's."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.harness import training
from experiments.studies import angles

SMALL = {
    "digits": "--width 8",
    "char_lstm": "--width 8 --length 5 --batch-size 8 --text a.txt --optimizer entropy_adam",
}


def test_angles_of_vectors_that_are_known() -> None:
    """Three updates: the even ones are the first and the last."""
    slopes = {"a": jnp.array([[1.0], [0.0], [1.0]]), "b": jnp.array([[0.0], [1.0], [0.0]])}
    grads = {"a": jnp.array([[0.0], [0.0], [0.0]]), "b": jnp.array([[1.0], [3.0], [2.0]])}
    found = angles.angles(slopes, grads)
    assert tuple(found) == angles.NAMES
    expected = [np.degrees(np.arctan(2)), 60, 90, 0]
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-3)


@pytest.mark.parametrize("workload", SMALL)
def test_short_steps_without_noise_go_along_the_gradient(
    workload: str, tmp_path: pathlib.Path
) -> None:
    """Then every x′ is x to first order, and x − μ the sum of the gradients that are averaged."""
    text = np.random.default_rng(0).integers(97, 123, 4_000).astype(np.uint8)
    (tmp_path / "a.txt").write_bytes(text.tobytes())
    flags = [workload, *SMALL[workload].split(), "--inner-steps", "3", "--effective-epochs", "1"]
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
        found[step] = look(trained, order[0, :4], masks[0, :4], 0.0, keys[0], data)
    assert found["1e-3"]["means"] < 2
    assert found["1"]["means"] > 5
    np.testing.assert_allclose(found["1e-3"]["halves of ∇f"], found["1"]["halves of ∇f"], rtol=1e-3)
