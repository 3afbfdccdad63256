"""How many programs the first call of a measure compiles, in a process that has compiled none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_sgd_jax import flatness
from tests.flatness.cases import network, plain

NET = network(20, np.float32)
LOSS = plain(NET.loss)

MEASURES: dict[str, Callable[..., Any]] = {
    "top_eigenvalues": lambda p, b: flatness.top_eigenvalues(
        LOSS, p, b, 2, return_eigenvectors=True
    ),
    "hessian_trace": lambda p, b: flatness.hessian_trace(LOSS, p, b, num_probes=6),
    "hutchinson": lambda p, b: flatness.hessian_trace(
        LOSS, p, b, num_probes=3, method="hutchinson"
    ),
    "spectral_density": lambda p, b: flatness.spectral_density(LOSS, p, b, num_steps=5),
    "metropolis": lambda p, b: flatness.local_learning_coefficient(LOSS, p, b, num_steps=8),
    "sgld": lambda p, b: flatness.local_learning_coefficient(
        LOSS, p, b, num_steps=8, method="sgld"
    ),
}


def compiled(call: Callable[[], Any], caplog: Any) -> list[str]:
    """The names of the programs that are compiled, from an empty cache."""
    jax.clear_caches()
    caplog.clear()
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        jax.block_until_ready(call())
    lines = [record.getMessage().split() for record in caplog.records]
    return [words[1] for words in lines if words[0] == "Compiling"]


def test_the_counter_sees_every_program(caplog: Any) -> None:
    x = np.ones(3, np.float32)
    assert len(compiled(lambda: jnp.sin(jnp.cos(x)), caplog)) == 2
    assert len(compiled(lambda: jax.jit(lambda x: jnp.sin(jnp.cos(x)))(x), caplog)) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # of chains as short as these
@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_one_program_besides_its_key(name: str, caplog: Any) -> None:
    programs = compiled(lambda: MEASURES[name](NET.params, NET.batches), caplog)
    assert len(programs) == 2, programs
