"""Replicas that are themselves sharded: what they compute, and what goes from one to another."""

from __future__ import annotations

import json
import pathlib

import jax
import pytest

from tests.core.helpers import run_program

MEAN = ["f32[16,4]", "f32[16]", "f32[32,16]", "f32[]"]  # a device's shards, and the weights' sum


@pytest.mark.skipif(not hasattr(jax.lax, "pcast"), reason="jax.lax.pcast came with JAX 0.7")
def test_replicas_over_shards_exchange_the_outer_mean_and_scalars() -> None:
    found = json.loads(run_program(pathlib.Path(__file__).with_name("sharded_recipes.py")))
    assert {recipe: gap for recipe, (gap, _) in found.items() if not gap < 1e-6} == {}
    # Of the scalars each is the condition of a loop that ends a round.
    with_conditions = {"all-reduce": [*MEAN, *["pred[]"] * 3]}
    assert {recipe: exchanged for recipe, (_, exchanged) in found.items()} == {
        "vmap, scan": with_conditions,
        "vmap, streaming": with_conditions,
        "shard_map, streaming": {"all-reduce": MEAN},
        "shard_map, scan, 8 bits": {
            "all-to-all": ["f32[1,19,1]"] * 2 + ["s8[1,19,64]"] * 2,
            "all-gather": ["f32[2,19,1]", "f32[2]", "s8[2,19,64]"],
        },
    }
