"""Draws the pictures of these pages that no example or study draws: `python -m docs.figures`."""

from __future__ import annotations

import pathlib
import warnings

from entropy_sgd_jax.flatness import local_learning_coefficient, plots
from examples import double_well
from experiments.studies.exact_values import linear_network

DOCS, DPI = pathlib.Path(__file__).parent, 110
CHAINS = {
    "chains_healthy": ("Healthy chains", (6, 4, 6), 2, 1e5, 100.0),
    "chains_not_arrived": ("Chains that have not arrived", (10, 8, 8, 10), 3, 1e6, 1.0),
}

if __name__ == "__main__":
    plots.valleys(double_well.loss).savefig(DOCS / "valleys.png", dpi=DPI)
    warnings.simplefilter("ignore")  # that some chains have not arrived is the point
    for name, (title, widths, rank, inverse_temperature, scope) in CHAINS.items():
        estimate = local_learning_coefficient(
            *linear_network(widths, rank),
            [None],
            inverse_temperature=inverse_temperature,
            scope=scope,
        )
        print(f"{name}: error {estimate.standard_error:.2g}, R̂ {estimate.r_hat:.3f}")
        plots.traces(estimate, title=title).savefig(DOCS / f"{name}.png", dpi=DPI)
