"""The examples: programs of one idea, each by itself, that do what they say."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import runpy
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.io.errors import one_line_errors
from tests.core.test_limit import exact_gradient

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "digits.py"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_a_program_is_short_and_stands_by_itself(program: pathlib.Path) -> None:
    text = program.read_text()
    assert len(text.splitlines()) <= 150
    siblings = {path.stem for path in PROGRAMS}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not {name.name.partition(".")[0] for name in node.names} & siblings
        elif isinstance(node, ast.ImportFrom):
            assert node.module.partition(".")[0] not in siblings


def test_the_readme_lists_every_program() -> None:
    listed = re.findall(r"`python examples/(\w+\.py)`", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == [path.name for path in PROGRAMS]


def run_python(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
    )


def run_example(folder: pathlib.Path, name: str, *arguments: str) -> str:
    done = run_python(str(EXAMPLES / name), *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_minimal_loop_learns(tmp_path: pathlib.Path) -> None:
    shown = run_example(tmp_path, "minimal.py")
    loss, error = re.search(r"2,000 gradients: .* loss (\S+), test error (\S+)%", shown).groups()
    assert float(loss) < 0.01  # log 10 = 2.3 for a guess
    assert float(error) < 12  # 90 for a guess


@pytest.mark.slow
def test_a_spectrum_estimated_beside_the_whole(tmp_path: pathlib.Path) -> None:
    shown = run_example(tmp_path, "spectrum.py")
    assert "Hessian of 2,410 weights" in shown
    largest, exact = map(float, re.search(r"largest +(\S+) +(\S+)", shown).groups())
    assert largest == pytest.approx(exact, rel=1e-2)
    trace, error, exact = map(float, re.search(r"trace +(\S+) ± (\S+) +(\S+)", shown).groups())
    assert abs(trace - exact) < 5 * error
    assert (tmp_path / "spectrum_digits.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_widths_of_three_optimizers(tmp_path: pathlib.Path) -> None:
    heading, *rows = run_example(tmp_path, "flatness_table.py").splitlines()[:6]
    assert heading.split() == ["SGD", "Adam", "Entropy-SGD"]
    for row in rows:
        means = [float(mean) for mean in re.findall(r"(\S+) ±", row)]
        assert len(means) == 3
        assert all(mean > 0 for mean in means)
        assert len(row) <= 80
    assert rows[-1].startswith("test error, %")
    assert max(means) < 12
    assert (tmp_path / "flatness_table.png").stat().st_size > 10_000


@pytest.mark.slow
def test_complexity_rises_from_one_polygon_to_the_next(tmp_path: pathlib.Path) -> None:
    shown = run_example(tmp_path, "superposition.py")
    rows = re.findall(r"loss (\S+), λ̂ (\S+) ± (\S+)", shown)
    losses, values, errors = zip(*(map(float, row) for row in rows), strict=True)
    np.testing.assert_allclose(losses, [0.0972, 0.062, 0.0484], atol=1e-3)
    assert values[1] - values[0] > 4 * np.hypot(errors[0], errors[1])
    assert max(errors) < 0.2
    assert (tmp_path / "superposition.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_gpt_in_replicas_sends_a_twentieth_of_the_bytes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    shown = run_example(tmp_path, "diloco_gpt.py", "--text", "text.txt", "--steps", "200")
    rows = re.findall(r"test loss (\S+) nats, (\S+) GB", shown)
    (_, all_bytes), (loss, few_bytes) = [map(float, row) for row in rows]
    assert few_bytes == pytest.approx(all_bytes / 20, abs=1e-3)
    assert loss < 1.0  # log 28 = 3.3 for a guess
    assert (tmp_path / "diloco_gpt.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "59"], "--steps 59: whole rounds expected, of 20 gradients"),
        (["--text", "short.txt"], "--text short.txt: 600 bytes; at least 650"),
    ],
)
def test_a_gpt_is_not_trained_on_too_little(
    arguments: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "short.txt").write_text(600 * "a")
    done = run_python(str(SCRIPT.with_name("diloco_gpt.py")), *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


# The main job.


def test_digits_trains_all_four_and_writes_the_figure(tmp_path):
    figure = tmp_path / "curves.png"
    options = ["--effective-epochs", "4", "--seeds", "2", "--out", str(figure)]
    done = run_python(str(SCRIPT), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "80 gradient evaluations" in done.stdout
    rows = re.findall(
        r"│ (\S.*?) +│ +([\d.]+) ± [\d.]+ │ +([\d.e+-]+) ± \S+ │ +([\d,]+) │", done.stdout
    )
    assert [row[0] for row in rows] == ["Nesterov SGD", "Adam", "Entropy-SGD", "Entropy-Adam"]
    for _, error, loss, rate in rows:
        assert 0 < float(error) < 80  # guessing makes 90 %
        assert 0 < float(loss) < 2.3  # guessing makes log(10) = 2.303
        assert int(rate.replace(",", "")) > 0
    assert str(figure) in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seeds 0", "'0' given, a whole number of at least 1 expected"),
        ("--seeds two", "'two' given"),
        ("--effective-epochs -1", "argument --effective-epochs"),
        ("--batch-size 0", "argument --batch-size"),
        ("--batch-size 2000", "--batch-size 2000 is above the 1,280 training examples"),
        ("--dataset cifar", "'cifar'"),
        ("--dataset mnist", "needs --data-dir"),
        ("--dataset mnist --data-dir nowhere", "there is no folder nowhere"),
        ("--out curves.txt", "must end in one of .png"),
        ("--out nowhere/curves.png", "cannot write there"),
        ("--colour blue", "--colour"),
    ],
)
def test_a_bad_argument_gives_one_line_and_exit_code_2(options, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["digits.py", *options.split()])
    with pytest.raises(SystemExit) as stopped, one_line_errors("digits.py"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("digits.py: error: ")
    assert message in printed.err


def test_the_imports_of_the_script_are_guarded(tmp_path):
    program = f"""
import runpy, sys
sys.modules["matplotlib"] = None  # as if it were not installed
sys.path.insert(0, {str(SCRIPT.parent)!r})
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    done = run_python("-c", program, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "matplotlib is not installed" in done.stderr


# The picture of the project.


@pytest.fixture(scope="module")
def double_well() -> Any:
    """The example, as a module."""
    return types.SimpleNamespace(**runpy.run_path(str(EXAMPLES / "double_well.py")))


def test_entropy_sgd_leaves_the_sharp_valley_for_the_wide_one(double_well: Any) -> None:
    """From starts where SGD, with as many gradients, stops in the sharp one: the deeper."""
    x = np.linspace(-2, 2, 4001)
    loss = np.asarray(double_well.loss(x))
    wide, sharp = x[np.argmin(np.where(x < 0, loss, np.inf))], x[np.argmin(loss)]
    assert wide < 0 < sharp

    sgd = np.asarray(double_well.run_sgd(jnp.asarray(double_well.STARTS)))
    np.testing.assert_allclose(sgd[-1], sharp, atol=0.01)
    starts = np.tile(double_well.STARTS, 20)
    ends = np.asarray(double_well.run_entropy_sgd(jnp.asarray(starts)))[-1]
    assert np.mean(np.abs(ends - wide) < 0.3) > 0.98
    assert np.all(np.abs(ends[: double_well.STARTS.size] - wide) < 0.3)  # those in the picture


def test_the_picture_shows_the_local_entropy(double_well: Any) -> None:
    """Its curve by quadrature: the gradient is γ (x − ⟨x′⟩), and a high scope gives the loss."""
    x = jnp.linspace(-2, 2, 9)
    slope = jax.jit(jax.grad(lambda x, scope: double_well.negative_local_entropy(x, scope).sum()))
    for scope in (1.0, 30.0):
        exact = [exact_gradient(double_well.loss, np.array([point]), scope)[0] for point in x]
        np.testing.assert_allclose(slope(x, scope), exact, atol=2e-3)
    np.testing.assert_allclose(
        double_well.negative_local_entropy(x, 1e4), double_well.loss(x), atol=0.02
    )
