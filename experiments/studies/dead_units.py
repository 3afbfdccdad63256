"""Why a seed of Entropy-SGD may stay behind on the fully connected network: units that die.

    python -m experiments.studies.dead_units --data-dir DIR

Trains eight seeds for five updates, 100 gradients, as the paper's authors did and with one thing
changed at a time, and counts the units of both hidden layers that are zero on 2,000 test images.
Such a unit has no gradient any more. Two minutes on a CPU core. DIR has the folder `mnist/`; the
table goes to `dead_units.md`.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

from experiments import train
from experiments.harness import report, training
from experiments.io import files
from experiments.io.errors import OneLineParser, one_line_errors
from experiments.studies import RESULTS, solutions, tune

IMAGES, GRADIENTS, SEEDS = 2_000, 100, 8
VARIANTS = {
    "as published": "--as-published",
    "α = 0.75": "--as-published --averaging 0.75",
    "η = 0.5": "--as-published --learning-rate 0.5",
    "η′ = 0.05": "--as-published --inner-learning-rate 0.05",
    "inner momentum 0.5": "--as-published --inner-momentum 0.5",
    "dropout 0.5": "--as-published --dropout 0.5",
}


def dead(params: nnx.State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many units of either hidden layer are zero on all images."""
    found = []
    hidden = images.reshape(len(images), -1)
    for layer in (params["first"], params["second"]):
        hidden = nnx.relu(hidden @ layer["kernel"][...] + layer["bias"][...])
        found.append((hidden.max(0) == 0).sum())
    return found[0], found[1]


def row(name: str, options: argparse.Namespace) -> list[str]:
    """Of one variant: dead units from the fewest to the most, and the training loss."""
    folder = tune.data_folder(options.data_dir, "mnistfc")
    flags = ["mnistfc", "--data-dir", folder, "--measurements", "1", "--schedule", "constant"]
    flags += ["--effective-epochs", str(GRADIENTS * 128 / 60_000), *VARIANTS[name].split()]
    run = train.prepare(train.parse_arguments(flags))
    params, end = solutions.train_to_the_end(
        run.contestant, run.model, run.dataset, run.budget, SEEDS, map_seeds=training.one_by_one
    )
    images = jnp.asarray(run.dataset.test_inputs[:IMAGES])
    counts = jax.device_get(jax.lax.map(lambda one: dead(one, images), params))
    ranges = [*(f"{np.min(few)} to {np.max(few)}" for few in counts)]
    return [name, *ranges, f"{end.train_loss.min():.2f} to {end.train_loss.max():.2f}"]


def main() -> None:
    parser = OneLineParser(prog="dead_units.py", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, required=True, help="with mnist/")
    options = parser.parse_args()
    rows = [row(name, options) for name in track(VARIANTS, "training")]
    headings = ["Entropy-SGD", "dead of 1,024, first", "second layer", "training loss"]
    text = report.markdown(headings, rows)
    files.write_whole(RESULTS / "dead_units.md", text)
    print(text)


if __name__ == "__main__":
    with one_line_errors("dead_units.py"):
        main()
