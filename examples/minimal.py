"""A whole training loop with Entropy-SGD, to copy: data, network, loss, update, evaluation.

    python examples/minimal.py

Trains a small network on scikit-learn's 8×8 digits in seconds. One update takes L mini-batches,
stacked along a new first axis, and evaluates L gradients, one on each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from entropy_sgd_jax import entropy_sgd

UPDATES, INNER_STEPS, BATCH_SIZE = 100, 20, 64  # INNER_STEPS is L
TRAIN = INNER_STEPS * BATCH_SIZE  # of 1,797 images: each update passes over all of them

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)

optimizer = entropy_sgd(
    1.0,  # the outer learning rate: x moves to the mean of the points that were visited
    inner_steps=INNER_STEPS,
    inner_learning_rate=optax.cosine_decay_schedule(0.2, UPDATES * INNER_STEPS),
    scope=0.3,
    reset_inner_state=False,
)


def layer(key, inputs, outputs):
    weights = jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5
    return {"weights": weights, "bias": jnp.zeros(outputs)}


def initial_params(key):
    first, second, third = jax.random.split(key, 3)
    return [layer(first, 64, 64), layer(second, 64, 64), layer(third, 64, 10)]


def logits(params, images):
    *hidden, last = params
    for one in hidden:
        images = jax.nn.relu(images @ one["weights"] + one["bias"])
    return images @ last["weights"] + last["bias"]


def loss(params, batch):
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


@jax.jit
def update(params, state, batches):
    updates, state = optimizer.update(None, state, params, grad_fn=jax.grad(loss), batches=batches)
    return optax.apply_updates(params, updates), state


def main():
    random = np.random.default_rng(0)
    params = initial_params(jax.random.key(0))
    state = optimizer.init(params)
    for _ in range(UPDATES):
        rows = random.permutation(TRAIN).reshape(INNER_STEPS, BATCH_SIZE)
        params, state = update(params, state, (images[rows], labels[rows]))

    wrong = logits(params, images[TRAIN:]).argmax(-1) != labels[TRAIN:]
    print(f"after {UPDATES * INNER_STEPS:,} gradients: training loss ", end="")
    print(f"{loss(params, (images[:TRAIN], labels[:TRAIN])):.1e}, test error {wrong.mean():.1%}")


if __name__ == "__main__":
    main()
