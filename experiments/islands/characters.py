"""A small task for islands: the next character of Python's own reference."""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

CONTEXT, WIDTH, HIDDEN = 8, 32, 128


def read_text() -> tuple[np.ndarray, np.ndarray]:
    """Python's own reference, as numbers of symbols: for training and for judging."""
    content = np.frombuffer("".join(topics.values()).encode(), np.uint8)
    text = np.unique(content, return_inverse=True)[1].astype(np.int32)
    return text[:-20000], text[-20000:]


def draw(text: np.ndarray, seed: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """Windows of CONTEXT characters and the next one, shape (*shape, CONTEXT + 1)."""
    starts = np.random.default_rng(seed).integers(0, len(text) - CONTEXT, (*shape, 1))
    return text[starts + np.arange(CONTEXT + 1)]


def initial_params() -> Any:
    symbols = int(read_text()[0].max()) + 1
    shapes = {
        "embed": (symbols, WIDTH),
        "hidden": (CONTEXT * WIDTH, HIDDEN),
        "out": (HIDDEN, symbols),
    }
    random = np.random.default_rng(0)
    return {
        name: jnp.asarray(random.normal(size=shape) / shape[0] ** 0.5, jnp.float32)
        for name, shape in shapes.items()
    }


def loss(params: Any, windows: jax.Array) -> jax.Array:
    """Nats for the character after each window of CONTEXT."""
    seen = params["embed"][windows[:, :-1]].reshape(len(windows), -1)
    logits = jax.nn.relu(seen @ params["hidden"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()
