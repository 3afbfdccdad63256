"""The Hessians of the paper's Figures 1 and 3, at networks trained as its authors trained them.

    python -m experiments.studies.spectrum --data-dir DIR [figure_1 figure_3a figure_3b]

DIR has the folders `mnist/` and `text/`. A thousand Hessian-vector products estimate the density of
each spectrum, in 50 minutes on a CPU core. A table compares the numbers, which go to
`spectra.json` with a picture each.

The authors' code estimates the Hessian of Figure 1 from 32 batches as the mean of H w wᵀ over 100
Gaussian vectors w for each. The eigenvalues of that matrix, of rank 3,200, are computed too. The
Hessian of Figure 3 b is small enough to be written out, in 7 GB of memory, and its eigenvalues near
zero are counted.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.io.errors import OneLineParser, one_line_errors

with one_line_errors("spectrum.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from jax import lax
    from jax.flatten_util import ravel_pytree
    from rich.console import Console
    from rich.table import Table
    from scipy.linalg import lapack

    from entropy_sgd_jax import flatness
    from experiments.data.images import load_mnist
    from experiments.data.text import LARGEST, read_text
    from experiments.harness import contestants
    from experiments.harness.evaluation import Model
    from experiments.harness.logs import versions
    from experiments.harness.networks import Conv, max_pool, pure
    from experiments.harness.settings import Settings, one_of, positive
    from experiments.io import files
    from experiments.io.dataset import Dataset
    from experiments.studies import RESULTS
    from experiments.studies.solutions import loss_of, stacked_batches, train_until
    from experiments.workloads import digits

SYMBOLS, UNITS, LENGTH, LINES = 96, 48, 32, 32  # code: of Figure 3 b
SPACE = 32  # the first symbol, in ASCII
TEXT = "tinyshakespeare_input.txt"
EPOCHS = 50  # code, of Figures 1 and 3 a
COLUMNS = 64  # of a Hessian, computed at once


class Figure(NamedTuple):
    """One of the paper's."""

    network: str
    load: Callable[[pathlib.Path], tuple[Dataset, Model]]
    optimizer: str
    training: Settings
    measurements: int  # in all of the training
    error: float  # text: of the trained network, on test images; 100 for any, at the end
    examples: int  # the first this many training examples make the Hessian
    radius: float  # text: what is nearer to zero than this
    paper: dict[str, float]  # text: the share of that in percent; the extremes
    vectors: int = 0  # code: in its estimate for each batch, if it makes one
    dense: bool = False  # whether the Hessian is written out


class SmallLeNet(nnx.Module):
    """Two convolutions of 10 and 20 channels and a layer of 128, all of it from N(0, 0.1²)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """All weights are drawn from `rngs`."""
        normal = nnx.initializers.normal(0.1)  # code
        init = {"kernel_init": normal, "bias_init": normal, "rngs": rngs}
        self.first = Conv(1, 10, (5, 5), padding="VALID", **init)
        self.second = Conv(10, 20, (5, 5), padding="VALID", **init)
        self.hidden = nnx.Linear(320, 128, **init)
        self.output = nnx.Linear(128, 10, **init)

    def __call__(self, images: Any, key: Any = None) -> Any:
        """Logits; without dropout there is no use for the key."""
        features = nnx.relu(max_pool(self.first(images[..., None]), 2))
        features = nnx.relu(max_pool(self.second(features), 2))
        return self.output(nnx.relu(self.hidden(features.reshape(len(images), -1))))


def small_lenet(folder: pathlib.Path) -> tuple[Dataset, Model]:
    return load_mnist(folder / "mnist"), pure(SmallLeNet)


def fully_connected(folder: pathlib.Path) -> tuple[Dataset, Model]:
    return load_mnist(folder / "mnist"), digits.make_network((784, 64, 10))


class Recurrent(nnx.Module):
    """48 units, all weights from N(0, 0.1²), which predict each symbol from those before it.

    As in the code of Figure 3 b: its σ(x) is (1 + tanh x) / 2; what it calls the cell is
    o f + i g, without the cell before; and the first state is trained.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        """All weights are drawn from `rngs`."""
        normal = nnx.initializers.normal(0.1)
        init = {"kernel_init": normal, "bias_init": normal, "rngs": rngs}
        self.gates = nnx.Linear(SYMBOLS + UNITS, 4 * UNITS, **init)
        self.output = nnx.Linear(UNITS, SYMBOLS, **init)
        self.first = nnx.Param(normal(rngs.params(), (2, UNITS)))  # a cell too, of no effect

    def __call__(self, symbols: jax.Array, key: Any = None) -> Any:
        """Logits of shape (lines, length, 96): at t of symbol t itself."""
        kernel, bias = self.gates.kernel[...], self.gates.bias[...]

        def step(hidden: jax.Array, symbol: jax.Array) -> tuple[jax.Array, jax.Array]:
            driven = kernel[symbol] + hidden @ kernel[SYMBOLS:] + bias
            written, *gates = jnp.split(driven, 4, axis=-1)
            keep, write, read = ((1 + jnp.tanh(gate)) / 2 for gate in gates)
            cell = read * keep + write * jnp.tanh(written)
            return read * jnp.tanh(cell), hidden

        first = jnp.broadcast_to(self.first[...][1], (len(symbols), UNITS))
        _, hidden = lax.scan(step, first, symbols.T)
        return self.output(hidden.swapaxes(0, 1))


def lines_of_text(folder: pathlib.Path) -> tuple[Dataset, Model]:
    """The first 32 that are not empty, 32 symbols of each, filled up with spaces.

    The network is judged by them too. A line's end is a space here, and of no class in the code.
    """
    text = bytes(read_text(files.find(folder / "text", TEXT), LARGEST)).decode("ascii", "replace")
    lines = [line for line in text.split("\n") if len(line) > 1][:LINES]
    filled = "".join(line[:LENGTH].ljust(LENGTH) for line in lines).encode("ascii", "replace")
    codes = np.frombuffer(filled, np.uint8).reshape(-1, LENGTH).astype(np.int32)
    symbols = np.maximum(codes, SPACE) - SPACE  # a tab is a space too
    return Dataset(*4 * [symbols]), pure(Recurrent)


def falling(rate: float, by: float, epochs: int) -> dict[str, Any]:
    """A rate that is multiplied by this factor after each epoch."""
    drops = tuple(epoch / epochs for epoch in range(1, epochs))
    return {"learning_rate": rate, "schedule": "step", "drop_at": drops, "drop_by": 1 / by}


FIGURE_1 = Figure(
    "small LeNet, MNIST",
    small_lenet,
    "adam",
    # Code: one epoch, which is a tenth of the batches, 187; here 180, nine rounds of 20.
    Settings(effective_epochs=0.1, batch_size=32, learning_rate=1e-3),
    measurements=1,
    error=100,
    examples=1024,  # code
    radius=1e-4,
    paper={"near zero": 94, "largest": 40, "smallest": -0.46},
    vectors=100,
)
FIGURES = {
    "figure_1": FIGURE_1,
    # At the error that the text gives.
    "figure_1_later": FIGURE_1._replace(
        training=Settings(effective_epochs=EPOCHS / 10, batch_size=32, learning_rate=1e-3),
        measurements=EPOCHS,
        error=2.4,
    ),
    "figure_3a": Figure(
        "784-64-10, MNIST",
        fully_connected,
        "sgd",
        Settings(
            effective_epochs=EPOCHS, batch_size=128, momentum=0.9, **falling(1e-2, 0.95, EPOCHS)
        ),
        measurements=EPOCHS,
        error=2.5,
        examples=4096,  # code
        radius=1e-2 / 128,  # text 1e-2; the code of the figure multiplies the eigenvalues by 128
        paper={"near zero": 90},
    ),
    "figure_3b": Figure(
        "character LSTM, Tiny Shakespeare",
        lines_of_text,
        "adam",
        # Code: 256 epochs of one batch, and Adam is restarted in each: its averages are of one
        # gradient. Here 260, 13 rounds of 20.
        Settings(effective_epochs=256, batch_size=32, b1=0.0, b2=0.0, **falling(0.1, 0.98, 256)),
        measurements=1,
        error=100,
        examples=LINES,
        radius=1e-5,
        paper={"near zero": 95},
        dense=True,
    ),
}


def measure(name: str, options: Any) -> dict[str, Any]:
    """Trains one seed, and looks at the Hessian where it ends; draws the density."""
    figure = FIGURES[name]
    dataset, model = figure.load(options.data_dir)
    contestant, budget = contestants.prepare(
        figure.optimizer, figure.training, len(dataset.train_labels), figure.measurements
    )
    (params,), (end,) = train_until(
        lambda now: now.test_error <= figure.error, contestant, model, dataset, budget, seeds=1
    )
    batches = stacked_batches(dataset, figure.examples)
    began = time.perf_counter()
    density = flatness.spectral_density(
        loss_of(model), params, batches, num_probes=options.probes, num_steps=options.steps
    )
    shares = near_zero(np.asarray(density.nodes), np.asarray(density.weights), figure.radius)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    found = {
        "near zero, at least": 100 * float(shares[0].mean()),
        "near zero, at most": 100 * float(shares[1].mean()),
        "largest": float(density.nodes.max()),
        "smallest": float(density.nodes.min()),
    }
    if figure.dense:
        hessian = written_out(loss_of(model), params, jax.tree.map(lambda part: part[0], batches))
        unused = size - len(hessian)
        share = 100 * (inside(hessian, figure.radius) + unused) / size
        found |= {"near zero, at least": share, "near zero, at most": share}
        found["without a gradient"] = 100 * unused / size
    if figure.vectors:
        images = (dataset.train_inputs, dataset.train_labels)
        found["estimated"] = extremes(estimate(model, params, images, figure), size, figure.radius)
    title = f"Hessian of {size:,} weights: {figure.network}"
    picture = flatness.plots.density(density, title=title)
    picture.savefig(options.out.with_name(f"spectrum-{name}.png"), dpi=150)
    return {
        "network": figure.network,
        "weights": size,
        "gradients": int(end.gradient_evaluations),
        "training loss": float(end.train_loss),
        "test error": float(end.test_error),
        "radius": figure.radius,
        "found": found,
        "paper": figure.paper,
        "probes": options.probes,
        "steps": options.steps,
        "seconds": round(time.perf_counter() - began),
        "versions": versions(),
    }


def estimate(model: Model, params: Any, data: Any, figure: Figure) -> np.ndarray:
    """The eigenvalues, but for zeros, of the mean of H w wᵀ over batches and vectors w."""
    size = figure.training.batch_size
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def products(key: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
        vectors = jax.random.normal(key, (figure.vectors, flat.size))
        return vectors, lax.map(hessian_at(flat, unravel, loss_of(model), batch), vectors)

    keys, parts = jax.random.split(jax.random.key(0), figure.examples // size), []
    for index, key in enumerate(keys):
        batch = tuple(part[index * size : (index + 1) * size] for part in data)
        parts.append(jax.device_get(products(key, batch)))
    vectors, times = map(np.concatenate, zip(*parts, strict=True))
    return outer_eigenvalues(times, vectors).real


def hessian_at(
    flat: jax.Array, unravel: Callable[[jax.Array], Any], loss: Any, batch: Any
) -> Callable[[jax.Array], jax.Array]:
    """v ↦ H v, of the loss in one vector of all weights."""
    slope = jax.grad(lambda flat: loss(unravel(flat), batch))
    return lambda vector: jax.jvp(slope, (flat,), (vector,))[1]


def written_out(loss: Any, params: Any, batch: Any) -> np.ndarray:
    """The Hessian in the weights that have a gradient at all; in the others it is zero."""
    flat, unravel = ravel_pytree(params)
    times = hessian_at(flat, unravel, loss, batch)
    used = np.flatnonzero(jax.jit(times)(jax.random.normal(jax.random.key(0), flat.shape)))
    basis = lambda index: jnp.zeros_like(flat).at[index].set(1)  # noqa: E731
    columns = jax.jit(jax.vmap(lambda index: times(basis(index))[used]))
    parts = [columns(used[start : start + COLUMNS]) for start in range(0, len(used), COLUMNS)]
    return np.concatenate(jax.device_get(parts))


def inside(matrix: np.ndarray, radius: float) -> int:
    """How many eigenvalues of a symmetric matrix lie within `radius` of zero.

    Sylvester: as many are below σ as the D of L D Lᵀ, which is A - σ, has negative ones.
    """
    above, below = (negative(matrix, shift) for shift in (radius, -radius))
    return above - below


def negative(matrix: np.ndarray, shift: float) -> int:
    """The eigenvalues below `shift`. D's blocks of two, by Bunch and Kaufman, have one each."""
    shifted = np.array(matrix.T, np.float64, order="F")  # as quick as a copy
    np.fill_diagonal(shifted, shifted.diagonal() - shift)
    length = int(lapack.dsytrf_lwork(len(matrix), lower=1)[0])
    factors, pivots, _ = lapack.dsytrf(shifted, lower=1, lwork=length, overwrite_a=1)
    paired = pivots < 0
    return int(paired.sum() // 2 + (factors.diagonal()[~paired] < 0).sum())


def outer_eigenvalues(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Those that are not zero of the mean of left_k right_kᵀ: A Wᵀ has those of Wᵀ A."""
    return np.linalg.eigvals(right @ left.T / len(left))


def extremes(eigenvalues: np.ndarray, size: int, radius: float) -> dict[str, float]:
    """Of a matrix of this size, whose other eigenvalues are zero."""
    outside = (np.abs(eigenvalues) >= radius).sum()
    return {
        "near zero": 100 * float(1 - outside / size),
        "largest": float(eigenvalues.max()),
        "smallest": float(eigenvalues.min()),
    }


def near_zero(nodes: np.ndarray, weights: np.ndarray, radius: float) -> np.ndarray:
    """Bounds on the share of the spectrum within `radius` of zero, as each probe sees it.

    Chebyshev, Markov and Stieltjes: the spectrum has as much below a node of its Gauss rule as the
    rule has, give or take that node's own weight. From rules of shape (probes, steps); of shape
    (2, probes).
    """
    found = []
    for own, weight in zip(nodes, weights, strict=True):
        order = np.argsort(own)
        below = np.concatenate([[0.0], np.cumsum(weight[order])])
        first, last = np.searchsorted(own[order], [-radius, radius])
        inside = [min(first + 1, last), max(last - 1, first)]
        around = [max(first - 1, 0), min(last + 1, len(own))]
        found.append([max(below[b] - below[a], 0.0) for a, b in (inside, around)])
    return np.array(found).T


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """The paper's numbers beside ours."""
    shown = Table(title="Eigenvalues of the Hessian; in brackets, the paper's")
    for heading in ("", "network", "weights", "test error, %", "near zero, %", "largest"):
        shown.add_column(heading, justify="left" if heading in ("", "network") else "right")
    shown.add_column("smallest", justify="right")
    for name, row in rows.items():
        found, paper = row["found"], row["paper"]
        least, most = found["near zero, at least"], found["near zero, at most"]
        share = f"{least:.1f}" if least == most else f"{least:.1f} to {most:.1f}"
        values = [f"{share} ({paper['near zero']}) within {row['radius']:g}"]
        for key, form in (("largest", ".3g"), ("smallest", ".2g")):
            values.append(f"{found[key]:{form}}" + (f" ({paper[key]:g})" if key in paper else ""))
        error = f"{row['test error']:.1f}"
        shown.add_row(name, row["network"], f"{row['weights']:,}", error, *values)
        if estimated := found.get("estimated"):
            own = [f"{value:.3g}" for value in estimated.values()]
            shown.add_row("", "as the authors estimate it", "", "", *own)
    return shown


def main() -> None:
    parser = OneLineParser(prog="spectrum.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "figures", nargs="*", metavar="figure", type=one_of(tuple(FIGURES)), help="default all"
    )
    parser.add_argument("--data-dir", type=pathlib.Path, required=True)
    parser.add_argument("--probes", type=positive, default=2, help="random vectors (default 2)")
    parser.add_argument("--steps", type=positive, default=500, help="products each (default 500)")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "spectra.json")
    options = parser.parse_args()
    rows = files.kept(options.out, {})
    for name in options.figures or FIGURES:
        rows[name] = measure(name, options)
        files.write_whole(options.out, json.dumps(rows, indent=1) + "\n")
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    with one_line_errors("spectrum.py"):
        main()
