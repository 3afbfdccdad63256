"""The spectrum of the Hessian at a trained network: most of it is zero, a few eigenvalues are not.

    python -m experiments.studies.spectrum
    python -m experiments.studies.spectrum --dataset mnist --data-dir DIR

The first trains a network of 2,410 weights on scikit-learn's 8×8 digits and compares its whole
spectrum with an estimate from a few hundred Hessian-vector products, in about a minute on two CPU
cores. The second trains the small LeNet of the Entropy-SGD paper, of 47,658 weights, on MNIST: its
whole spectrum took the authors 256 GB and a day, the estimate takes minutes. `--exact` computes
the whole one here too, given 28 GB and an accelerator.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.io.errors import OneLineParser, one_line_errors

with one_line_errors("spectrum.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from rich.console import Console
    from rich.table import Table

    from entropy_sgd_jax import flatness
    from experiments.harness import contestants
    from experiments.harness.networks import Conv, max_pool, pure
    from experiments.harness.report import figure_path
    from experiments.harness.settings import Settings, positive
    from experiments.studies.solutions import loss_of, stacked_batches, train_to_the_end
    from experiments.workloads import digits


class Task(NamedTuple):
    """What differs between the data sets."""

    training: Settings  # of Adam
    examples: int  # the first this many training images make the Hessian
    probes: int
    steps: int


TASKS = {
    "digits": Task(
        Settings(effective_epochs=60, batch_size=32, learning_rate=3e-3, schedule="cosine"),
        examples=1280,
        probes=8,
        steps=80,
    ),
    "mnist": Task(
        Settings(effective_epochs=2, batch_size=64, learning_rate=1e-3, schedule="cosine"),
        examples=4096,  # as many as the authors' own code takes
        probes=2,
        steps=60,
    ),
}


class SmallLeNet(nnx.Module):
    """Two convolutions of 10 and 20 channels and a layer of 128."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """All weights are drawn from `rngs`."""
        self.first = Conv(1, 10, (5, 5), padding="VALID", rngs=rngs)
        self.second = Conv(10, 20, (5, 5), padding="VALID", rngs=rngs)
        self.hidden = nnx.Linear(320, 128, rngs=rngs)
        self.output = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images: Any, key: Any = None) -> Any:
        """Logits; without dropout there is no use for the key."""
        features = nnx.relu(max_pool(self.first(images[..., None]), 2))
        features = nnx.relu(max_pool(self.second(features), 2))
        return self.output(nnx.relu(self.hidden(features.reshape(len(images), -1))))


def results(
    size: int, test_error: float, density: flatness.SpectralDensity, eigenvalues: Any
) -> Table:
    """What the picture shows, in numbers."""
    table = Table(title=f"Hessian of {size:,} weights, test error {test_error:.1f} %")
    table.add_column("")
    table.add_column("Lanczos quadrature", justify="right")
    if eigenvalues is not None:
        table.add_column("all eigenvalues", justify="right")

    def row(name: str, estimate: str, exact: Any) -> None:
        table.add_row(name, estimate, *([] if eigenvalues is None else [exact()]))

    row("largest", f"{density.nodes.max():.4g}", lambda: f"{eigenvalues.max():.4g}")
    row("smallest", f"{density.nodes.min():.4g}", lambda: f"{eigenvalues.min():.4g}")
    trace, error = (size * part for part in density.expectation(lambda x: x))
    row("trace", f"{trace:.4g} ± {error:.2g}", lambda: f"{eigenvalues.sum():.4g}")
    for radius in (1e-4, 1e-2):
        share, error = density.expectation(lambda x, r=radius: jnp.abs(x) < r)
        exact = lambda r=radius: f"{np.mean(np.abs(eigenvalues) < r):.1%}"  # noqa: E731
        # Quadrature knows nothing of what is closer to zero than its nodes.
        seen = bool((jnp.abs(density.nodes) < radius).any())
        estimate = f"{share:.1%} ± {error:.1%}" if seen else "no node there"
        row(f"within {radius:g} of zero", estimate, exact)
    return table


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(prog="spectrum.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=TASKS, default="digits")
    parser.add_argument("--data-dir", help="folder of the four MNIST files, plain or .gz")
    parser.add_argument("--probes", type=positive, help="default 8 for digits, 2 for mnist")
    parser.add_argument("--steps", type=positive, help="default 80 for digits, 60 for mnist")
    parser.add_argument("--exact", action="store_true", help="all eigenvalues for mnist too")
    parser.add_argument("--out", help="the figure (default spectrum_digits.png or _mnist.png)")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    figure = figure_path(options.out or f"spectrum_{options.dataset}.png")
    task, dataset = TASKS[options.dataset], digits.load_set(options.dataset, options.data_dir)
    on_digits = options.dataset == "digits"
    model = digits.make_network((64, 32, 10)) if on_digits else pure(SmallLeNet)
    console = Console()

    adam = contestants.prepare("adam", task.training, len(dataset.train_labels), measurements=1)
    with timed(console, "training"):
        params, measurement = train_to_the_end(adam[0], model, dataset, adam[1], seeds=1)
    params = jax.tree.map(lambda leaf: leaf[0], params)
    batches = stacked_batches(dataset, task.examples)
    probes, steps = options.probes or task.probes, options.steps or task.steps
    with timed(console, f"{probes * steps} Hessian-vector products"):
        density = flatness.spectral_density(
            loss_of(model), params, batches, num_probes=probes, num_steps=steps
        )
        jax.block_until_ready(density)
    eigenvalues = None
    if on_digits or options.exact:
        with timed(console, "all eigenvalues"):
            eigenvalues = np.asarray(
                flatness.exact_spectrum(loss_of(model), params, batches, progress=True)
            )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(results(size, measurement.test_error[0], density, eigenvalues))
    title = f"Hessian at a network of {size:,} weights, trained on {options.dataset}"
    picture = flatness.plots.density(density, eigenvalues=eigenvalues, title=title)
    picture.savefig(figure, dpi=150)
    console.print(f"Density: {figure}", soft_wrap=True)
    if eigenvalues is not None:
        whole = figure.with_stem(f"{figure.stem}_all")
        flatness.plots.spectrum(eigenvalues, title=title).savefig(whole, dpi=150)
        console.print(f"All eigenvalues: {whole}", soft_wrap=True)


@contextlib.contextmanager
def timed(console: Console, what: str) -> Iterator[None]:
    """Prints the seconds that the block takes, compilation included."""
    began = time.perf_counter()
    yield
    console.print(f"{what}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    with one_line_errors("spectrum.py"):
        main()
