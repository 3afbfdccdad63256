"""Data parallel training equals one device on the same global batch, noise on."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import jax
import pytest


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="jax.shard_map came with JAX 0.6")
def test_every_recipe_equals_one_device() -> None:
    program = pathlib.Path(__file__).with_name("parallel_recipes.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    deviations = json.loads(done.stdout)
    assert len(deviations) == 21
    assert {name: gap for name, gap in deviations.items() if not gap < 1e-6} == {}
