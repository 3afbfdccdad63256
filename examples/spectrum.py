"""The spectrum of the Hessian at a trained network: most of it is zero, a few eigenvalues are not.

    python examples/spectrum.py

Trains a network of 2,410 weights on scikit-learn's 8×8 digits and compares all eigenvalues with an
estimate from 648 Hessian-vector products, in about a minute on two CPU cores. The networks of the
paper's figures, the largest of which took its authors 256 GB and a day, are a study in this
repository: `python -m experiments.studies.spectrum --data-dir DIR`.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from entropy_sgd_jax import flatness

TRAIN, BATCH_SIZE, EPOCHS = 1280, 32, 60
PROBES, STEPS = 8, 80  # of Lanczos quadrature; 81 Hessian-vector products a probe


def initial_params(key: jax.Array) -> list[dict]:
    """Weights and biases of two layers."""
    shapes = zip(jax.random.split(key), [(64, 32), (32, 10)], strict=True)
    return [
        {"w": jax.random.normal(k, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
        for k, shape in shapes
    ]


def logits(params: list[dict], images: jax.Array) -> jax.Array:
    """Of ten classes; ReLU between the layers."""
    hidden, last = params
    return jax.nn.relu(images @ hidden["w"] + hidden["b"]) @ last["w"] + last["b"]


def loss(params: list[dict], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy, in nats."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


@jax.jit
def train(params: list[dict], images: jax.Array, labels: jax.Array) -> list[dict]:
    """By Adam, its rate along a cosine."""
    updates = EPOCHS * TRAIN // BATCH_SIZE
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, updates))

    def update(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        rows = jax.random.permutation(key, TRAIN)[:BATCH_SIZE]
        grads = jax.grad(loss)(params, (images[rows], labels[rows]))
        updates, state = adam.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), updates)
    return jax.lax.scan(update, (params, adam.init(params)), keys)[0][0]


def trace_error(
    params: list[dict], batches: tuple, method: str, products: int, exact: float
) -> float:
    """Root mean square, over 20 keys."""

    def estimate(key: jax.Array) -> jax.Array:
        return flatness.hessian_trace(
            loss, params, batches, num_probes=products, method=method, key=key
        ).value

    return float(jnp.sqrt(jnp.mean((jax.lax.map(estimate, jnp.arange(20)) - exact) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="spectrum_digits.png", help="the figure")
    out = parser.parse_args().out

    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    images = (images - images.mean()) / images.std()
    params = train(initial_params(jax.random.key(0)), images, labels)
    wrong = jnp.mean(logits(params, images[TRAIN:]).argmax(-1) != labels[TRAIN:])

    # The Hessian of the mean over these batches: five, of 256 images each.
    batches = images[:TRAIN].reshape(5, 256, -1), labels[:TRAIN].reshape(5, 256)
    density = flatness.spectral_density(loss, params, batches, num_probes=PROBES, num_steps=STEPS)
    exact = np.asarray(flatness.exact_spectrum(loss, params, batches))

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"Hessian of {size:,} weights, test error {wrong:.1%}")
    print(f"{'':20}{'Lanczos quadrature':>22}{'all eigenvalues':>18}")
    print(f"{'largest':20}{density.nodes.max():22.3f}{exact.max():18.3f}")
    trace = density.expectation(lambda eigenvalue: size * eigenvalue)
    print(f"{'trace':20}{f'{trace.value:.2f} ± {trace.standard_error:.2f}':>22}{exact.sum():18.2f}")
    small = density.expectation(lambda eigenvalue: jnp.abs(eigenvalue) < 1e-2)
    share = np.mean(np.abs(exact) < 1e-2)
    shown = f"{small.value:.1%} ± {small.standard_error:.1%}"
    print(f"{'within 0.01 of zero':20}{shown:>22}{share:18.1%}")
    for method, products in ("xtrace", 98), ("hutchinson", 99):
        error = trace_error(params, batches, method, products, exact.sum())
        print(f"{method}: root mean square error of the trace {error:.3f}, {products} products")
    title = f"Hessian at a network of {size:,} weights, trained on digits"
    flatness.plots.density(density, eigenvalues=exact, title=title).savefig(out, dpi=150)
    print(out)


if __name__ == "__main__":
    main()
