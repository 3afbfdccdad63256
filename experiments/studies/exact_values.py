"""The local learning coefficient of linear networks beside what a theorem says it is.

    python -m experiments.studies.exact_values

At the most singular minimum of each network, all layers turned at random so that no axis is
special, at nβ = 10⁵ and γ = 1, everything else by default, with 2,000 steps and with 20,000. The
table goes to `exact_values.md`, the numbers to `exact_values.json`. Minutes on a CPU core.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from entropy_sgd_jax import flatness
from experiments.harness import logs, report
from experiments.io import files
from experiments.studies import RESULTS

NETWORKS = [  # widths and rank
    ((5, 4, 5), 0),
    ((4, 3, 8), 0),
    ((8, 3, 4), 0),
    ((3, 8, 4), 0),
    ((3, 3, 3), 1),
    ((3, 3, 3), 3),
    ((2, 2, 2), 0),
    ((6, 4, 6), 2),
    ((5, 10, 3, 6), 2),
    ((10, 8, 8, 10), 3),
    ((5, 3, 5), 0),
    ((3, 3, 3), 0),
]
INVERSE_TEMPERATURE, STEPS = 1e5, (2_000, 20_000)


def aoyagi(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """The learning coefficient of a deep linear network, and its multiplicity.

    Aoyagi, "Consideration on the learning efficiency of multiple-layered neural networks with
    linear units", Neural Networks 172, 2024.
    """
    excess = sorted(width - rank for width in widths)
    for count in range(2, len(excess) + 1):
        inside, outside, layers = excess[:count], excess[count:], count - 1
        total = sum(inside)
        if total >= layers * max(inside) and (not outside or total < layers * min(outside)):
            break
    odd = total - (math.ceil(total / layers) - 1) * layers
    coefficient = (
        (rank * (widths[0] + widths[-1]) - rank**2) / 2
        + odd * (layers - odd) / (4 * layers)
        - layers * (layers - 1) / 4 * (total / layers) ** 2
        + sum(a * b for a, b in itertools.combinations(inside, 2)) / 2
    )
    return coefficient, odd * (layers - odd) + 1


def linear_network(widths: Sequence[int], rank: int) -> tuple[Any, Any]:
    """Half the squared distance of the product of all layers to a matrix of some rank, a loss
    without data, and its most singular minimum.
    """
    rng = np.random.default_rng(sum(widths))
    turns = [np.linalg.qr(rng.normal(size=(width, width)))[0] for width in widths]
    params = [
        jnp.asarray(after[:, :rank] @ before[:, :rank].T, jnp.float32)
        for before, after in itertools.pairwise(turns)
    ]
    target = _product(params)

    def loss(params: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.sum((_product(params) - target) ** 2)

    return loss, params


def _product(layers: Any) -> jax.Array:
    return functools.reduce(lambda a, b: jnp.matmul(b, a, precision="highest"), layers)


def measure(widths: Sequence[int], rank: int, steps: int) -> dict[str, Any]:
    """The estimate, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = flatness.local_learning_coefficient(
            *linear_network(widths, rank), [None],
            inverse_temperature=INVERSE_TEMPERATURE, scope=1.0, num_steps=steps,
        )  # fmt: skip
    return {
        "widths": widths,
        "rank": rank,
        "steps": steps,
        "value": float(found.value),
        "standard_error": float(found.standard_error),
        "warnings": [str(one.message) for one in caught],
    }


def row(widths: Sequence[int], rank: int, measured: list[dict[str, Any]]) -> list[str]:
    """Of one network, a column for each number of steps; a star where the chains were warned of."""
    coefficient, multiplicity = aoyagi(widths, rank)
    name = f"{'-'.join(map(str, widths))}, {rank}"
    name += f" (multiplicity {multiplicity})" if multiplicity > 1 else ""
    cells = [
        f"{one['value']:.2f} ± {one['standard_error']:.2f}" + "*" * bool(one["warnings"])
        for one in measured
    ]
    return [name, f"{coefficient:g}", *cells]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    measured = {
        network: [measure(*network, steps) for steps in STEPS]
        for network in track(NETWORKS, "measuring")
    }
    headings = ["widths, rank", "λ", *(f"{steps:,} steps" for steps in STEPS)]
    text = report.markdown(headings, [row(*network, each) for network, each in measured.items()])
    files.write_whole(RESULTS / "exact_values.md", text)
    found = {"versions": logs.versions(), "measured": list(itertools.chain(*measured.values()))}
    files.write_whole(RESULTS / "exact_values.json", json.dumps(found, indent=1))
    print(text)


if __name__ == "__main__":
    main()
