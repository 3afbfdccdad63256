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

from experiments import train
from experiments.harness import settings
from experiments.studies import claims, dead_units, spectrum
from experiments.workloads import mnistfc

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


def test_the_spectrum_of_a_trained_network(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 4 units; the figure's 48 take a quarter of an hour."""
    write_text(tmp_path, [32 * "ab"[line % 2] for line in range(40)])
    out = tmp_path / "spectra.json"
    monkeypatch.setattr(spectrum, "UNITS", 4)
    options = ["--data-dir", str(tmp_path), "--steps", "60", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["spectrum", "figure_3b", *options])
    spectrum.main()
    row = json.loads(out.read_text())["figure_3b"]
    found = row["found"]
    assert row["weights"] == 4 * 4 * (96 + 4 + 1) + (4 + 1) * 96 + 2 * 4
    # No gradient: what goes in for the 94 symbols that do not occur, and the first cell.
    assert found["without a gradient"] == pytest.approx(100 * (4 * 4 * 94 + 4) / row["weights"])
    assert found["without a gradient"] < found["near zero, at least"] < 100
    assert found["near zero, at least"] == found["near zero, at most"]  # counted
    assert list(tmp_path.glob("*.png"))


def write_text(folder: pathlib.Path, lines: list[str]) -> None:
    (folder / "text").mkdir()
    (folder / "text" / "tinyshakespeare_input.txt").write_text("\n".join(lines) + "\n")


def test_lines_are_cut_or_filled_up(tmp_path: pathlib.Path) -> None:
    write_text(tmp_path, ["Who?", "", "x", 40 * "Z", *40 * ["!!"]])
    dataset, _ = spectrum.lines_of_text(tmp_path)
    assert dataset.train_inputs.shape == (32, 32)
    assert (dataset.train_inputs == dataset.train_labels).all()
    first, second, third = ("".join(map(chr, line + 32)) for line in dataset.train_inputs[:3])
    assert (first, second, third) == ("Who?".ljust(32), 32 * "Z", "!!".ljust(32))


def test_the_network_of_figure_3b_against_numpy() -> None:
    """Written once more from the authors' equations, in their layout: a matrix for each gate."""
    model = spectrum.pure(spectrum.Recurrent)
    params = model.init(jax.random.key(0))
    symbols = np.random.default_rng(0).integers(0, 96, (3, 5))
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(params))
    gates = np.vstack([weights["gates"]["kernel"], weights["gates"]["bias"]])
    written, keep, write, read = np.split(gates, 4, axis=1)
    sigmoid = lambda x: (np.tanh(x) + 1) / 2  # noqa: E731
    hidden, total = np.tile(weights["first"][1], (3, 1)), 0.0
    for column in symbols.T:
        logits = hidden @ weights["output"]["kernel"] + weights["output"]["bias"]
        total += (np.log(np.exp(logits).sum(1)) - logits[np.arange(3), column]).sum()
        seen = np.hstack([np.eye(96)[column], hidden, np.ones((3, 1))])
        cell = sigmoid(seen @ read) * sigmoid(seen @ keep)
        cell += sigmoid(seen @ write) * np.tanh(seen @ written)
        hidden = sigmoid(seen @ read) * np.tanh(cell)
    found = model.loss(params, (jnp.asarray(symbols), jnp.asarray(symbols), None))
    np.testing.assert_allclose(found, total / symbols.size, rtol=1e-6)


def test_eigenvalues_near_zero_are_counted() -> None:
    """Of matrices with known ones, some exactly zero, over eight orders of magnitude."""
    random = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(random.normal(size=(300, 300)))
    values = random.normal(size=300) * 10 ** random.uniform(-8, 0, 300)
    values[:20] = 0
    matrix = (vectors * values) @ vectors.T
    for radius in (1e-6, 1e-4, 1e-2, 1.0):
        assert spectrum.inside(matrix, radius) == (np.abs(values) < radius).sum()


def test_a_hessian_written_out() -> None:
    """Of a polynomial in four of six weights."""
    loss = lambda x, batch: batch * x[0] ** 2 * x[2] + jnp.sin(x[3]) * x[5]  # noqa: E731
    x = jnp.array([1.0, 2.0, 3.0, 0.5, 5.0, -2.0])
    a, c, s, k = 4 * 3.0, 4 * 1.0, 2 * np.sin(0.5), np.cos(0.5)
    expected = [[a, c, 0, 0], [c, 0, 0, 0], [0, 0, s, k], [0, 0, k, 0]]
    np.testing.assert_allclose(spectrum.written_out(loss, x, 2.0), expected, rtol=1e-6)


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


def test_one_thing_is_changed_at_a_time() -> None:
    each = []
    for flags in dead_units.VARIANTS.values():
        options = train.parse_arguments(["mnistfc", *flags.split()])
        each.append(vars(settings.override(mnistfc.WORKLOAD.settings["entropy_sgd"], options)))
    published, *others = each
    for own in others:
        assert sum(own[name] != value for name, value in published.items()) == 1


def test_units_that_are_zero_on_all_images_are_dead() -> None:
    """Biases of ±1000 decide; a second layer with the first one dead has its biases alone."""
    params = nnx.state(mnistfc.Network(49, 6, 10, 0.0, nnx.Rngs(0)), nnx.Param)
    for name, signs in (("first", [-1, 1, -1, 1, 1, -1]), ("second", [1, -1, -1, -1, -1, 1])):
        params[name]["bias"][...] = 1_000.0 * jnp.array(signs)
        params[name]["kernel"][...] /= 1_000
    images = jax.random.normal(jax.random.key(0), (20, 7, 7))
    assert tuple(map(int, dead_units.dead(params, images))) == (3, 4)


@pytest.mark.slow
def test_solutions_side_by_side(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, "flatness_table", "--seeds", "1", "--out", "flatness_table")
    assert done.returncode == 0, done.stderr
    for optimizer in ("SGD", "Adam", "SAM", "Entropy-SGD", "Parle"):
        assert optimizer[:7] in done.stdout
    assert (tmp_path / "flatness_table.png").is_file()
