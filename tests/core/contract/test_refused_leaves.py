"""Leaves that are refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import entropy_sgd
from tests.core.contract.common import L, entropy_sgd_1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, jnp.uint8, jnp.bool_])
def test_leaves_that_are_not_real_are_refused(dtype: Any, streaming: bool) -> None:
    tx = entropy_sgd_1(streaming=streaming)
    with pytest.raises(ValueError, match=r"params\['v'\].*real.*" + jnp.dtype(dtype).name):
        tx.init({"w": jnp.ones(2), "v": jnp.ones(2, dtype)})


def test_complex_parameters_by_the_advised_wrapper() -> None:
    tx = optax.contrib.split_real_and_imaginary(
        entropy_sgd(
            1.0,
            inner_steps=L,
            noise_scale=0,
            scope=0,
            inner_momentum=None,
            averaging=1,
            streaming=True,
        )
    )
    params = jnp.array([1 + 2j, -3j], jnp.complex64)
    update = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(L):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, 0.9**L * np.array([1 + 2j, -3j]), rtol=1e-5)
