"""Unit-variance noise (interim)."""
from __future__ import annotations
import math
from typing import Any
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

def typed_key(key):
    if isinstance(key, (int, np.integer)):
        return jax.random.key(int(key))
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.clone(key)
    if key.ndim == 1:
        return jax.random.wrap_key_data(key)
    return jax.random.key(key)

def step_keys(key, count, steps):
    update_key = jax.random.fold_in(typed_key(key), count)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(update_key, steps)
    return jax.random.key_data(keys)[..., :2]

def _bits(words, offset, shape):
    n = math.prod(shape)
    x = lax.iota(jnp.uint32, n).reshape(shape) + jnp.uint32(offset)
    x = x * jnp.uint32(0x9E3779B1) + words[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = x + words[1]
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)

def _tree(f, words, like):
    leaves, treedef = jax.tree.flatten(like)
    offsets = np.cumsum([0] + [x.size for x in leaves])
    return jax.tree.unflatten(treedef, [f(_bits(words, int(o) % 2**32, jnp.shape(x))) for o, x in zip(offsets, leaves)])

def gaussian(words, like):
    return _tree(lambda b: jnp.sqrt(2.0) * lax.erf_inv(((b >> 8).astype(jnp.float32) + 0.5) * 2.0**-23 - 1.0), words, like)

def rademacher(words, like):
    return _tree(lambda b: jnp.where(b >> 31, jnp.float32(1), jnp.float32(-1)), words, like)

SOURCES = {"gaussian": gaussian, "rademacher": rademacher}

def draw(source, key, like):
    if key is None:
        return jax.tree.map(lambda leaf: None, like)
    return jax.tree.map(lambda n, leaf: n.astype(leaf.dtype), SOURCES[source](key, like), like)
