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
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

from experiments.io.errors import InputError, OneLineParser, one_line_errors

with one_line_errors("many_hosts.py"):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from entropy_sgd_jax import entropy_sgd
    from experiments.checkpoints import CheckpointError, Checkpoints
    from experiments.data.images import load_digits

DEVICES = 4  # in all, where the processes are started from here
LAST_WORDS = 5  # seconds for the others to end when one has failed
INNER_STEPS, BATCH_SIZE, UPDATES, SAVE_EVERY = 10, 64, 60, 20


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


def take_part(folder: str | None, *place: Any) -> None:
    """Trains as one of several processes."""
    try:
        jax.distributed.initialize(*place)
        train(folder)
    except CheckpointError:  # which all of them raise, and the first one shows
        if jax.process_index() == 0:
            raise
        raise SystemExit(2) from None
    except BaseException as error:  # of this one alone: JAX would wait for the others to end too
        code = 2 if isinstance(error, InputError) else 1
        print(
            f"many_hosts.py: error: {error}" if code == 2 else traceback.format_exc(),
            file=sys.stderr,
            flush=True,
        )
        os._exit(code)


def start_processes(count: int, folder: str | None) -> int:
    """Runs this program `count` times on this machine; the exit code of the first that fails.

    None of them outlives the first failure, a signal to this process, or its end.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={DEVICES // count}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, __file__, "--join", f"localhost:{port}", str(count)]
    place = ["--checkpoints", folder] if folder else []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    processes: list[subprocess.Popen] = []
    try:
        for rank in range(count):
            command = [*program, str(rank), *place]
            # A pipe that nobody writes to, and that the system closes when this process ends.
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, start_new_session=True
                )
            )
        return first_failure(processes)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        for process in processes:
            process.kill()  # which a run with checkpoints survives
        for process in processes:
            process.wait()


def first_failure(processes: list[subprocess.Popen]) -> int:
    """Its exit code, or 0 once all have ended well; the others get a moment to report it too."""
    while not any(codes := [process.poll() for process in processes]):
        if None not in codes:
            return 0
        time.sleep(0.05)
    deadline = time.monotonic() + LAST_WORDS
    while None in [process.poll() for process in processes] and time.monotonic() < deadline:
        time.sleep(0.05)
    return abs(next(code for code in codes if code))


def end_with_parent() -> None:
    """Ends this process when the one that holds the other end of its standard input is gone."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    parser = OneLineParser(prog="many_hosts.py", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="to start here: 1, 2 or 4")
    parser.add_argument("--cluster", action="store_true", help="started by SLURM, Kubernetes, ...")
    parser.add_argument("--checkpoints", metavar="DIR", help="folder that all processes see")
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cluster:
        take_part(options.checkpoints)  # JAX finds coordinator, count and rank by itself
    elif options.join:
        end_with_parent()
        address, count, rank = options.join
        take_part(options.checkpoints, address, int(count), int(rank))
    elif options.processes in (1, 2, 4):
        raise SystemExit(start_processes(options.processes, options.checkpoints))
    else:
        raise InputError(f"--processes {options.processes} given, 1, 2 or 4 expected")


if __name__ == "__main__":
    with one_line_errors("many_hosts.py"):
        main()
