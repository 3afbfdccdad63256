"""Data parallel training equals one device on the same global batch, noise on."""

from __future__ import annotations

import json
import pathlib

import jax
import pytest

from tests.core.helpers import run_program


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="jax.shard_map came with JAX 0.6")
def test_every_recipe_equals_one_device() -> None:
    program = pathlib.Path(__file__).with_name("parallel_recipes.py")
    deviations = json.loads(run_program(program))
    assert len(deviations) == 23
    assert {name: gap for name, gap in deviations.items() if not gap < 1e-6} == {}
