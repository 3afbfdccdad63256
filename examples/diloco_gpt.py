"""A character GPT in 4 replicas that meet once in 20 gradients, against data-parallel AdamW.

    python examples/diloco_gpt.py
    python examples/diloco_gpt.py --text shakespeare.txt

Both train on the same batches, by default of Python's own reference. The figure has the loss
against gradients and against bytes communicated. Replicas are a `vmap` here, so that one machine
will do; on devices of their own the same step runs under `shard_map`. With tuned settings, more
replicas and seeds it is a study: `python -m experiments.studies.slow_links --text FILE`.
"""

import argparse
import functools
import pathlib
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from entropy_sgd_jax import diloco

LENGTH, WIDTH, LAYERS, HEADS = 64, 96, 2, 3
BATCH, INNER_STEPS = 32, 20  # windows in each gradient of all replicas together, and L


class Block(nnx.Module):
    """Causal attention, then two layers for each position by itself."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """All of one width."""
        self.norms = nnx.List(nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.expand = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.contract = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Adds both to `hidden`."""
        mask = nnx.make_causal_mask(hidden[..., 0])
        hidden += self.attention(self.norms[0](hidden), mask=mask)
        return hidden + self.contract(nnx.gelu(self.expand(self.norms[1](hidden))))


class GPT(nnx.Module):
    """Vectors of symbols and positions, blocks, logits of the next symbol."""

    def __init__(self, symbols: int, rngs: nnx.Rngs) -> None:
        """For a vocabulary of this many symbols."""
        self.symbols = nnx.Embed(symbols, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List(Block(rngs) for _ in range(LAYERS))
        self.last = nnx.Linear(WIDTH, symbols, rngs=rngs)

    def __call__(self, symbols: jax.Array) -> jax.Array:
        """Of shape (windows, length, symbols)."""
        hidden = self.symbols(symbols) + self.positions(jnp.arange(LENGTH))
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(hidden)


def train(replicas: int, text: np.ndarray, steps: int) -> tuple[list[int], list[float], int]:
    """Gradients and test losses once in a while, and the number of weights; one replica is AdamW
    on whole batches, several are DiLoCo, each on its share of every batch.
    """
    network = GPT(text.max() + 1, nnx.Rngs(0))
    graphdef, params = nnx.split(network, nnx.Param)
    rate = optax.warmup_cosine_decay_schedule(0, 4e-3, steps // 20, steps)
    tx = optax.adamw(rate)
    if replicas > 1:
        tx = diloco(
            momentum=0.5, replica_axis_name="replica", inner_steps=INNER_STEPS,
            inner_learning_rate=rate, streaming=True,
        )  # fmt: skip

    def loss(params: nnx.State, windows: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    def step(params: nnx.State, state: tuple, windows: jax.Array) -> tuple:
        updates, state = tx.update(jax.grad(loss)(params, windows), state, params)
        return optax.apply_updates(params, updates), state

    @functools.partial(jax.jit, donate_argnums=0)
    def cycle(carry: tuple, starts: jax.Array) -> tuple:
        """L gradients: DiLoCo's replicas meet at the end."""

        def body(carry: tuple, starts: jax.Array) -> tuple:
            windows = train_text[starts[:, None] + jnp.arange(LENGTH + 1)]
            shares = windows.reshape(replicas, -1, LENGTH + 1)
            return jax.vmap(step, axis_name="replica")(*carry, shares), None

        return jax.lax.scan(body, carry, starts)[0]

    cut = len(text) * 9 // 10
    train_text, rest = jnp.asarray(text[:cut]), text[cut:]
    judged = jnp.asarray(rest[: len(rest) // (LENGTH + 1) * (LENGTH + 1)]).reshape(-1, LENGTH + 1)
    judge = jax.jit(lambda params: loss(jax.tree.map(lambda leaf: leaf[0], params), judged[:500]))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * replicas), params)
    carry = params, jax.vmap(tx.init)(params)
    random, cycles = np.random.default_rng(0), steps // INNER_STEPS
    gradients, losses = [], []
    for done in range(1, cycles + 1):
        carry = cycle(carry, random.integers(0, cut - LENGTH, (INNER_STEPS, BATCH)))
        if done % max(1, cycles // 8) == 0 or done == cycles:
            gradients.append(done * INNER_STEPS)
            losses.append(float(judge(carry[0])))
    return gradients, losses, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=pathlib.Path, help="any text file (default Python's own)")
    parser.add_argument("--steps", type=int, default=800, help="gradients (default 800)")
    parser.add_argument("--out", default="diloco_gpt.png", help="the figure")
    options = parser.parse_args()
    if options.steps < 1 or options.steps % INNER_STEPS:
        parser.error(f"--steps {options.steps}: whole rounds expected, of {INNER_STEPS} gradients")
    content = options.text.read_bytes() if options.text else "".join(topics.values()).encode()
    if len(content) < 10 * (LENGTH + 1):
        parser.error(f"--text {options.text}: {len(content)} bytes; at least {10 * (LENGTH + 1)}")
    text = np.unique(np.frombuffer(content, np.uint8), return_inverse=True)[1].astype(np.int32)

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, replicas in {"data-parallel AdamW": 1, "DiLoCo, 4 replicas": 4}.items():
        gradients, losses, size = train(replicas, text, options.steps)
        between = 1 if replicas == 1 else INNER_STEPS  # gradients from one all-reduce to the next
        gigabytes = 4e-9 * size / between * np.array(gradients)
        left.plot(gradients, losses, marker="o", ms=3, label=name)
        right.plot(gigabytes, losses, marker="o", ms=3)
        print(f"{name:20} test loss {losses[-1]:.3f} nats, {gigabytes[-1]:.3f} GB per device")
    left.set(xlabel="gradient evaluations on the whole batch", ylabel="test loss, nats / character")
    left.set_title("for each gradient: down is better", loc="left", fontsize=11)
    right.set(xlabel="gigabytes all-reduced by each device", xscale="log")
    right.set_title("for each byte: left and down is better", loc="left", fontsize=11)
    left.legend(frameon=False)
    figure.savefig(options.out, dpi=120)
    print(options.out)


if __name__ == "__main__":
    main()
