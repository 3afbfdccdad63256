"""Replicas whose parameters and state come into `shard_map` replicated, against `vmap`, as JSON.

{recipe: [largest deviation, all-reduces of the compiled program]}; the program has the first update
or gradient, and a loop over the others. A program of its own, because the number of devices is
fixed when JAX starts.
"""

from __future__ import annotations

import itertools
import json
import os
import re

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from entropy_sgd_jax import (
    anchor_params,
    average_over_replicas,
    diloco,
    elastic_sgd,
    entropic,
    parle,
    replica_average,
)

UPDATES, L, REPLICAS = 2, 4, 8
START = {"w": jnp.zeros(3), "b": jnp.ones(())}
DATA = jnp.arange(8.0)
BYTES = {"diloco in integers": {"bits": 8}, "diloco of the largest": {"top_k": 2}}
AS_USUAL = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}
SHARED, OWN = PartitionSpec(), PartitionSpec("replica")


def loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((params["w"] * params["b"] - batch) ** 4) / 100


grad_fn = jax.grad(loss)


def make(name: str, streaming: bool) -> Any:
    common = dict(replica_axis_name="replica", inner_steps=L, streaming=streaming)
    if name.startswith("diloco"):
        return diloco(inner_optimizer=optax.adamw(0.05), **BYTES.get(name, {}), **common)
    return parle(0.5, coupling=0.5, noise_scale=0.1, **common)


def train(tx: Any, streaming: bool, params: Any, state: Any, datum: Any, updates: int) -> Any:
    """The mean of the replicas' x, and each one's own."""

    def scan(carry: Any, _: None) -> Any:
        params, state = carry
        batches = jnp.broadcast_to(datum, (L,))
        updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
        return (optax.apply_updates(params, updates), state), None

    def stream(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(grad_fn(params, datum), state, params)
        return (optax.apply_updates(params, updates), state), None

    # The first by itself: what varies over the mesh may change with it.
    step = stream if streaming else scan
    carry, _ = step((params, state), None)
    carry, _ = jax.lax.scan(step, carry, length=updates * (L if streaming else 1) - 1)
    x = anchor_params(carry[1], carry[0])
    return replica_average(x, "replica"), x


def deviation(a: Any, b: Any) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), a, b)))


def all_reduces(hlo: str) -> int:
    return len(re.findall(r" all-reduce(?:-start)?\(", hlo))


def refusal(tx: Any, mesh: Any, scanned: bool = False) -> str:
    """What a gradient is told that JAX has summed over the replicas."""

    def step(params: Any, state: Any, data: Any) -> Any:
        if scanned:
            call = dict(grad_fn=grad_fn, batches=jnp.broadcast_to(data, (L,)))
            return tx.update(None, state, params, **call)[0]
        return tx.update(grad_fn(params, data[0]), state, params)[0]

    mapped = jax.shard_map(step, mesh=mesh, in_specs=(SHARED, SHARED, OWN), out_specs=SHARED)
    try:
        jax.eval_shape(mapped, START, tx.init(START), DATA)
    except ValueError as error:
        return str(error)
    return "nothing"


def one_is_sick(mesh: Any) -> bool:
    """Whether the others go on together, sending their largest numbers.

    Compiled as users do: where this ends in a segmentation fault, it is XLA's.
    """
    start = {"w": jnp.linspace(0, 1, 70), "b": jnp.ones(())}
    tx = diloco(
        replica_axis_name="replica", inner_steps=L, inner_optimizer=optax.adamw(0.05),
        streaming=True, top_k=64,
    )  # fmt: skip

    def train(data: Any) -> Any:
        def step(carry: Any, number: jax.Array) -> Any:
            params, state = carry
            sick = (data[0] == 1) & (number == 2)
            grads = jax.tree.map(lambda x: jnp.where(sick, jnp.nan, x - data[0]), params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(5 * L))
        return jax.tree.map(lambda leaf: leaf[None], anchor_params(state, params))

    specs = dict(in_specs=OWN, out_specs=OWN, check_vma=False)
    step = jax.jit(jax.shard_map(train, mesh=mesh, **specs), compiler_options=AS_USUAL)
    leaves = [leaf for _ in range(20) for leaf in jax.tree.leaves(step(DATA))]
    return all(bool((leaf == leaf[:1]).all() & jnp.isfinite(leaf).all()) for leaf in leaves)


def two_on_each_device(fewer: dict[str, int]) -> float:
    """How far replicas of a `vmap` on each device get from the same in one `vmap`."""
    mesh = jax.make_mesh((REPLICAS // 2,), ("device",), axis_types=(AxisType.Auto,))

    def train(axis: Any, datum: Any) -> Any:
        inner = optax.sgd(0.05)
        tx = diloco(replica_axis_name=axis, inner_steps=L, inner_optimizer=inner, **fewer)
        call = dict(grad_fn=grad_fn, batches=jnp.broadcast_to(datum, (L,)))
        return tx.update(None, tx.init(START), START, **call)[0]

    alone = jax.vmap(lambda datum: train("replica", datum), axis_name="replica")
    inside = jax.vmap(lambda datum: train(("device", "local"), datum), axis_name="local")
    own = PartitionSpec("device")
    nested = jax.shard_map(inside, mesh=mesh, in_specs=own, out_specs=own, check_vma=False)
    return deviation(jax.jit(nested)(DATA), jax.jit(alone)(DATA))


def main() -> None:
    found: dict[str, Any] = {}
    names = ("diloco", "parle", *BYTES)
    for name, streaming in itertools.product(names, (False, True)):
        tx = make(name, streaming)
        one = jax.vmap(
            lambda datum, tx=tx, streaming=streaming: train(
                tx, streaming, START, tx.init(START), datum, UPDATES
            ),
            axis_name="replica",
            out_axes=(None, 0),
        )
        expected, replicas = jax.jit(one)(DATA)
        apart = max(float(jnp.ptp(leaf, axis=0).max()) for leaf in jax.tree.leaves(replicas))
        assert (apart == 0) == (name != "parle"), (name, apart)
        for kind, check_vma, inside in itertools.product(AxisType, (False, True), (False, True)):
            if kind is AxisType.Manual or (kind is AxisType.Explicit and (inside or name in BYTES)):
                continue
            mesh = jax.make_mesh((REPLICAS,), ("replica",), axis_types=(kind,))

            def run(params: Any, state: Any, data: Any, updates: int = UPDATES) -> Any:
                if streaming and check_vma:  # noqa: B023
                    params = jax.lax.pcast(params, "replica", to="varying")
                if inside:  # noqa: B023
                    state = tx.init(params)  # noqa: B023
                return train(tx, streaming, params, state, data[0], updates)[0]  # noqa: B023

            specs = dict(in_specs=(SHARED, SHARED, OWN), out_specs=SHARED, check_vma=check_vma)
            step = jax.jit(jax.shard_map(run, mesh=mesh, **specs))
            with jax.set_mesh(mesh):
                data = jax.device_put(DATA, NamedSharding(mesh, OWN))
                program = step.lower(START, tx.init(START), data).compile()
                gap = deviation(program(START, tx.init(START), data), expected)
            mode = "streaming" if streaming else "scan"
            where = "init inside" if inside else "init outside"
            recipe = f"{name}, {mode}, {kind.name}, check_vma={check_vma}, {where}"
            # Less one for the mean at the end.
            found[recipe] = [gap, all_reduces(program.as_text()) - 1]
    mesh = jax.make_mesh((REPLICAS,), ("replica",), axis_types=(AxisType.Auto,))
    mean = average_over_replicas("replica")
    found["refusals"] = [
        refusal(make("diloco", True), mesh),
        refusal(optax.chain(mean, optax.sgd(1.0)), mesh),
        refusal(elastic_sgd(0.1, replica_axis_name="replica", coupling=0.1), mesh),
        refusal(entropic(optax.chain(mean, optax.sgd(1.0)), inner_steps=L), mesh, scanned=True),
    ]
    found["two on each device"] = [*map(two_on_each_device, ({}, *BYTES.values()))]
    found["one is sick"] = one_is_sick(mesh)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
