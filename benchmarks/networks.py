"""Networks of real sizes as tasks: a ResNet-18, a GPT and the paper's character LSTM."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import programs
import pytorch
from experiments.harness.networks import Conv
from experiments.harness.settings import Settings
from experiments.workloads import char_lstm
from programs import Task
from timing import Maker, Timed, interleave

STEPS = 10  # L, and the gradients per program
SYMBOLS = 84  # different characters in War and Peace


class Size(NamedTuple):
    """How large the networks and the batches are."""

    dtype: str  # of the parameters
    width: int  # of ResNet's first stage
    images: int  # batch
    pixels: int
    embedding: int
    layers: int
    vocabulary: int
    texts: int  # batch
    tokens: int
    streams: int  # the LSTM's batch


GPU = Size("bfloat16", 64, 256, 32, 768, 12, 50257, 16, 1024, 128)  # with GPT-2 small
CPU = Size("float32", 64, 8, 32, 384, 6, SYMBOLS, 8, 128, 128)
TINY = Size("bfloat16", 8, 4, 16, 32, 2, 100, 2, 16, 2)


def conv(before: int, after: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """A convolution and its group normalisation; by patches on a CPU, as in the experiments."""
    return nnx.Sequential(
        Conv(before, after, (size, size), strides=stride, use_bias=False, rngs=rngs),
        nnx.GroupNorm(after, num_groups=8, rngs=rngs),
    )


class Block(nnx.Module):
    """Two 3×3 convolutions and the shortcut around them."""

    def __init__(self, before: int, after: int, rngs: nnx.Rngs) -> None:
        stride = 1 if before == after else 2
        self.first = conv(before, after, 3, stride, rngs)
        self.second = conv(after, after, 3, 1, rngs)
        straight = before == after
        self.shortcut = jax.nn.identity if straight else conv(before, after, 1, stride, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.shortcut(x) + self.second(nnx.relu(self.first(x))))


class ResNet(nnx.Module):
    """ResNet-18 for small images, 11 million parameters at width 64."""

    def __init__(self, size: Size, rngs: nnx.Rngs) -> None:
        widths = [size.width * 2**stage for stage in (0, 0, 0, 1, 1, 2, 2, 3, 3)]
        self.stem = conv(3, size.width, 3, 1, rngs)
        self.blocks = nnx.List([Block(a, b, rngs) for a, b in itertools.pairwise(widths)])
        self.head = nnx.Linear(widths[-1], 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Layer(nnx.Module):
    """A pre-normalised transformer layer with causal attention."""

    def __init__(self, size: Size, rngs: nnx.Rngs) -> None:
        n = size.embedding
        self.norms = nnx.List([nnx.LayerNorm(n, rngs=rngs) for _ in range(2)])
        self.attention_in = nnx.Linear(n, 3 * n, rngs=rngs)
        self.attention_out = nnx.Linear(n, n, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(n, 4 * n, rngs=rngs), nnx.Linear(4 * n, n, rngs=rngs)
        self.heads = max(1, n // 64)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, n = x.shape
        parts = self.attention_in(self.norms[0](x)).reshape(batch, length, 3, self.heads, -1)
        mixed = jax.nn.dot_product_attention(
            parts[:, :, 0], parts[:, :, 1], parts[:, :, 2], is_causal=True
        )
        x = x + self.attention_out(mixed.reshape(batch, length, n))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class GPT(nnx.Module):
    """GPT-2 small: 124 million parameters, its output tied to its embedding."""

    def __init__(self, size: Size, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(size.vocabulary, size.embedding, rngs=rngs)
        self.positions = nnx.Embed(size.tokens, size.embedding, rngs=rngs)
        self.layers = nnx.List([Layer(size, rngs=rngs) for _ in range(size.layers)])
        self.norm = nnx.LayerNorm(size.embedding, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        x = self.tokens(text) + self.positions(jnp.arange(text.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.tokens.attend(self.norm(x))


# The tasks: cross-entropy in float32 on stacked random batches.


def network_task(
    logits: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    inputs: jax.Array,
    labels: jax.Array,
    dtype: str,
) -> Task:
    """`logits` is a function of the parameters, in this dtype, and the inputs."""

    def loss(params: Any, batch: Any) -> jax.Array:
        found = logits(params, batch[0]).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(found, batch[1]).mean()

    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return Task(jax.grad(loss), params, (inputs[None], labels[None]), 1, STEPS)


def module_task(module: nnx.Module, inputs: jax.Array, labels: jax.Array, size: Size) -> Task:
    graphdef, params = nnx.split(module)
    return network_task(
        lambda params, inputs: nnx.merge(graphdef, params)(inputs),
        params,
        inputs,
        labels,
        size.dtype,
    )


def resnet(size: Size) -> Task:
    key = jax.random.key(0)
    shape = (STEPS, size.images, size.pixels, size.pixels, 3)
    images = jax.random.normal(key, shape, size.dtype)
    labels = jax.random.randint(key, shape[:2], 0, 10)
    return module_task(ResNet(size, nnx.Rngs(0)), images, labels, size)


def gpt(size: Size) -> Task:
    text = characters(size.vocabulary, size.texts, size.tokens)
    return module_task(GPT(size, nnx.Rngs(0)), *text, size)


def lstm(size: Size) -> Task:
    """The paper's for War and Peace, on windows of 50 characters, each from zeros; float32."""
    model = char_lstm.make_model(Settings(), None, SYMBOLS)

    def logits(params: Any, inputs: jax.Array) -> jax.Array:
        return model.training_logits(params, inputs, None, model.carry(len(inputs)))[0]

    text = characters(SYMBOLS, size.streams, char_lstm.LENGTH)
    return network_task(logits, model.init(jax.random.key(0)), *text, "float32")


def characters(symbols: int, windows: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Inputs, and labels one character later."""
    text = jax.random.randint(jax.random.key(0), (STEPS, windows, length + 1), 0, symbols)
    return text[..., :-1], text[..., 1:]


def contestants(task: Task) -> list[Maker]:
    """Each in a loop of its own; the first is what the others are divided by."""
    entropy, diloco = partial(programs.entropy, task), partial(programs.diloco, task)
    return [
        partial(programs.scan, "SGD", programs.sgd(), task),
        partial(programs.scan, "AdamW", programs.adamw(), task),
        partial(programs.sam, task),
        partial(programs.loops, "Entropy-SGD, no noise", entropy(noise_scale=0), task),
        partial(programs.loops, "Entropy-SGD, Gaussian", entropy(), task),
        partial(programs.scan, "Entropy-SGD, Gaussian, streaming", entropy(streaming=True), task),
        partial(programs.loops, "diloco over AdamW", diloco(), task),
        partial(programs.scan, "diloco over AdamW, streaming", diloco(streaming=True), task),
    ]


def comparisons(size: Size, seconds: float) -> dict[str, Callable[[], list[Timed]]]:
    """For `timing.measure`; each takes about `seconds` and what compiling takes."""
    makers = {"ResNet-18": resnet, "GPT": gpt, "character LSTM": lstm}
    return {name: partial(compare, name, make, size, seconds) for name, make in makers.items()}


def compare(name: str, make: Callable[[Size], Task], size: Size, seconds: float) -> list[Timed]:
    task = make(size)
    peers = [partial(pytorch.lstm, task)] if make is lstm and pytorch.FOUND else []
    return interleave([*contestants(task), *peers], seconds, name)
