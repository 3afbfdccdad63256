"""Data parallel on eight CPU devices against one device, printed as JSON: {recipe: deviation}.

A program of its own, because the number of devices is fixed when JAX starts.
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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from entropy_sgd_jax import anchor_params, entropy_sgd

UPDATES, L, DEVICES = 3, 4, 8
RANDOM = np.random.default_rng(0)
INPUTS = jnp.asarray(RANDOM.normal(size=(UPDATES, L, 16, 8)), jnp.float32)
TARGETS = jnp.asarray(RANDOM.normal(size=(UPDATES, L, 16)), jnp.float32)
START = {"w": jnp.full((8,), jnp.float32(0.3)), "b": jnp.zeros(())}


def loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(batch[0] @ params["w"] + params["b"]) - batch[1]) ** 2)


def local_grad(params: Any, batch: Any) -> Any:
    return jax.grad(loss)(params, batch)


def averaged_grad(params: Any, batch: Any) -> Any:
    return lax.pmean(jax.grad(loss)(params, batch), "d")


def grad_of_the_mean(params: Any, batch: Any) -> Any:
    return jax.grad(lambda params: lax.pmean(loss(params, batch), "d"))(params)


def recipe(
    streaming: bool,
    axis: str | None,
    outside: Any = local_grad,
    wrapped: bool = False,
    grad_fn: Any = None,
) -> Any:
    """`outside` takes the gradients that are passed in, `grad_fn` those inside the optimizer."""
    grad_fn = grad_fn or outside
    tx = entropy_sgd(
        0.7, 0.9, inner_steps=L, noise_scale=0.01, streaming=streaming, batch_axis_name=axis
    )
    if wrapped:
        steps = optax.MultiSteps(optax.chain(tx, optax.scale(0.9)), 2)
        tx = optax.GradientTransformationExtraArgs(steps.init, steps.update)
        tx = optax.apply_if_finite(tx, 3)

    def update(params: Any, state: Any, inputs: Any, targets: Any) -> Any:
        if not streaming:
            # The wrappers look at the gradients, and so do not take None for them.
            grads = outside(params, (inputs[0], targets[0])) if wrapped else None
            batches = (inputs[1:], targets[1:]) if wrapped else (inputs, targets)
            updates, state = tx.update(grads, state, params, grad_fn=grad_fn, batches=batches)
            return optax.apply_updates(params, updates), state

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            updates, state = tx.update(outside(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, state), (inputs, targets))[0]

    return tx, update


def train(tx: Any, update: Any, params: Any, state: Any, batches: Any) -> Any:
    for inputs, targets in batches:
        params, state = update(params, state, inputs, targets)
    return params, state


def end(tx: Any, update: Any) -> Any:
    batches = zip(INPUTS, TARGETS, strict=True)
    params, state = train(tx, jax.jit(update), START, tx.init(START), batches)
    return anchor_params(state, params)


def shard_mapped(tx: Any, update: Any, mesh: Mesh, check_vma: bool) -> Any:
    same, split = PartitionSpec(), PartitionSpec(None, "d")
    specs = dict(in_specs=(same, same, split, split), out_specs=(same, same))
    return end(tx, jax.shard_map(update, mesh=mesh, check_vma=check_vma, **specs))


def pmapped(tx: Any, update: Any) -> Any:
    def copies(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), tree)

    split = [
        (x.reshape(L, DEVICES, -1, 8).swapaxes(0, 1), y.reshape(L, DEVICES, -1).swapaxes(0, 1))
        for x, y in zip(INPUTS, TARGETS, strict=True)
    ]
    mapped = jax.pmap(update, axis_name="d")
    params, state = train(tx, mapped, copies(START), copies(tx.init(START)), split)
    apart = max(float(jnp.abs(leaf - leaf[0]).max()) for leaf in jax.tree.leaves(params))
    assert apart == 0, f"replicas are {apart} apart"
    return anchor_params(*(jax.tree.map(lambda leaf: leaf[0], tree) for tree in (state, params)))


def sharded(tx: Any, update: Any, mesh: Mesh) -> Any:
    """Parameters, x′ and μ split over the devices, as in FSDP, and the batches too."""

    def put(leaf: jax.Array) -> jax.Array:
        spec = PartitionSpec("d") if leaf.shape == (8,) else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    params = jax.tree.map(put, START)
    split = NamedSharding(mesh, PartitionSpec(None, "d"))
    batches = [jax.device_put(pair, split) for pair in zip(INPUTS, TARGETS, strict=True)]
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        params, state = train(tx, jax.jit(update), params, state, batches)
        assert state.langevin_iterate["w"].sharding.spec == PartitionSpec("d")
        return jax.device_get(anchor_params(state, params))


def gap(one: Any, many: Any) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, many)))


def main() -> None:
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))
    explicit = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Explicit,))
    found = {}
    for mode in ("scan", "streaming"):
        streaming = mode == "streaming"
        one = end(*recipe(streaming, None))
        # With check_vma, a gradient taken outside must be of the mean loss: JAX sums it.
        outside = grad_of_the_mean if streaming else local_grad
        ends = {
            "pmap": pmapped(*recipe(streaming, "d")),
            "shard_map, check_vma=False": shard_mapped(*recipe(streaming, "d"), mesh, False),
            "shard_map, check_vma=True": shard_mapped(*recipe(streaming, "d", outside), mesh, True),
            "pmap, averaged already": pmapped(*recipe(streaming, "d", averaged_grad)),
            "shard_map, check_vma=False, averaged already": shard_mapped(
                *recipe(streaming, "d", averaged_grad), mesh, False
            ),
            "jit, sharded parameters": sharded(*recipe(streaming, None), mesh),
            "jit, sharded parameters, explicit mesh": sharded(*recipe(streaming, None), explicit),
        }
        if streaming:
            averaged = recipe(streaming, "d", grad_of_the_mean)
            ends["pmap, gradient of the mean"] = pmapped(*averaged)
            ends["shard_map, check_vma=False, gradient of the mean"] = shard_mapped(
                *averaged, mesh, False
            )
        else:
            ends["shard_map, check_vma=True, averaged already"] = shard_mapped(
                *recipe(streaming, "d", averaged_grad), mesh, True
            )
        found |= {f"{mode}, {name}": gap(one, many) for name, many in ends.items()}

        # Inside chain, MultiSteps and apply_if_finite; the gradient is taken outside in both modes.
        one = end(*recipe(streaming, None, wrapped=True))
        ends = {
            "pmap": pmapped(*recipe(streaming, "d", wrapped=True)),
            "shard_map, check_vma=False": shard_mapped(
                *recipe(streaming, "d", wrapped=True), mesh, False
            ),
            "shard_map, check_vma=True": shard_mapped(
                *recipe(streaming, "d", grad_of_the_mean, True, local_grad), mesh, True
            ),
        }
        found |= {f"{mode}, {name}, wrapped": gap(one, many) for name, many in ends.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
