"""Flax networks as pure functions, with BatchNorm and dropout as Entropy-SGD needs them.

The inner steps visit points that are thrown away, so nothing may be learned on the side: BatchNorm
normalises by the batch at hand and its running averages are discarded; `batch_statistics` takes
them anew at the parameters to be evaluated. Each batch brings the key of its dropout mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from experiments.harness.evaluation import CHUNK, Model

# Torch's default for weights: uniform within ±1/√fan_in. Biases start at zero here, which is ours.
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def pure(make: Callable[[nnx.Rngs], nnx.Module], chunk: int = CHUNK) -> Model:
    """`make(rngs)` builds a module called with (inputs, key); without a key, dropout is off."""
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    abstract.train()
    training, _, statistics, _ = nnx.split(abstract, nnx.Param, nnx.BatchStat, ...)
    abstract.eval()
    evaluating = nnx.graphdef(abstract)

    def training_logits(params: Any, inputs: jax.Array, key: jax.Array) -> jax.Array:
        unused = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), statistics)
        return nnx.merge(training, params, unused)(inputs, key)

    return Model(
        init=lambda key: nnx.state(make(nnx.Rngs(key)), nnx.Param),
        training_logits=training_logits,
        statistics=lambda params, batches: batch_statistics(abstract, params, batches),
        logits=lambda params, known, inputs: nnx.merge(evaluating, params, known)(inputs),
        chunk=chunk,
    )


def batch_statistics(model: nnx.Module, params: Any, batches: jax.Array) -> Any:
    """What every BatchNorm of `model` should use at `params`: means over `batches`, dropout off.

    `batches` has shape (batches, batch_size, ...). Call it before each evaluation, and evaluate
    with `nnx.merge(graphdef_in_eval_mode, params, statistics)`. Mean and variance are averaged
    over the batches. `model` gives the structure only, and may be abstract.
    """
    model = nnx.merge(*nnx.split(model))  # a copy, to leave the caller's in its mode
    model.set_attributes(
        use_running_average=False, deterministic=True, momentum=0.0, raise_if_not_found=False
    )
    graphdef, _, known, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    if not jax.tree.leaves(known):
        return known

    def of_batch(batch: jax.Array) -> Any:
        unused = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), known)
        replay = nnx.merge(graphdef, params, unused, rest)
        replay(batch)
        return nnx.state(replay, nnx.BatchStat)

    return jax.tree.map(lambda x: x.mean(0), lax.map(of_batch, batches))


def dropout(inputs: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Drops each input with probability `rate`, where there is a key. 16 random bits decide."""
    if key is None or rate == 0:
        return inputs
    bits = jax.random.bits(key, inputs.shape, jnp.uint16)
    dropped = min(round(rate * 2**16), 2**16 - 1)
    return jnp.where(bits >= dropped, inputs / (1 - rate), 0)


def split(key: jax.Array | None, number: int) -> Any:
    """Keys for `number` dropout masks, or as many times None."""
    return [None] * number if key is None else jax.random.split(key, number)


def max_pool(images: jax.Array, width: int) -> jax.Array:
    """Over squares side by side; its gradient is much faster on CPUs than `nnx.max_pool`'s."""
    count, height, breadth, channels = images.shape
    shape = (count, height // width, width, breadth // width, width, channels)
    return images.reshape(shape).max((2, 4))


def convolution(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """XLA's, but on CPUs by patches: 6 times as fast inside of a loop, where training is.

    `benchmarks/convolutions.py` compares them. Those in one or three dimensions, with dilation,
    groups or borders in numbers are XLA's everywhere.
    """
    factors = *options["lhs_dilation"], *options["rhs_dilation"], options["feature_group_count"]
    plain = images.ndim == 4 and isinstance(padding, str) and set(factors) == {1}
    if plain and jax.default_backend() == "cpu":
        return patch_convolution(images, kernel, strides, padding)
    return lax.conv_general_dilated(images, kernel, strides, padding, **options)


def patch_convolution(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str
) -> jax.Array:
    """One product of patches and kernel, from images of shape (count, height, width, channels)."""
    size = kernel.shape[:2]
    borders = lax.padtype_to_pads(images.shape[1:3], size, strides, padding)
    images = jnp.pad(images, ((0, 0), *borders, (0, 0)))
    height, width = (images.shape[axis + 1] - size[axis] + 1 for axis in range(2))
    patches = [
        images[:, row : row + height : strides[0], column : column + width : strides[1]]
        for row in range(size[0])
        for column in range(size[1])
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])


Conv = functools.partial(nnx.Conv, conv_general_dilated=convolution)


class LSTM(nnx.Module):
    """One layer, from a state of zeros. The inputs of all steps are multiplied at once."""

    def __init__(self, inputs: int, features: int, init: Any, rngs: nnx.Rngs):
        """All weights are drawn from `init`; biases start at zero."""
        self.inputs = nnx.Linear(inputs, 4 * features, kernel_init=init, rngs=rngs)
        self.recurrent = nnx.Linear(
            features, 4 * features, use_bias=False, kernel_init=init, rngs=rngs
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """From (batch, time, inputs) to (batch, time, features)."""
        kernel = self.recurrent.kernel[...]

        def step(carry: tuple[jax.Array, jax.Array], driven: jax.Array) -> Any:
            hidden, cell = carry
            gates = jnp.split(driven + hidden @ kernel, 4, axis=-1)
            write, keep, read = map(jax.nn.sigmoid, gates[:3])
            cell = keep * cell + write * jnp.tanh(gates[3])
            hidden = read * jnp.tanh(cell)
            return (hidden, cell), hidden

        driven = self.inputs(inputs).swapaxes(0, 1)
        zeros = jnp.zeros((inputs.shape[0], kernel.shape[0]), driven.dtype)
        return lax.scan(step, (zeros, zeros), driven)[1].swapaxes(0, 1)
