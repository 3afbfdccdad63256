"""A run with checkpoints that a test kills and starts again: FOLDER STEPS PAUSE [PLACE].

Trains a small network in scan and in streaming mode, on one device and with parameters split over
several, all side by side, one update of each at every step, and a pause of this many seconds.
Prints "training" when it starts to, and at the end "ended", a digest of every bit that it holds,
and the sum of all parameters. PLACE is address, count and rank, if it is one of several processes;
these hold only what is split over the devices of all.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from entropy_sgd_jax import entropy_adam, entropy_sgd
from experiments.checkpoints import Checkpoints

if PLACE := sys.argv[4:]:  # before anything is computed
    jax.distributed.initialize(PLACE[0], int(PLACE[1]), int(PLACE[2]))

L, WIDTH, SAVE_EVERY = 4, 64, 3  # so that checkpoints lie within the cycles of streaming mode

SCAN = entropy_sgd(0.5, 0.5, inner_steps=L, inner_learning_rate=0.003, reset_inner_state=False)
STREAMING = entropy_adam(
    0.001, inner_steps=L, inner_learning_rate=0.003, streaming=True, diagnostics=True
)


def loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(batch @ params["w"]) @ params["v"] - batch[:, 0]) ** 2)


grad_fn = jax.grad(loss)


def advance(tx: Any, index: jax.Array, params: Any, state: Any) -> Any:
    batches = jax.random.normal(jax.random.fold_in(jax.random.key(0), index), (L, 16, WIDTH))
    if tx is SCAN:
        updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
    else:
        updates, state = tx.update(grad_fn(params, batches[0]), state, params)
    return optax.apply_updates(params, updates), state


def start(tx: Any, split: bool) -> Any:
    """Parameters and state on the first device, or split over all of them."""
    mesh = Mesh(np.array(jax.devices() if split else jax.devices()[:1]), "d")

    def make() -> Any:
        params = {"w": jnp.eye(WIDTH), "v": jnp.full(WIDTH, jnp.float32(0.1))}
        return params, tx.init(params)

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = PartitionSpec("d") if leaf.shape[:1] == (WIDTH,) else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.jit(make, out_shardings=jax.tree.map(place, jax.eval_shape(make)))()


def digest(runs: Any) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(runs):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        leaf = jax.random.key_data(leaf) if is_key else leaf
        found.update(multihost_utils.process_allgather(leaf, tiled=True).tobytes())
    return found.hexdigest()


def main() -> None:
    folder, steps, pause = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    runs, step = {}, {}
    for mode, tx in [("scan", SCAN), ("streaming", STREAMING)]:
        for split in (True,) if PLACE else (False, True):
            name = f"{mode}, {'split' if split else 'whole'}"
            runs[name] = start(tx, split)
            # The same shardings out as in: else XLA chooses, and a resumed run would sum the same
            # numbers in another order.
            shardings = jax.tree.map(lambda leaf: leaf.sharding, runs[name])
            advance_tx = functools.partial(advance, tx)
            step[name] = jax.jit(advance_tx, out_shardings=shardings)
    with Checkpoints(folder, {"inner_steps": L, "width": WIDTH}) as checkpoints:
        done, runs = checkpoints.restore(runs) or (0, runs)
        for name, run in runs.items():
            step[name].lower(jnp.int32(0), *run).compile()
        print("training", done, flush=True)
        for index in range(done, steps):
            for name, run in runs.items():
                # One at a time: CPU devices that wait for each other share a pool of threads.
                runs[name] = jax.block_until_ready(step[name](jnp.int32(index), *run))
            time.sleep(pause)
            if (index + 1) % SAVE_EVERY == 0:
                checkpoints.save(index + 1, runs)
    print("ended", digest(runs), sum(float(jnp.sum(runs[name][0]["w"])) for name in sorted(runs)))


if __name__ == "__main__":
    main()
