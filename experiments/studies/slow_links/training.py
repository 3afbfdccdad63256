"""One training after another, or several at a time, from the plan to the log."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import track

from entropy_sgd_jax import anchor_params, diloco
from experiments.data.text import ALL, Text, load_characters
from experiments.harness import cores
from experiments.harness.logs import versions
from experiments.io.errors import InputError
from experiments.io.files import find, opened, whole_lines, write_whole
from experiments.studies.slow_links.plan import (
    BATCH,
    INNER_STEPS,
    LAYERS,
    LENGTH,
    MEASUREMENTS,
    ROUNDS,
    WIDTH,
    WIRES,
    Run,
    read,
    text_of,
)
from experiments.workloads.char_gpt import Network


def make_network(symbols: int) -> Any:
    return lambda rngs: Network(symbols, LENGTH, WIDTH, LAYERS, 0.0, rngs)


def make_optimizer(run: Run, steps: int) -> optax.GradientTransformationExtraArgs:
    rate = optax.warmup_cosine_decay_schedule(0, run.rate, steps // 20, steps, run.rate / 20)
    adamw = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=1 / steps)
    )
    if run.outer is None:
        return adamw
    wire = dict(WIRES.get(run.task.wire, {}))
    if count := wire.pop("fragments", None):
        wire |= {"fragments": functools.partial(fragments, count), "streaming": True}
    return diloco(
        *run.outer,
        replica_axis_name="replica",
        inner_steps=INNER_STEPS,
        inner_optimizer=adamw,
        **wire,
    )


def fragments(count: int, params: Any) -> Any:
    """Numbers them: neighbouring arrays, with about equally many parameters in each."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    middles = ends - [leaf.size / 2 for leaf in leaves]
    labels = [int(count * middle / ends[-1]) for middle in middles]
    return jax.tree.unflatten(structure, labels)


def one_round(run: Run, tx: Any, loss: Any, params: Any, state: Any, batches: Any) -> Any:
    """L gradients of one replica, on batches of shape (L, windows, symbols)."""
    if run.outer and "fragments" not in WIRES.get(run.task.wire, {}):
        updates, state = tx.update(None, state, params, grad_fn=jax.grad(loss), batches=batches)
        return optax.apply_updates(params, updates), state

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


def train(run: Run, text: Text) -> Iterator[tuple[int, float, float]]:
    """Yields (gradients, loss, seconds of a gradient since the last) at each measurement.

    All runs of a batch see the same windows.
    """
    rounds, replicas = ROUNDS // run.task.times, max(run.task.replicas, 1)
    between = rounds // MEASUREMENTS
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_network(text.symbols)(nnx.Rngs(0))))
    tx = make_optimizer(run, rounds * INNER_STEPS)
    key, symbols = jax.random.key(run.seed), jax.device_put(text.train)

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        """Mean cross-entropy in nats; windows have one symbol more than the network sees."""
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    params = nnx.state(make_network(text.symbols)(nnx.Rngs(run.seed)), nnx.Param)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * replicas), params)
    state = jax.vmap(tx.init)(params)
    replica_round = jax.vmap(functools.partial(one_round, run, tx, loss), axis_name="replica")

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def segment(params: Any, state: Any, first: jax.Array) -> Any:
        def body(index: jax.Array, carry: Any) -> Any:
            shape = (INNER_STEPS, BATCH * run.task.times, 1)
            key_of_round = jax.random.fold_in(key, first + index)
            starts = jax.random.randint(key_of_round, shape, 0, len(symbols) - LENGTH)
            windows = symbols[starts + jnp.arange(LENGTH + 1)]
            windows = windows.reshape(INNER_STEPS, replicas, -1, LENGTH + 1)
            return replica_round(*carry, windows.swapaxes(0, 1))

        return jax.lax.fori_loop(0, between, body, (params, state))

    whole = len(text.test) // (LENGTH + 1)
    if not whole:
        raise InputError(f"--text has {len(text.test)} symbols to judge by, too few for a window")
    judged = jnp.asarray(text.test[: whole * (LENGTH + 1)]).reshape(whole, -1)

    @jax.jit
    def judge(params: Any, state: Any) -> jax.Array:
        params, state = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (params, state))
        return loss(anchor_params(state, params) if run.outer else params, judged)

    for first in range(0, rounds, between):
        began = time.perf_counter()
        params, state = jax.block_until_ready(segment(params, state, jnp.int32(first)))
        seconds = time.perf_counter() - began
        done = (first + between) * INNER_STEPS
        yield done, float(judge(params, state)), seconds / (between * INNER_STEPS)


def follow(run: Run, path: str) -> dict[str, Any]:
    """The record of a run; the seconds of a gradient are the median without the first segment.

    Those in the stored log include the time for judging, a seventh more.
    """
    text = load_characters(None, path, ALL if run.judged == "validation" else 0)
    gradients, losses, seconds = zip(*train(run, text), strict=True)
    parameters = nnx.eval_shape(lambda: nnx.state(make_network(text.symbols)(nnx.Rngs(0))))
    return {
        "run": run,
        "gradients": gradients,
        "loss": [round(loss, 5) for loss in losses],
        "seconds of a gradient": float(f"{np.median(seconds[1:]):.3g}"),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        "text": checksum(path),
        "versions": versions(),
    }


def checksum(text: str) -> str:
    """The SHA-256 of what is in the file, plain or packed."""
    with opened(find(pathlib.Path(), text)) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run_all(runs: list[Run], text: str, log: pathlib.Path, jobs: int) -> None:
    """Those that are not in the log yet, `jobs` at a time, each on one core."""
    load_characters(None, text)  # refused here, before any starts
    own, known = checksum(text), read(log)
    if any(text_of(record) != own for record in known.values()):
        raise InputError(f"--text {text} is not the text of {log}: give another --log")
    kept = "".join(f"{line}\n" for line in whole_lines(log))
    write_whole(log, kept)  # a line that a crash has cut would spoil the next
    missing = [run for run in runs if run not in known]
    spawned = multiprocessing.get_context("spawn")
    free = spawned.SimpleQueue()
    for core in cores.for_jobs(jobs):
        free.put(core)
    with concurrent.futures.ProcessPoolExecutor(jobs, spawned, pin_to_next, (free,)) as pool:
        started = [pool.submit(follow, run, text) for run in missing]
        for one in track(concurrent.futures.as_completed(started), "trainings", total=len(missing)):
            with log.open("a") as stream:
                stream.write(json.dumps(one.result()) + "\n")


def pin_to_next(free: Any) -> None:
    """Keeps a process on the next core."""
    cores.pin(free.get())
