"""How often the error bar of the local learning coefficient holds the truth.

    python -m experiments.studies.coverage

Losses whose coefficient at a finite temperature is known in closed form, or by an integral, are
measured again and again with other keys, at γ = 1 and everything else by default. The table says
how often the truth is within one and within two standard errors, and how far off the mean is. It
goes to `coverage.md`, the numbers to `coverage.json`. Minutes on a CPU core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from entropy_sgd_jax import flatness
from experiments.harness import logs, report
from experiments.io import files
from experiments.studies import RESULTS

CURVATURES = np.logspace(-1.5, 0.5, 20)
REPEATS = {2_000: 400, 16_000: 100}  # by the number of steps


class Case(NamedTuple):
    """A loss whose learning coefficient is known."""

    loss: Callable[[Any, Any], jax.Array]
    minimum: jax.Array
    batches: Any
    inverse_temperature: float
    exact: float
    method: str = "metropolis"


def of_quadratic(curvatures: Any, inverse_temperature: float, scope: float) -> float:
    """λ̂ of ½ Σ h w²."""
    stiffness = inverse_temperature * np.asarray(curvatures, np.float64)
    return float((stiffness / (stiffness + scope)).sum() / 2)


def quadratic(params: Any, batch: Any) -> jax.Array:
    return 0.5 * jnp.sum(jnp.asarray(CURVATURES, params.dtype) * params**2)


def regression() -> tuple[Any, Any, Any, np.ndarray]:
    """Least squares: loss, minimum, 32 stacked batches of 32, and the Hessian's eigenvalues."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(1024, 10)), rng.normal(size=1024)
    y = x @ rng.normal(size=10) + noise
    minimum = np.linalg.lstsq(x, y, rcond=None)[0]

    def loss(params: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.mean((batch[0] @ params - batch[1]) ** 2)

    batches = (x.reshape(32, 32, 10), y.reshape(32, 32))
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), batches)
    return loss, jnp.asarray(minimum, jnp.float32), stacked, np.linalg.eigvalsh(x.T @ x / 1024)


def crossing(power: int) -> Case:
    """w₁² w₂^power, whose valleys are arms that grow ever narrower.

    Given w₂, w₁ is Gaussian, which leaves one integral.
    """
    beta, grid = 1e3, np.linspace(-9, 9, 100_001)
    stiffness = 2 * beta * grid**power
    density = np.exp(-(grid**2) / 2) / np.sqrt(stiffness + 1)
    exact = (stiffness / (stiffness + 1) * density).sum() / density.sum() / 2

    def loss(params: Any, batch: Any) -> jax.Array:
        return params[0] ** 2 * params[1] ** power

    return Case(loss, jnp.zeros(2), [None], beta, float(exact))


def cases() -> dict[str, Case]:
    """By the name in the table."""
    beta = 1024 / np.log(1024)
    *least_squares, eigenvalues = regression()
    return {
        "quadratic, 20 parameters": Case(
            quadratic, jnp.zeros(20), [None], 1e4, of_quadratic(CURVATURES, 1e4, 1)
        ),
        "quartic, 8 parameters": Case(
            lambda params, batch: jnp.sum(params**4), jnp.zeros(8), [None], 1e8, 8 / 4
        ),
        "regression, SGLD on mini-batches": Case(
            *least_squares, beta, of_quadratic(eigenvalues, beta, 1), "sgld"
        ),
        "w₁²w₂²": crossing(2),
        "w₁²w₂⁴": crossing(4),
    }


def estimates(case: Case, repeats: int, steps: int) -> flatness.LearningCoefficient:
    """Independent ones, by one program."""

    def one(key: jax.Array) -> flatness.LearningCoefficient:
        return flatness.local_learning_coefficient(
            case.loss, case.minimum, case.batches, key=key,
            inverse_temperature=case.inverse_temperature, num_steps=steps, method=case.method,
        )  # fmt: skip

    keys = jax.random.split(jax.random.key(1), repeats)
    found: flatness.LearningCoefficient = jax.jit(lambda: jax.lax.map(one, keys))()
    return found


def within(found: flatness.LearningCoefficient, exact: float) -> tuple[float, float]:
    """How often, in parts of 1, the truth is within one and within two standard errors."""
    scores = np.abs(found.value - exact) / found.standard_error
    return float(np.mean(scores < 1)), float(np.mean(scores < 2))


def row(name: str, repeats: int, steps: int, measured: dict[str, Any]) -> list[str]:
    ratios = np.array(measured["value"]) / measured["exact"]
    bias, error = 100 * (ratios.mean() - 1), 100 * ratios.std(ddof=1) / repeats**0.5
    shares = (f"{100 * share:.0f}" for share in measured["within"])
    return [name, f"{repeats} × {steps:,}", *shares, f"{bias:+.2f} ± {error:.2f}"]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    asked = [
        (name, case, steps, repeats)
        for name, case in cases().items()
        for steps, repeats in REPEATS.items()
        if steps == min(REPEATS) or name.startswith("w")  # the crossings need longer chains
    ]
    rows, kept = [], []
    for name, case, steps, repeats in track(asked, "measuring"):
        found = estimates(case, repeats, steps)
        measured = {
            "loss": name,
            "steps": steps,
            "exact": case.exact,
            "within": within(found, case.exact),
            "value": found.value.tolist(),
            "standard_error": found.standard_error.tolist(),
        }
        kept.append(measured)
        rows.append(row(name, repeats, steps, measured))
    headings = ["loss", "repeats × steps", "within one, %", "within two, %", "bias, % of λ"]
    text = report.markdown(headings, rows)
    files.write_whole(RESULTS / "coverage.md", text)
    found = {"versions": logs.versions(), "measured": kept}
    files.write_whole(RESULTS / "coverage.json", json.dumps(found) + "\n")
    print(text)


if __name__ == "__main__":
    main()
