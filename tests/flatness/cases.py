"""What the tests of flatness share: small networks, and their dense Hessians as the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_sgd_jax.flatness import GaussNewton

EXAMPLES = 48


class Case(NamedTuple):
    """A network and its data, in batches of both kinds: of the same examples."""

    loss: GaussNewton  # its call is the loss itself
    params: Any
    batches: Any  # stacked, eight of six
    ragged: list  # of sizes 20, 20 and 8
    whole: Any  # one batch of all

    def hessian(self) -> np.ndarray:
        """The dense matrix, by JAX's own way, in the order of `ravel_pytree`."""
        flat, unravel = ravel_pytree(self.params)
        return np.asarray(jax.hessian(lambda w: self.loss(unravel(w), self.whole))(flat))


def network(hidden: int, dtype: Any = np.float64) -> Case:
    """Softmax regression of three classes on four inputs, through a tanh layer."""
    rng = np.random.default_rng(hidden)
    images = rng.normal(size=(EXAMPLES, 4)).astype(dtype)
    labels = rng.integers(0, 3, EXAMPLES)
    params = {
        "first": {"w": rng.normal(size=(4, hidden)), "b": rng.normal(size=hidden)},
        "second": rng.normal(size=(hidden, 3)) / np.sqrt(hidden),
    }
    data = (jnp.asarray(images), jnp.asarray(labels))
    return Case(
        loss=GaussNewton(_model, _criterion),
        params=jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params),
        batches=jax.tree.map(lambda leaf: leaf.reshape(8, 6, *leaf.shape[1:]), data),
        ragged=[
            jax.tree.map(lambda leaf, s=s: leaf[s], data)
            for s in (slice(0, 20), slice(20, 40), slice(40, 48))
        ],
        whole=data,
    )


def _model(params: Any, batch: Any) -> jax.Array:
    return jnp.tanh(batch[0] @ params["first"]["w"] + params["first"]["b"]) @ params["second"]


def _criterion(outputs: jax.Array, batch: Any) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(outputs)
    return -jnp.take_along_axis(log_probabilities, batch[1][:, None], axis=1).mean()


def plain(loss: GaussNewton) -> Callable[[Any, Any], jax.Array]:
    """The same loss as a function, whose curvature is the Hessian."""
    return lambda params, batch: loss(params, batch)


def rotated(eigenvalues: Any, seed: int = 0) -> jax.Array:
    """A dense symmetric matrix with random eigenvectors."""
    size = len(eigenvalues)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return jnp.asarray(rotation * np.asarray(eigenvalues) @ rotation.T)


def quadratic(eigenvalues: Any) -> Callable[[jax.Array, Any], jax.Array]:
    """½ wᵀ H w with random eigenvectors."""
    hessian = rotated(eigenvalues)
    return lambda params, batch: 0.5 * params @ hessian @ params
