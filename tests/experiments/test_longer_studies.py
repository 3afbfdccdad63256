"""The studies that take a minute: `pytest -m slow`. Their refusals are quick."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.studies import claims, dead_units, spectrum
from experiments.workloads.mnistfc import Network

ROOT = pathlib.Path(__file__).parents[2]


def run(folder: pathlib.Path, study: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", f"experiments.studies.{study}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_the_spectrum_of_a_trained_network(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text").mkdir()
    letters = np.random.default_rng(0).integers(32, 48, 10_000).astype(np.uint8)
    (tmp_path / "text" / "tinyshakespeare_input.txt").write_bytes(letters.tobytes())
    out = ["--out", str(tmp_path / "spectra.json")]
    done = run(tmp_path, "spectrum", "figure_3b", "--data-dir", ".", "--steps", "60", *out)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "spectra.json").read_text())["figure_3b"]
    assert found["weights"] == 4 * 48 * (96 + 48 + 1) + 48 * 96
    # 80 of 96 symbols do not occur: what goes in for them has no effect on the loss.
    assert found["found"]["near zero, at most"] > 100 * 4 * 48 * 80 / found["weights"]
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("radius", [1e-3, 0.1, 0.5, 3.0])
def test_a_rule_bounds_the_share_near_zero(radius: float) -> None:
    random = np.random.default_rng(0)
    eigenvalues = np.concatenate([random.normal(size=40), 1e-4 * random.normal(size=60)])
    # The Gauss rule of equal weights on them, from Lanczos in exact orthogonality.
    start = np.full((100, 1), 0.1)
    krylov, _ = np.linalg.qr(np.hstack([start * eigenvalues[:, None] ** k for k in range(9)]))
    nodes, vectors = np.linalg.eigh(krylov.T @ np.diag(eigenvalues) @ krylov)
    weights = (vectors.T @ krylov.T @ start)[:, 0] ** 2
    least, most = spectrum.near_zero(nodes[None], weights[None], radius)
    assert least <= np.mean(np.abs(eigenvalues) < radius) + 1e-9
    assert most >= np.mean(np.abs(eigenvalues) < radius) - 1e-9
    assert 0 <= most - least < 1


def test_a_mean_of_outer_products_has_these_eigenvalues() -> None:
    random = np.random.default_rng(0)
    hessian, vectors = random.normal(size=(30, 30)), random.normal(size=(7, 30))
    hessian += hessian.T
    times = vectors @ hessian
    dense = np.mean([np.outer(a, w) for a, w in zip(times, vectors, strict=True)], axis=0)
    whole = np.linalg.eigvals(dense)
    largest = whole[np.argsort(-np.abs(whole))[:7]]
    found = spectrum.outer_eigenvalues(times, vectors)
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(largest), atol=1e-10)
    shown = spectrum.extremes(np.array([5.0, 0.05, -2.0]), 10, 0.1)
    assert shown == {"near zero": 80.0, "largest": 5.0, "smallest": -2.0}


@pytest.mark.parametrize("kind", ["geometric", "linear", "quadratic", "bounded"])
def test_each_kind_of_scoping_goes_from_the_low_scope_to_the_high_one(kind: str) -> None:
    scope = claims.scopes(100)[kind]
    assert scope(0) == pytest.approx(claims.LOW, rel=1e-5)
    assert scope(100) == pytest.approx(claims.HIGH, rel=0.01)


def test_units_that_are_zero_on_all_images_are_dead() -> None:
    """Biases of ±1000 decide; a second layer with the first one dead has its biases alone."""
    params = nnx.state(Network(49, 6, 10, 0.0, nnx.Rngs(0)), nnx.Param)
    for name, signs in (("first", [-1, 1, -1, 1, 1, -1]), ("second", [1, -1, -1, -1, -1, 1])):
        params[name]["bias"][...] = 1_000.0 * jnp.array(signs)
        params[name]["kernel"][...] /= 1_000
    images = jax.random.normal(jax.random.key(0), (20, 7, 7))
    assert tuple(map(int, dead_units.dead(params, images))) == (3, 4)


@pytest.mark.slow
def test_solutions_side_by_side(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, "flatness_table", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    for optimizer in ("SGD", "Adam", "SAM", "Entropy-SGD", "Parle"):
        assert optimizer[:7] in done.stdout
    assert (tmp_path / "flatness_table.png").is_file()
