"""What the benchmarks refuse or leave out, and that their tables are written in any locale."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str, folder: pathlib.Path = ROOT, **environment: str) -> str:
    """What Python shows, in the folder of the benchmarks; errors too."""
    path = os.pathsep.join([str(ROOT), str(folder)])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT / "benchmarks",
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    return done.stdout


@pytest.mark.parametrize(("backend", "found"), [("cpu", True), ("gpu", False)])
def test_pytorch_is_compared_on_a_cpu_only(
    backend: str, found: bool, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "torch.py").touch()
    code = f"import jax; jax.default_backend = lambda: {backend!r}\n"
    code += "import pytorch; print(pytorch.FOUND)"
    assert run("-c", code, folder=tmp_path) == f"{found}\n"


@pytest.mark.parametrize("steps", ["5", "0"])
def test_steps_without_speed_are_refused(steps: str) -> None:
    shown = run("learning_coefficient.py", "--steps", steps)
    assert shown.endswith("error: --steps needs --speed; the values take 2,000\n")


def test_whatever_the_locale_a_table_is_written(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "a.json"
    log.write_text(json.dumps({"environment": {}, "results": {}}))
    code = "import pathlib, sys, report\n"
    code += "report.write(pathlib.Path(sys.argv[1]), lambda *_: '\\u03bcs')"
    ascii_only = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    run("-c", code, str(log), **ascii_only, PYTHONIOENCODING="utf-8")
    assert "μs" in log.with_suffix(".md").read_text(encoding="utf-8")
