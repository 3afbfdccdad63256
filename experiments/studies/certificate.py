"""A bound on the test error of networks on MNIST, from the training data alone.

    python -m experiments.studies.certificate --data-dir DIR

A network of one hidden layer, or none, sees images of 7×7 pixels, of two classes (0 to 4 against 5
to 9) or of ten, with true labels or random ones. Beside the bound stands the error on images that
the chains have not seen. Minutes on a CPU for each of the four.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
import warnings
from typing import Any

from experiments.io.errors import OneLineParser, one_line_errors

with one_line_errors("certificate.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from entropy_sgd_jax import flatness
    from experiments.data.images import read_mnist
    from experiments.harness.logs import versions
    from experiments.harness.settings import positive
    from experiments.io import files

LABELS = ["true", "random"]
INPUTS = 49
SCALE = 4.0  # of the logits under the prior: chosen without data


def logits(params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Weights of variance 1 keep the variance of activations about 1."""
    if "first" in params:
        images = jnp.tanh(images @ params["first"] / INPUTS**0.5 + params["bias"])
    return images @ params["second"] / images.shape[-1] ** 0.5 * SCALE


def loss(params: dict[str, Any], batch: Any) -> jax.Array:
    """Mean cross-entropy in nats."""
    values = logits(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(values, batch[1]).mean()


def error(params: dict[str, Any], batch: Any) -> jax.Array:
    """Share of wrong answers."""
    return jnp.mean(logits(params, batch[0]).argmax(-1) != batch[1])


def prior_mean(hidden: int, classes: int) -> dict[str, Any]:
    """Zeros; without hidden units it is a linear classifier."""
    last = {"second": jnp.zeros((hidden or INPUTS, classes))}
    return last | (
        {"first": jnp.zeros((INPUTS, hidden)), "bias": jnp.zeros(hidden)} if hidden else {}
    )


def data(directory: str, classes: int, random: bool, count: int, seed: int) -> tuple[Any, Any]:
    """Training and test data: images of shape (n, 49) and labels."""
    dataset = read_mnist(directory)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(dataset.train_labels))[:count]
    parts = []
    for images, labels in (
        (dataset.train_inputs[chosen], dataset.train_labels[chosen]),
        (dataset.test_inputs, dataset.test_labels),
    ):
        pixels = np.asarray(images, np.float32).reshape(-1, 7, 4, 7, 4).mean((2, 4))
        inputs = pixels.reshape(-1, INPUTS) / 255 * 4 - 0.5  # of size 1
        labels = np.asarray(labels, np.int32)
        if random:
            labels = rng.integers(0, 10, len(labels), np.int32)
        parts.append((jnp.asarray(inputs), jnp.asarray(labels * classes // 10, jnp.int32)))
    return parts[0], parts[1]


def measure(options: argparse.Namespace, classes: int, random: bool) -> dict[str, Any]:
    """One row."""
    train, test = data(options.data_dir, classes, random, options.examples, options.seed)
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bound = flatness.pac_bayes_bound(
            loss,
            prior_mean(options.hidden, classes),
            jax.tree.map(lambda leaf: leaf[None], train),
            error=error,
            num_temperatures=options.temperatures,
            num_steps=options.steps,
            key=options.seed,
        )
        value = float(bound.value)
    seconds = time.perf_counter() - began
    test_error = jax.vmap(error, (0, None))(bound.draws, test)
    return {
        "classes": classes,
        "labels": "random" if random else "true",
        "bound": value,
        "test_error": float(test_error.mean()),
        "train_error": float(bound.error),
        "divergence": float(bound.divergence),
        "inverse_temperature": float(bound.inverse_temperature),
        "hidden": options.hidden,
        "steps": options.steps,
        "warnings": [str(warning.message) for warning in caught],
        "seconds": round(seconds, 1),
        "ladder": {
            name: [round(x, 4) for x in np.asarray(row, np.float64).tolist()]
            for name, row in bound.ladder._asdict().items()
        },
    }


def main() -> None:
    parser = OneLineParser(prog="certificate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="of MNIST's four files")
    parser.add_argument("--examples", type=positive, default=2000, help="to train on")
    parser.add_argument("--temperatures", type=positive, default=24)
    parser.add_argument("--steps", type=positive, default=200, help="of each chain at each")
    parser.add_argument("--hidden", type=int, default=16, help="units; 0 for a linear classifier")
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 10], choices=[2, 10])
    parser.add_argument("--labels", nargs="+", default=LABELS, choices=LABELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    rows = []
    for classes in options.classes:
        for labels in options.labels:
            rows.append(measure(options, classes, labels == "random"))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "ladder"}), flush=True)
    if options.out:
        found = {"settings": vars(options), "versions": versions(), "rows": rows}
        files.write_whole(options.out, json.dumps(found, default=str))


if __name__ == "__main__":
    with one_line_errors("certificate.py"):
        main()
