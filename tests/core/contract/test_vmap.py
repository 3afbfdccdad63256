"""Under `jax.vmap`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.core.contract.common import L, entropy_sgd_1, every_mode, noisy, quiet
from tests.core.helpers import assert_close, rows, training


@every_mode
def test_vmap_over_init_and_update(mode: str) -> None:
    def run(key: jax.Array, params: Any) -> Any:
        tx = noisy(entropy_sgd_1, mode, key=key)
        return training(tx, mode)(params, rows(2, L))

    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jnp.ones((3, 4))}
    together = jax.jit(jax.vmap(run))(keys, params)
    single = jax.jit(run)
    singles = [single(keys[i], {"w": params["w"][i]}) for i in range(3)]
    assert_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles))
    assert np.all(np.std(np.asarray(together[0]["w"]), axis=0) > 1e-3)


def test_vmap_over_hyperparameters() -> None:
    def run(scope: jax.Array) -> Any:
        return training(quiet(entropy_sgd_1, "scan", scope=scope), "scan")(jnp.ones(2), rows(2, L))

    scopes = jnp.array([0.0, 0.5, 1.0])
    together, _ = jax.jit(jax.vmap(run))(scopes)
    single = jax.jit(run)
    assert_close(together, jnp.stack([single(scope)[0] for scope in scopes]))
    assert np.all(np.std(np.asarray(together), axis=0) > 1e-3)
