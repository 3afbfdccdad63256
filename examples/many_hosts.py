"""Entropy-SGD over several processes, each with devices and data of its own.

    python examples/many_hosts.py                    two processes of two devices, on this machine
    python examples/many_hosts.py --processes 1      the same training, one process of four devices
    srun python examples/many_hosts.py --cluster     under SLURM; likewise on Kubernetes and TPUs

Nothing in the training step knows about processes: batches are split over all devices of all of
them, and `jit` averages the gradients. Each process loads its own part of every batch, and only
the first one writes.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from experiments.io.errors import InputError, OneLineParser, one_line_errors

with one_line_errors("many_hosts.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from entropy_sgd_jax import entropy_sgd
    from experiments.checkpoints import Checkpoints
    from experiments.data.images import load_digits
    from experiments.harness import launcher

DEVICES = 4  # in all, if the processes are started from here
INNER_STEPS, BATCH_SIZE, UPDATES, SAVE_EVERY = 10, 64, 40, 20


def initial_params() -> Any:
    random = np.random.default_rng(0)

    def layer(inputs: int, outputs: int) -> Any:
        weights = random.normal(size=(inputs, outputs)) * (2 / inputs) ** 0.5
        return {"w": jnp.asarray(weights, jnp.float32), "b": jnp.zeros(outputs)}

    return [layer(64, 64), layer(64, 10)]


def logits(params: Any, images: jax.Array) -> jax.Array:
    hidden, out = params
    return jax.nn.relu(images @ hidden["w"] + hidden["b"]) @ out["w"] + out["b"]


def loss(params: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy in nats, over the whole batch on all devices."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


def train(folder: str | None) -> None:
    """The same program in every process."""
    mesh = Mesh(np.array(jax.devices()), "data")
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, "data"))  # axes: inner step, example
    tx = entropy_sgd(1.0, inner_steps=INNER_STEPS, reset_inner_state=False)

    def step(params: Any, state: Any, batches: Any) -> Any:
        updates, state = tx.update(None, state, params, grad_fn=jax.grad(loss), batches=batches)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, out_shardings=replicated, donate_argnums=(0, 1))

    dataset = load_digits()
    images = dataset.train_inputs.reshape(len(dataset.train_labels), -1)
    params = jax.device_put(initial_params(), replicated)
    start = (params, jax.jit(tx.init, out_shardings=replicated)(params))

    settings = {"inner_steps": INNER_STEPS, "batch_size": BATCH_SIZE}
    with Checkpoints(folder, settings) if folder else contextlib.nullcontext() as checkpoints:
        done, (params, state) = (checkpoints and checkpoints.restore(start)) or (0, start)
        for update in range(done, UPDATES):
            mine = my_part(update, len(images))
            batches = [
                jax.make_array_from_process_local_data(split, rows[mine])
                for rows in (images, dataset.train_labels)
            ]
            params, state = jax.block_until_ready(step(params, state, batches))
            if checkpoints and (update + 1) % SAVE_EVERY == 0:
                checkpoints.save(update + 1, (params, state))

    if jax.process_index() == 0:
        known = jax.device_get(params)
        test_images = dataset.test_inputs.reshape(len(dataset.test_labels), -1)
        wrong = logits(known, test_images).argmax(-1) != dataset.test_labels
        total = sum(float(np.abs(leaf).sum(dtype=np.float64)) for leaf in jax.tree.leaves(known))
        print(
            f"{jax.process_count()} processes, {jax.device_count()} devices: "
            f"test error {100 * wrong.mean():.2f} %, sum of |parameters| {total:.6f}"
        )


def my_part(update: int, examples: int) -> np.ndarray:
    """Indices of this process's rows of the L batches: all processes draw the same order."""
    order = np.random.default_rng([1, update]).permutation(examples)
    order = order[: INNER_STEPS * BATCH_SIZE].reshape(INNER_STEPS, BATCH_SIZE)
    return np.split(order, jax.process_count(), axis=1)[jax.process_index()]


def main() -> None:
    parser = OneLineParser(prog="many_hosts.py", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="to start here: 1, 2 or 4")
    parser.add_argument("--cluster", action="store_true", help="started by SLURM, Kubernetes, ...")
    parser.add_argument("--checkpoints", metavar="DIR", help="folder that all processes see")
    parser.add_argument("--join", nargs=3, default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processes not in (1, 2, 4):
        raise InputError(f"--processes {options.processes} given, 1, 2 or 4 expected")
    if options.cluster or options.join:
        launcher.take_part(lambda: train(options.checkpoints), *options.join)
    else:
        arguments = ["--checkpoints", options.checkpoints] if options.checkpoints else []
        raise SystemExit(launcher.start_processes(options.processes, DEVICES, arguments))


if __name__ == "__main__":
    with one_line_errors("many_hosts.py"):
        main()
