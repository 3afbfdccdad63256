"""Replicas under `shard_map` whose parameters come in replicated."""

from __future__ import annotations

import json
import pathlib

import jax
import pytest

from tests.core.helpers import run_program


@pytest.mark.skipif(not hasattr(jax.lax, "pcast"), reason="jax.lax.pcast came with JAX 0.7")
def test_replicated_parameters_give_what_vmap_gives() -> None:
    found = json.loads(run_program(pathlib.Path(__file__).with_name("replicated_recipes.py")))
    for refusal in found.pop("refusals"):
        for said in ("`grads`", "'replica'", "jax.lax.pcast(params, 'replica', to='varying')"):
            assert said in refusal
    assert found.pop("one is sick")
    assert max(found.pop("two on each device")) < 2e-6
    assert len(found) == 40
    for recipe, (gap, all_reduces) in found.items():
        # Integers may round to the next level where the last digits differ.
        assert gap < (1e-3 if "integers" in recipe else 2e-6), recipe
        if (
            "integers" not in recipe and "largest" not in recipe
        ):  # one an update; a stream's every step has the one of a cycle
            assert all_reduces == 2, recipe
