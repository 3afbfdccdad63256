"""The programs that the benchmarks compare: one model, one set of batches, several optimizers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import entropy_sgd_jax
from timing import Program, compile_program

LEARNING_RATE = 0.01
MOMENTUM = 0.9
ADAM_RATE = 1e-3
AXIS = "replica"


class Task(NamedTuple):
    """A loss and its data. Batches have the leading axes (updates, L)."""

    grad_fn: Callable[[Any, Any], Any]
    params: Any
    batches: Any
    updates: int
    inner_steps: int
    replicas: int = 0  # in a `vmap` over AXIS, on equal batches; 0 for no axis

    @property
    def gradients(self) -> int:
        """Gradient evaluations in one pass over the batches, of all replicas."""
        return self.updates * self.inner_steps * max(self.replicas, 1)


def mlp_task(
    widths: Sequence[int], batch_size: int, *, updates: int = 1, inner_steps: int = 20
) -> Task:
    """A fully connected network with ReLU on random images, float32."""
    key = jax.random.key(0)
    shapes = list(itertools.pairwise(widths))
    params = [
        {"w": jax.random.normal(k, shape) * (2 / shape[0]) ** 0.5, "b": jnp.zeros(shape[1])}
        for k, shape in zip(jax.random.split(key, len(shapes)), shapes, strict=True)
    ]
    images = jax.random.normal(key, (updates, inner_steps, batch_size, widths[0]))
    labels = jax.random.randint(key, (updates, inner_steps, batch_size), 0, widths[-1])
    return Task(jax.grad(_mlp_loss), params, (images, labels), updates, inner_steps)


def _mlp_loss(params: Any, batch: Any) -> jax.Array:
    hidden, labels = batch
    for layer in params[:-1]:
        hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
    logits = hidden @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# The optimizers.


def sgd() -> Any:
    """Nesterov's, with momentum in float32 as the Langevin loop keeps its own."""
    return optax.sgd(LEARNING_RATE, MOMENTUM, nesterov=True, accumulator_dtype=jnp.float32)


def adamw() -> Any:
    """Optax AdamW."""
    return optax.adamw(ADAM_RATE, mu_dtype=jnp.float32)


def entropy(task: Task, **options: Any) -> Any:
    """Entropy-SGD whose inner loop is `sgd`."""
    return entropy_sgd_jax.entropy_sgd(
        1.0,
        inner_steps=task.inner_steps,
        inner_learning_rate=LEARNING_RATE,
        inner_momentum=MOMENTUM,
        **options,
    )


def diloco(task: Task, **options: Any) -> Any:
    """DiLoCo whose inner loop is `adamw`."""
    return entropy_sgd_jax.diloco(inner_steps=task.inner_steps, inner_optimizer=adamw(), **options)


def parle(task: Task) -> Any:
    """Parle whose inner loop is `sgd`, without noise as its authors have it."""
    return entropy_sgd_jax.parle(
        0.1,
        replica_axis_name=AXIS,
        coupling=1.0,
        inner_steps=task.inner_steps,
        inner_learning_rate=LEARNING_RATE,
        inner_transform=optax.trace(MOMENTUM, nesterov=True),
        noise_scale=0,
    )


# What is timed: an optimizer with the loop that it is called in.


def scan(name: str, optimizer: Any, task: Task) -> Program:
    """One update per gradient, all in one scan; of a single one without it."""

    def run(params: Any, state: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            return _step(optimizer, task, *carry, batch), None

        flat = _in_a_row(batches)
        if task.updates * task.inner_steps == 1:
            return step((params, state), jax.tree.map(lambda leaf: leaf[0], flat))[0]
        return lax.scan(step, (params, state), flat)[0]

    return _compile(name, run, optimizer, task)


def calls(name: str, optimizer: Any, task: Task) -> Program:
    """One update per gradient, each a jitted call from Python, as in most training loops."""
    flat = _in_a_row(task.batches)
    batches = [
        jax.tree.map(lambda leaf: leaf[step], flat)  # noqa: B023
        for step in range(task.updates * task.inner_steps)
    ]
    return _compile(name, functools.partial(_step, optimizer, task), optimizer, task, batches)


def _step(optimizer: Any, task: Task, params: Any, state: Any, batch: Any) -> Any:
    updates, state = optimizer.update(task.grad_fn(params, batch), state, params)
    return optax.apply_updates(params, updates), state


def _in_a_row(batches: Any) -> Any:
    """Without the axis of updates."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batches)


def loops(name: str, optimizer: Any, task: Task, given_grads: bool = False) -> Program:
    """Scan mode: one update per L gradients, scanned over the updates."""

    def run(params: Any, state: Any, batches: Any) -> Any:
        def step(carry: Any, update: Any) -> Any:
            # Batches by number: handing the L of an update over would copy them out first.
            def grad_fn(point: Any, call: Any) -> Any:
                batch = jax.tree.map(lambda leaf: leaf[update, call + given_grads], batches)
                return task.grad_fn(point, batch)

            params, state = carry
            grads = grad_fn(params, -1) if given_grads else None
            updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
            return (optax.apply_updates(params, updates), state), None

        if task.updates == 1:  # a loop of one round would only hide the inner one
            return step((params, state), 0)[0]
        return lax.scan(step, (params, state), jnp.arange(task.updates))[0]

    return _compile(name, run, optimizer, task)


def sam(task: Task) -> Program:
    """`optax.contrib.sam` in opaque mode: two gradients per update, scanned."""
    from optax import contrib

    ascent = optax.chain(contrib.normalize(), optax.sgd(0.05))
    optimizer = contrib.sam(sgd(), ascent, sync_period=2, opaque_mode=True)

    def run(params: Any, state: Any, batches: Any) -> Any:
        def step(carry: Any, pair: Any) -> Any:
            params, state = carry
            first, second = (jax.tree.map(lambda leaf: leaf[i], pair) for i in (0, 1))  # noqa: B023
            updates, state = optimizer.update(
                task.grad_fn(params, first),
                state,
                params,
                grad_fn=lambda point, _: task.grad_fn(point, second),
            )
            return (optax.apply_updates(params, updates), state), None

        pairs = jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[2:]), batches)
        return lax.scan(step, (params, state), pairs)[0]

    return _compile("SAM", run, optimizer, task)


def plain_langevin(task: Task) -> Program:
    """What a user would write: a scan with one `jax.random.normal` per leaf and step."""
    step_size, scope, scale, weight = LEARNING_RATE, 0.03, 1e-4, 0.75

    def langevin(anchor: Any, carry: Any, batch: Any) -> Any:
        iterate, average, trace, key = carry
        key, *keys = jax.random.split(key, 1 + len(jax.tree.leaves(iterate)))
        keys = jax.tree.unflatten(jax.tree.structure(iterate), keys)
        grads = task.grad_fn(iterate, batch)
        trace = jax.tree.map(lambda t, g: MOMENTUM * t + g, trace, grads)

        def move(x: Any, a: Any, t: Any, g: Any, k: Any) -> Any:
            drift = g + MOMENTUM * t + scope * (x - a)
            noise = step_size**0.5 * scale * jax.random.normal(k, x.shape)
            return x - step_size * drift + noise

        iterate = jax.tree.map(move, iterate, anchor, trace, grads, keys)
        average = jax.tree.map(lambda m, x: (1 - weight) * m + weight * x, average, iterate)
        return (iterate, average, trace, key), None

    def update(carry: Any, batches: Any) -> Any:
        params, key = carry
        start = (params, params, jax.tree.map(jnp.zeros_like, params), key)
        step = lambda carry, batch: langevin(params, carry, batch)  # noqa: E731
        (_, average, _, key), _ = lax.scan(step, start, batches)
        return (average, key), None

    def run(params: Any, key: Any, batches: Any) -> Any:
        return lax.scan(update, (params, key), batches)[0]

    carry = (_copy(task.params), jax.random.key(0))
    return compile_program("plain scan", run, carry, [task.batches], task.gradients)


def _compile(
    name: str, run: Callable[..., Any], optimizer: Any, task: Task, calls: Sequence[Any] = ()
) -> Program:
    params, calls, init = _copy(task.params), calls or [task.batches], optimizer.init
    if task.replicas:
        run, init = jax.vmap(run, axis_name=AXIS), jax.vmap(init)
        params, calls = (
            jax.tree.map(lambda leaf: jnp.stack([leaf] * task.replicas), tree)
            for tree in (params, calls)
        )
    return compile_program(name, run, (params, init(params)), calls, task.gradients)


def _copy(params: Any) -> Any:
    """Each program donates its parameters, so each needs its own."""
    return jax.tree.map(jnp.array, params)
