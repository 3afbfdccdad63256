"""Two replicas, each sharded over four devices, against `vmap` on one; printed as JSON.

{recipe: [largest deviation, what crosses from replica to replica: {operation: shapes}]}, with what
crosses counted once in the program, inside a branch or not. A program of its own, because the
number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import re

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["PJRT_NPROC"] = "32"  # threads: devices that wait for each other need one each

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from entropy_sgd_jax import diloco

UPDATES, L, REPLICAS, SHARDS = 2, 3, 2, 4
RANDOM = np.random.default_rng(0)
START = {
    "first": jnp.asarray(0.1 * RANDOM.normal(size=(32, 64)), jnp.float32),
    "bias": jnp.zeros(64),
    "last": jnp.asarray(0.1 * RANDOM.normal(size=(64, 4)), jnp.float32),
}
SPECS = {
    "first": PartitionSpec("replica", None, "fsdp"),
    "bias": PartitionSpec("replica"),
    "last": PartitionSpec("replica", "fsdp"),
}
BATCHES = (
    jnp.asarray(RANDOM.normal(size=(UPDATES, REPLICAS, L, 16, 32)), jnp.float32),
    jnp.asarray(RANDOM.normal(size=(UPDATES, REPLICAS, L, 16, 4)), jnp.float32),
)
MESH = jax.make_mesh((REPLICAS, SHARDS), ("replica", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def loss(params: Any, batch: Any) -> jax.Array:
    hidden = jnp.tanh(batch[0] @ params["first"] + params["bias"])
    return jnp.mean((hidden @ params["last"] - batch[1]) ** 2)


def make_step(tx: Any, streaming: bool) -> Any:
    """Of one replica: L gradients in scan mode, one in streaming mode."""

    def step(params: Any, state: Any, batches: Any) -> Any:
        if streaming:
            updates, state = tx.update(jax.grad(loss)(params, batches), state, params)
        else:
            updates, state = tx.update(None, state, params, grad_fn=jax.grad(loss), batches=batches)
        return optax.apply_updates(params, updates), state

    return step


def vmapped(tx: Any, step: Any, shared: bool, **where: Any) -> tuple[Any, Any]:
    """With the counters, which a stream branches on, `shared` by all replicas or one for each."""
    axes = jax.tree.map(lambda _: 0, jax.eval_shape(tx.init, START))
    if shared:
        axes = axes._replace(count=None, inner_count=None)
    init = jax.vmap(tx.init, out_axes=axes, **where)
    step = jax.vmap(step, in_axes=(0, axes, 0), out_axes=(0, axes), axis_name="replica", **where)
    return jax.jit(init), step


def shard_mapped(tx: Any, step: Any) -> tuple[Any, Any]:
    """The replicas by hand, the shards by XLA."""

    def own(function: Any) -> Any:
        def squeezed(*trees: Any) -> Any:
            mine = [jax.tree.map(lambda leaf: leaf[0], tree) for tree in trees]
            return jax.tree.map(lambda leaf: leaf[None], function(*mine))

        spec = PartitionSpec("replica")
        return jax.shard_map(
            squeezed, mesh=MESH, in_specs=spec, out_specs=spec, axis_names={"replica"}
        )

    return jax.jit(own(tx.init)), own(step)


def train(init: Any, step: Any, params: Any, batches: Any, streaming: bool) -> tuple[Any, str]:
    """The replicas' parameters after the last update, and the compiled step."""
    state = init(params)
    rounds = [jax.tree.map(lambda leaf, n=n: leaf[n], batches) for n in range(UPDATES)]
    if streaming:
        rounds = [
            jax.tree.map(lambda leaf, n=n: leaf[:, n], batch)
            for batch, n in itertools.product(rounds, range(L))
        ]
    step = jax.jit(step, out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, params), None))
    hlo = step.lower(params, state, rounds[0]).compile().as_text()
    for batch in rounds:
        params, state = jax.block_until_ready(step(params, state, batch))
    return params, hlo


def members(groups: str) -> np.ndarray:
    """The devices that exchange with each other, a group a row, from any of XLA's spellings."""
    devices = np.arange(REPLICAS * SHARDS)
    if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", groups):
        return np.array(json.loads(f"[{pairs[1]}]".replace("{", "[").replace("}", "]")))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{(.*?)\}", groups):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        over = re.findall(r"'(\w+)'", mesh[2])
        order = sorted(range(len(sizes)), key=lambda axis: list(sizes)[axis] in over)
        count = int(np.prod([sizes[name] for name in over]))
        return devices.reshape(list(sizes.values())).transpose(order).reshape(-1, count)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups):
        shape, sizes, order = (json.loads(f"[{part or ''}]") for part in iota.groups())
        return devices.reshape(sizes).transpose(order or None).reshape(shape)
    listed = re.search(r"replica_groups=\{(.*?\})\}", groups)
    return np.array(json.loads(f"[{listed[1]}]".replace("{", "[").replace("}", "]")))


def crossing(hlo: str) -> dict[str, list[str]]:
    """The shapes that are sent from replica to replica, by operation."""
    operations = (
        r"= (.*?) (all-reduce|all-to-all|all-gather|reduce-scatter|collective-\w+)(?:-start)?\("
    )
    found = collections.defaultdict(list)
    for line in hlo.splitlines():
        if match := re.search(operations, line):
            replicas = members(line) // SHARDS
            if (replicas != replicas[:, :1]).any():
                found[match[2]] += re.findall(r"\w+\[[\d,]*\]", match[1])
    return {name: sorted(shapes) for name, shapes in found.items()}


def deviation(one: Any, many: Any) -> float:
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *jax.device_get((one, many)))
    return max(jax.tree.leaves(gaps))


def main() -> None:
    replicas = jax.tree.map(lambda leaf: jnp.stack([leaf] * REPLICAS), START)
    placed = {
        name: jax.device_put(leaf, NamedSharding(MESH, SPECS[name]))
        for name, leaf in replicas.items()
    }
    found = {}
    for streaming, bits in ((False, None), (True, None), (False, 8)):
        tx = diloco(
            replica_axis_name="replica", inner_steps=L, streaming=streaming, bits=bits,
            inner_optimizer=optax.adamw(0.01),
        )  # fmt: skip
        step = make_step(tx, streaming)
        if not streaming:  # which takes the same steps
            one, _ = train(*vmapped(tx, step, False), replicas, BATCHES, streaming)
        ways = {}
        if bits is None:
            ways["vmap"] = vmapped(tx, step, streaming, spmd_axis_name="replica")
        if bits or streaming:
            ways["shard_map"] = shard_mapped(tx, step)
        for name, way in ways.items():
            split = PartitionSpec(None, "replica", None, "fsdp")
            batches = jax.device_put(BATCHES, NamedSharding(MESH, split))
            many, hlo = train(*way, placed, batches, streaming)
            assert many["first"].sharding.spec == SPECS["first"], many["first"].sharding
            mode = "streaming" if streaming else "scan"
            recipe = f"{name}, {mode}" + (f", {bits} bits" if bits else "")
            found[recipe] = [deviation(one, many), crossing(hlo)]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
