"""Bytes that each device exchanges for each gradient evaluation, counted in compiled programs.

    python benchmarks/communication.py

Eight devices train one network in several ways. The compiled program of each is read, and every
collective in it is counted with the rounds of the loops around it. An all-reduce counts twice its
size, since it is a reduce-scatter and an all-gather; an all-to-all and an all-gather count once.
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
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from entropy_sgd_jax import diloco, entropy_sgd, parle

DEVICES, WIDTHS, BATCH = 8, (64, 256, 10), 32
BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}
BYTES |= {"s8": 1, "u8": 1, "u16": 2}
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
PASSES = {"all-reduce": 2, "all-to-all": 1, "all-gather": 1}


def bytes_exchanged(hlo: str) -> int:
    """The bytes that one run of the program exchanges on each device."""
    bodies = {
        match[2]: (bool(match[1]), match[3])
        for match in re.finditer(r"^(ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", hlo, re.M | re.S)
    }

    def count(name: str) -> int:
        total = 0
        for line in bodies[name][1].splitlines():
            if match := re.search(r"= (.*?) (all-reduce|all-to-all|all-gather)(?:-start)?\(", line):
                exchanged = sum(size(*shape) for shape in SHAPE.findall(match[1]))
                total += PASSES[match[2]] * exchanged
            elif match := re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                if inside := count(match[2]):
                    total += inside * int(rounds[1] if rounds else runs_once(match[1]))
            elif match := re.search(r" (?:call|fusion)\(.*(?:to_apply|calls)=%?([\w.-]+)", line):
                total += count(match[1])
            elif " conditional(" in line:
                branches = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line)
                listed = re.search(r"branch_computations=\{([^}]*)\}", line)
                branches += re.findall(r"[\w.-]+", listed[1]) if listed else []
                total += max(map(count, branches))  # the branch in which they meet
        return total

    def runs_once(condition: str) -> bool:
        """A loop of zero rounds or one: its condition is a boolean that it carries along."""
        if not re.search(r"ROOT [^\n]*= pred\[\] get-tuple-element\(", bodies[condition][1]):
            raise ValueError(f"a collective in a loop of unknown length: {bodies[condition][1]}")
        return True  # the round in which devices meet

    (entry,) = (name for name, (is_entry, _) in bodies.items() if is_entry)
    return count(entry)


def size(dtype: str, dimensions: str) -> int:
    return BYTES[dtype] * int(np.prod([int(n) for n in dimensions.split(",") if n]))


def network() -> Any:
    return [
        {"w": jnp.ones((inputs, outputs)), "b": jnp.zeros(outputs)}
        for inputs, outputs in itertools.pairwise(WIDTHS)
    ]


def loss(params: Any, batch: jax.Array) -> jax.Array:
    for layer in params:
        batch = jnp.tanh(batch @ layer["w"] + layer["b"])
    return jnp.mean(batch**2)


def sgd_step(tx: Any, params: Any, state: Any, batches: jax.Array) -> Any:
    """As many updates as there are batches, one after each gradient."""

    def one(carry: Any, batch: jax.Array) -> Any:
        params, state = carry
        grads = jax.lax.pmean(jax.grad(loss)(params, batch), "devices")
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(one, (params, state), batches)[0]


def entropic_step(tx: Any, params: Any, state: Any, batches: jax.Array) -> Any:
    updates, state = tx.update(None, state, params, grad_fn=jax.grad(loss), batches=batches)
    return optax.apply_updates(params, updates), state


def streaming_step(tx: Any, params: Any, state: Any, batches: jax.Array) -> Any:
    """One gradient; every L-th of these steps takes the round that is counted."""
    updates, state = tx.update(jax.grad(loss)(params, batches[0]), state, params)
    return optax.apply_updates(params, updates), state


def compiled(step: Any, tx: Any, inner_steps: int) -> str:
    mesh = Mesh(np.array(jax.devices()), "devices")
    params = network()
    batches = jnp.ones((inner_steps, DEVICES * BATCH, WIDTHS[0]))
    mapped = jax.shard_map(
        lambda *arguments: step(tx, *arguments),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(None, "devices")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(mapped).lower(params, tx.init(params), batches).compile().as_text()


def count_all(inner_steps: int) -> dict[str, float]:
    """Bytes exchanged on each device for each gradient evaluation."""
    local = {"replica_axis_name": "devices", "inner_steps": inner_steps}
    ways = {
        "data-parallel SGD": (sgd_step, optax.sgd(0.1, 0.9)),
        "data-parallel Entropy-SGD": (
            entropic_step,
            entropy_sgd(1.0, inner_steps=inner_steps, batch_axis_name="devices"),
        ),
        "Parle": (entropic_step, parle(0.1, coupling=1.0, **local)),
        "DiLoCo": (entropic_step, diloco(inner_learning_rate=1e-3, **local)),
        "DiLoCo, streaming": (
            streaming_step,
            diloco(inner_learning_rate=1e-3, streaming=True, **local),
        ),
    }
    for fewer in ({"bits": 8}, {"bits": 4}, {"top_k": 64}, {"top_k": 64, "bits": 4}):
        name = ", ".join(f"{argument}={value}" for argument, value in fewer.items())
        tx = diloco(inner_learning_rate=1e-3, **fewer, **local)
        ways[f"DiLoCo, {name}"] = (entropic_step, tx)
    return {
        name: bytes_exchanged(compiled(step, tx, inner_steps)) / inner_steps
        for name, (step, tx) in ways.items()
    }


def main() -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(network()))
    print(f"{parameters:,} parameters, {4 * parameters:,} bytes; bytes exchanged on each device")
    print("for each gradient evaluation, and as a share of data-parallel SGD's:\n")
    for inner_steps in (20, 500):
        found = count_all(inner_steps)
        print(f"L = {inner_steps}")
        for name, number in found.items():
            share = number / found["data-parallel SGD"]
            print(f"  {name:28s}{number:12,.1f}   {share:8.4f} = 1/{1 / share:.0f}")
        print(json.dumps({"inner_steps": inner_steps, "bytes": found}))


if __name__ == "__main__":
    main()
