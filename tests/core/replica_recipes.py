"""Replicas on eight CPU devices against `vmap` on one, printed as JSON: {recipe: deviation}.

Four replicas, each data-parallel over two devices. A program of its own, because the number of
devices is fixed when JAX starts.
"""

from __future__ import annotations

import json
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from entropy_sgd_jax import anchor_params, diloco, parle, replica_average, scoping

UPDATES, L, REPLICAS, SHARDS = 3, 4, 4, 2
RANDOM = np.random.default_rng(0)
INPUTS = jnp.asarray(RANDOM.normal(size=(UPDATES, REPLICAS, L, 16, 8)), jnp.float32)
TARGETS = jnp.asarray(RANDOM.normal(size=(UPDATES, REPLICAS, L, 16)), jnp.float32)
START = {
    "w": jnp.asarray(RANDOM.normal(size=(REPLICAS, 8)), jnp.float32),
    "b": jnp.zeros(REPLICAS),
}
SAME_START = {"w": jnp.full((REPLICAS, 8), jnp.float32(0.3)), "b": jnp.zeros(REPLICAS)}


def loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(batch[0] @ params["w"] + params["b"]) - batch[1]) ** 2)


def make_parle(**arguments: Any) -> Any:
    return parle(
        0.7,
        replica_axis_name="replica",
        coupling=scoping(0.2, 0.5, 0.4),
        inner_steps=L,
        noise_scale=0.01,
        inner_transform=optax.trace(0.9, nesterov=True),
        reset_inner_state=False,
        **arguments,
    )


def make_diloco(**arguments: Any) -> Any:
    return diloco(replica_axis_name="replica", inner_steps=L, inner_learning_rate=0.01, **arguments)


def one_update(tx: Any, streaming: bool, data_axis: str | None, mean_loss: bool) -> Any:
    """L gradients of one replica, as a function of (params, state, inputs, targets)."""

    def grad_fn(params: Any, batch: Any) -> Any:
        def value(params: Any) -> jax.Array:
            own = loss(params, batch)
            return lax.pmean(own, data_axis) if mean_loss else own

        return jax.grad(value)(params)

    def update(params: Any, state: Any, inputs: Any, targets: Any) -> Any:
        if not streaming:
            updates, state = tx.update(
                None, state, params, grad_fn=grad_fn, batches=(inputs, targets)
            )
            return optax.apply_updates(params, updates), state

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            updates, state = tx.update(grad_fn(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, state), (inputs, targets))[0]

    return update


def train(step: Any, tx: Any, params: Any) -> Any:
    """The replicas' x after the last update."""
    state = jax.vmap(tx.init)(params)
    for inputs, targets in zip(INPUTS, TARGETS, strict=True):
        params, state = step(params, state, inputs, targets)
    return anchor_params(state, params)


def over_replicas_by_hand(update: Any) -> Any:
    """`update` of one replica, where `shard_map` leaves a leading axis of length one."""

    def squeezed(*trees: Any) -> Any:
        own = [jax.tree.map(lambda leaf: leaf[0], tree) for tree in trees]
        return jax.tree.map(lambda leaf: leaf[None], update(*own))

    return squeezed


def shard_mapped(update: Any, check_vma: bool) -> Any:
    mesh = Mesh(np.array(jax.devices()).reshape(REPLICAS, SHARDS), ("replica", "data"))
    own, split = PartitionSpec("replica"), PartitionSpec("replica", None, "data")
    return jax.jit(
        jax.shard_map(
            over_replicas_by_hand(update),
            mesh=mesh,
            in_specs=(own, own, split, split),
            out_specs=(own, own),
            check_vma=check_vma,
        )
    )


def pmapped(update: Any) -> Any:
    """Over four devices; the data axis stays whole, since `pmap` has one axis of devices."""
    return jax.pmap(update, axis_name="replica")


def average(params: Any) -> Any:
    return jax.vmap(lambda own: replica_average(own, "replica"), axis_name="replica")(params)


def main() -> None:
    found = {}
    for name, make, start in [
        ("parle", make_parle, START),
        ("diloco", make_diloco, SAME_START),
    ]:
        for streaming in (False, True):
            alone = make(streaming=streaming)
            split = make(streaming=streaming, batch_axis_name="data")
            one = train(
                jax.jit(jax.vmap(one_update(alone, streaming, None, False), axis_name="replica")),
                alone,
                start,
            )
            ends = {
                "pmap": train(pmapped(one_update(alone, streaming, None, False)), alone, start),
                "shard_map, check_vma=False": train(
                    shard_mapped(one_update(split, streaming, "data", False), False), split, start
                ),
                # Outside the optimizer JAX itself sums the gradients of replicated parameters.
                "shard_map, check_vma=True": train(
                    shard_mapped(one_update(split, streaming, "data", streaming), True),
                    split,
                    start,
                ),
            }
            for recipe, many in ends.items():
                gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, many)
                mode = "streaming" if streaming else "scan"
                found[f"{name}, {mode}, {recipe}"] = max(jax.tree.leaves(gaps))
            apart = jax.tree.map(lambda x: float(jnp.ptp(x, axis=0).max()), one)
            assert (max(jax.tree.leaves(apart)) == 0) == (name == "diloco"), (name, apart)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
