"""The study of coefficients at equal training loss."""

from __future__ import annotations

import json
import pathlib

import pytest

from experiments.studies import complexity
from tests.experiments.test_longer_studies import run


def test_mnist_without_its_folder_is_one_line(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, "complexity", "--dataset", "mnist")
    assert done.returncode == 2
    assert done.stderr.startswith("complexity.py: error: --dataset mnist needs --data-dir")


def test_what_was_measured_is_kept_though_it_cannot_be_shown(tmp_path, monkeypatch) -> None:
    """As λ in some locales."""

    def fail(*_):
        raise UnicodeEncodeError("ascii", "λ", 0, 1, "ordinal not in range(128)")

    own = {"measure": lambda *_: {}, "draw": lambda *_: None, "table_of": fail}
    for name, replaced in own.items():
        monkeypatch.setattr(complexity, name, replaced)
    out = tmp_path / "complexity.json"
    monkeypatch.setattr("sys.argv", ["complexity.py", "--out", str(out)])
    with pytest.raises(UnicodeEncodeError):
        complexity.main()
    assert list(json.loads(out.read_text())) == ["digits"]


@pytest.mark.slow
def test_coefficients_at_equal_loss(tmp_path: pathlib.Path) -> None:
    short = "--seeds 2 --steps 100 --chains 2 --scopes 100 --target 0.01 --effective-epochs 100"
    done = run(tmp_path, "complexity", *short.split())
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "complexity.json").read_text())["digits"]
    assert found["settings"]["target"] == 0.01
    assert list(found["optimizers"]) == ["SGD", "Adam", "SAM", "Entropy-SGD", "Parle, 3 replicas"]
    for values in found["optimizers"].values():
        assert all(0.005 < loss < 0.01 for loss in values["training loss"])
        coefficients = values["coefficients"]["100"]
        assert len(coefficients["value"]) == 2
        assert any(map(bool, coefficients["doubts"]))  # 100 steps are too few
    assert "less SGD's" in done.stdout
    assert (tmp_path / "complexity.png").stat().st_size > 10_000
