"""How wide are the valleys in which SGD, Adam and Entropy-SGD end? Three measures and a picture.

    python examples/flatness_table.py

Each trains a network of 8,970 weights on scikit-learn's 8×8 digits, from the same starts, until its
training loss is below the same value: the curvature of a cross-entropy falls with the loss itself,
so that whoever gets further down looks the wider. With SAM and Parle, and more measures, but by the
same number of gradients, it is a study: `python -m experiments.studies.flatness_table`.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from entropy_sgd_jax import entropy_sgd, flatness

TRAIN, BATCH_SIZE, UPDATES, L = 1280, 64, 100, 20  # L gradients in each update, one on each batch
STOP = 5e-4  # the training loss, in nats, below which no further pass is made
SEEDS = jnp.arange(5)
STRENGTHS = np.linspace(0, 0.6, 13)  # of noise, relative to each weight
SHOWN = 6  # the strength in the table: 0.3
MEASURES = ("training loss", "largest eigenvalue", "trace", "local energy", "test error, %")

images, labels = map(jnp.asarray, load_digits(return_X_y=True))
images = (images - images.mean()) / images.std()


def initial_params(key: jax.Array) -> list[dict]:
    """Weights and biases of three layers."""
    shapes = zip(jax.random.split(key, 3), [(64, 64), (64, 64), (64, 10)], strict=True)
    return [
        {"w": jax.random.normal(k, shape) * (2 / shape[0]) ** 0.5, "b": jnp.zeros(shape[1])}
        for k, shape in shapes
    ]


def logits(params: list[dict], images: jax.Array) -> jax.Array:
    """Of ten classes; ReLU between the layers."""
    *hidden, last = params
    for layer in hidden:
        images = jax.nn.relu(images @ layer["w"] + layer["b"])
    return images @ last["w"] + last["b"]


def loss(params: list[dict], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy, in nats."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


def errors(params: list[dict], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Wrong answers, in percent."""
    images, labels = batch
    return 100 * jnp.mean(logits(params, images).argmax(-1) != labels)


def cosine(peak: float) -> optax.Schedule:
    """A learning rate that falls to zero over all gradients."""
    return optax.cosine_decay_schedule(peak, UPDATES * L)


def one_by_one(tx: optax.GradientTransformation, params: list, state: tuple, batches: tuple):
    """L updates of an Optax optimizer."""

    def update(carry: tuple, batch: tuple) -> tuple[tuple, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(update, (params, state), batches)[0]


def at_once(tx: optax.GradientTransformationExtraArgs, params: list, state: tuple, batches: tuple):
    """One update of Entropy-SGD, with L gradients inside."""
    updates, state = tx.update(None, state, params, grad_fn=jax.grad(loss), batches=batches)
    return optax.apply_updates(params, updates), state


OPTIMIZERS = {
    "SGD": (optax.sgd(cosine(0.1), momentum=0.9, nesterov=True), one_by_one),
    "Adam": (optax.adam(cosine(0.01), b1=0.8), one_by_one),
    "Entropy-SGD": (
        entropy_sgd(1.0, inner_learning_rate=cosine(0.2), scope=0.3, reset_inner_state=False),
        at_once,
    ),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(tx: optax.GradientTransformation, take_round: Callable, seed: jax.Array) -> list[dict]:
    """From a start and through batches that depend on the seed alone."""
    key = jax.random.key(seed)

    def pass_over_data(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        rows = jax.random.permutation(key, TRAIN).reshape(L, BATCH_SIZE)
        there = loss(carry[0], (images[:TRAIN], labels[:TRAIN])) < STOP
        further = functools.partial(take_round, tx, *carry, (images[rows], labels[rows]))
        return jax.lax.cond(there, lambda: carry, further), None

    params = initial_params(key)
    keys = jax.random.split(jax.random.fold_in(key, 1), UPDATES)
    return jax.lax.scan(pass_over_data, (params, tx.init(params)), keys)[0][0]


@jax.jit
def measure(params: list[dict]) -> dict[str, jax.Array]:
    """The valley around one solution, in numbers."""
    batches = images[:TRAIN].reshape(5, 256, -1), labels[:TRAIN].reshape(5, 256)
    profile = flatness.local_energy(errors, params, batches, STRENGTHS).value
    return {
        "training loss": loss(params, (images[:TRAIN], labels[:TRAIN])),
        "largest eigenvalue": flatness.top_eigenvalues(loss, params, batches, 1)[0],
        "trace": flatness.hessian_trace(loss, params, batches).value,
        "local energy": profile[SHOWN],
        "test error, %": errors(params, (images[TRAIN:], labels[TRAIN:])),
        "profile": profile,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="flatness_table.png", help="the figure")
    out, profiles, columns = parser.parse_args().out, {}, {}
    for name, optimizer in OPTIMIZERS.items():
        solutions = jax.vmap(functools.partial(train, *optimizer))(SEEDS)
        found = jax.device_get(jax.lax.map(measure, solutions))
        mean = jax.tree.map(lambda x: x.mean(axis=0), found)
        error = jax.tree.map(lambda x: x.std(axis=0, ddof=1) / len(SEEDS) ** 0.5, found)
        profiles[name] = STRENGTHS, flatness.Estimate(mean["profile"], error["profile"])
        columns[name] = [f"{mean[what]:9.2g} ± {error[what]:<8.1g}" for what in MEASURES]
    print(f"{'':18}", *(f"{name:^20}" for name in columns))
    for what, *cells in zip(MEASURES, *columns.values(), strict=True):
        print(f"{what:18}", *cells)
    picture = flatness.plots.energy_profiles(
        profiles,
        ylabel="rise of the training error (percentage points)",
        title=f"Local energy at solutions on digits (seeds: {len(SEEDS)})",
    )
    picture.savefig(out, dpi=150)
    print(out)


if __name__ == "__main__":
    main()
