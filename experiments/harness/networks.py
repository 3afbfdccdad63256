"""Flax networks as pure functions, with BatchNorm and dropout as Entropy-SGD needs them.

The inner steps visit points that are discarded, so nothing may be learned on the side: BatchNorm
normalises by the current batch and its running averages are discarded; `batch_statistics` takes
them again at the parameters to be evaluated. Each batch brings the key of its dropout mask.
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

# Torch's default for weights: uniform within ±1/√fan_in.
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def within(bound: float) -> Callable[..., jax.Array]:
    """Draws uniformly within ±bound."""
    return functools.partial(jax.random.uniform, minval=-bound, maxval=bound)


def torch_linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Weights and biases within ±1/√fan_in, as Torch has them."""
    bias = within(inputs**-0.5)
    return nnx.Linear(inputs, outputs, kernel_init=torch_uniform, bias_init=bias, rngs=rngs)


def torch_conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, **options: Any) -> nnx.Conv:
    """Likewise, a convolution of size × size."""
    bias = within((inputs * size**2) ** -0.5)
    init = {"kernel_init": torch_uniform, "bias_init": bias, "rngs": rngs}
    return Conv(inputs, outputs, (size, size), **init, **options)


def torch_norm(features: int, rngs: nnx.Rngs, affine: bool = True) -> nnx.BatchNorm:
    """With shifts, and scales from U(0, 1), as Torch had them then; or without both."""
    scales = nnx.initializers.uniform(1.0)
    return nnx.BatchNorm(features, use_bias=affine, use_scale=affine, scale_init=scales, rngs=rngs)


def pure(make: Callable[[nnx.Rngs], nnx.Module], chunk: int = CHUNK, **rest: Any) -> Model:
    """`make(rngs)` builds a module called with (inputs, key); without a key, dropout is off.

    `rest` goes to the Model; with a `carry` there the module may be called with a state too.
    """
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    abstract.train()
    training, _, statistics, _ = nnx.split(abstract, nnx.Param, nnx.BatchStat, ...)
    abstract.eval()
    evaluating = nnx.graphdef(abstract)

    def training_logits(params: Any, inputs: jax.Array, key: jax.Array, *carry: Any) -> Any:
        unused = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), statistics)
        return nnx.merge(training, params, unused)(inputs, key, *carry)

    def logits(params: Any, known: Any, inputs: jax.Array, *carry: Any) -> Any:
        return nnx.merge(evaluating, params, known)(inputs, None, *carry)

    return Model(
        init=lambda key: nnx.state(make(nnx.Rngs(key)), nnx.Param),
        training_logits=training_logits,
        statistics=lambda params, batches: batch_statistics(
            abstract, params, batches, rest.get("carry")
        ),
        logits=logits,
        chunk=chunk,
        **rest,
    )


def batch_statistics(
    model: nnx.Module, params: Any, batches: jax.Array, carry: Callable[[int], Any] | None = None
) -> Any:
    """What every BatchNorm of `model` should use at `params`: means over `batches`, dropout off.

    `batches` has shape (batches, batch_size, ...). Call it before each evaluation, and evaluate
    with `nnx.merge(graphdef_in_eval_mode, params, statistics)`. Mean and variance are averaged
    over the batches. `model` gives the structure only, and may be abstract. With a `carry`, the
    state of a number of streams, that state is carried from batch to batch.
    """
    model = nnx.merge(*nnx.split(model))  # a copy, to leave the caller's in its mode
    model.set_attributes(
        use_running_average=False, deterministic=True, momentum=0.0, raise_if_not_found=False
    )
    graphdef, _, known, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    if not jax.tree.leaves(known):
        return known

    def of_batch(state: Any, batch: jax.Array) -> Any:
        unused = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), known)
        replay = nnx.merge(graphdef, params, unused, rest)
        if carry:
            _, state = replay(batch, None, state)
        else:
            replay(batch)
        return state, nnx.state(replay, nnx.BatchStat)

    _, found = lax.scan(of_batch, carry(batches.shape[1]) if carry else None, batches)
    return jax.tree.map(lambda x: x.mean(0), found)


def dropout(inputs: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Drops each input with probability `rate` if there is a key. 16 random bits decide."""
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
    """XLA's, but on CPUs by patches: 6 times as fast inside a loop, as in training.

    `benchmarks/convolutions.py` compares them. Those in one or three dimensions, with dilation or
    groups are XLA's everywhere.
    """
    factors = *options["lhs_dilation"], *options["rhs_dilation"], options["feature_group_count"]
    plain = images.ndim == 4 and set(factors) == {1}
    if plain and jax.default_backend() == "cpu":
        return patch_convolution(images, kernel, strides, padding)
    return lax.conv_general_dilated(images, kernel, strides, padding, **options)


def patch_convolution(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Any
) -> jax.Array:
    """One product of patches and kernel, from images of shape (count, height, width, channels)."""
    size = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], size, strides, padding)
    images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    height, width = (images.shape[axis + 1] - size[axis] + 1 for axis in range(2))
    patches = [
        images[:, row : row + height : strides[0], column : column + width : strides[1]]
        for row in range(size[0])
        for column in range(size[1])
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])


Conv = functools.partial(nnx.Conv, conv_general_dilated=convolution)


def zeros(layers: int, features: int) -> Callable[[int], jax.Array]:
    """The state of LSTM layers before this many streams start."""
    return lambda streams: jnp.zeros((layers, 2, streams, features))


class LSTM(nnx.Module):
    """One layer. The inputs of all steps are multiplied at once."""

    def __init__(self, inputs: int, features: int, init: Any, bias_init: Any, rngs: nnx.Rngs):
        """Both kernels are drawn from `init`; the gates write, keep, read, then what is written."""
        self.inputs = nnx.Linear(
            inputs, 4 * features, kernel_init=init, bias_init=bias_init, rngs=rngs
        )
        self.recurrent = nnx.Linear(
            features, 4 * features, use_bias=False, kernel_init=init, rngs=rngs
        )

    def __call__(self, inputs: jax.Array, carry: Any) -> tuple[jax.Array, jax.Array]:
        """From (batch, time, inputs) and a state (2, batch, features) to (batch, time, features)
        and the state afterwards.
        """
        kernel = self.recurrent.kernel[...]

        def step(carry: tuple[jax.Array, jax.Array], driven: jax.Array) -> Any:
            hidden, cell = carry
            gates = jnp.split(driven + hidden @ kernel, 4, axis=-1)
            write, keep, read = map(jax.nn.sigmoid, gates[:3])
            cell = keep * cell + write * jnp.tanh(gates[3])
            hidden = read * jnp.tanh(cell)
            return (hidden, cell), hidden

        driven = self.inputs(inputs).swapaxes(0, 1)
        carry, hidden = lax.scan(step, (carry[0], carry[1]), driven)
        return hidden.swapaxes(0, 1), jnp.stack(carry)
