"""What the tests of the core share: every mode driven alike, and names that move between versions.

The loss is a paraboloid around the batch, which is a scalar: its gradient is leaf - batch, for a
tree of any shape.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_sgd_jax import average_over_replicas, entropic, entropy_adam, entropy_sgd


def run_program(program: pathlib.Path) -> str:
    """What a program of its own prints, with warnings as errors; devices are fixed at its start."""
    done = subprocess.run(
        [sys.executable, "-W", "error", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MODES = ("scan", "scan_none", "streaming")

# For what is claimed to the last digits: how users' fusions round, not the tests' faster ones.
ROUNDED_AS_USUAL = (
    {"xla_cpu_use_fusion_emitters": True}
    if "fusion_emitters" in os.environ.get("XLA_FLAGS", "")
    else None
)

Factory = Callable[..., optax.GradientTransformationExtraArgs]

FACTORIES: dict[str, Factory] = {
    "entropic(sgd)": lambda **kwargs: entropic(optax.sgd(0.5), **kwargs),
    "entropic(adam)": lambda **kwargs: entropic(optax.adam(0.02), **kwargs),
    "entropic(adamw)": lambda **kwargs: entropic(
        optax.adamw(0.02, weight_decay=1e-4), inner_transform=optax.trace(0.9), **kwargs
    ),
    "entropy_sgd": lambda **kwargs: entropy_sgd(0.5, 0.9, True, **kwargs),
    "entropy_adam": lambda **kwargs: entropy_adam(0.02, **kwargs),
}

# New names first: touching an old one may warn.
partition = optax.partition if hasattr(optax, "partition") else optax.multi_transform
map_params = optax.tree.map_params if hasattr(optax, "tree") else optax.tree_utils.tree_map_params


def double_precision() -> Any:
    """A context in which float64 exists."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64()


def build(factory: Factory, mode: str, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `factory` in `mode`."""
    return factory(streaming=mode == "streaming", **kwargs)


def loss(params: Any, batch: jax.Array) -> jax.Array:
    """0.5 ‖params − batch‖², in float32."""
    squares = [
        jnp.sum((jnp.asarray(leaf, jnp.float32) - batch) ** 2) for leaf in jax.tree.leaves(params)
    ]
    return 0.5 * sum(squares, start=jnp.zeros(()))


gradient = jax.grad(loss)


def outer_step(
    tx: optax.GradientTransformation,
    mode: str,
    grad_fn: Callable[[Any, Any], Any] = gradient,
    **extra_args: Any,
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """One outer step of `tx`: (params, state, batches) to (params, state), not yet jitted.

    In every mode `batches` has a leading axis of L, and the same L gradients are taken.
    """

    def scan(params: Any, state: Any, batches: Any) -> tuple[Any, Any]:
        first = jax.tree.map(lambda rows: rows[0], batches)
        rest = jax.tree.map(lambda rows: rows[1:], batches)
        updates, state = tx.update(
            grad_fn(params, first), state, params, grad_fn=grad_fn, batches=rest, **extra_args
        )
        return optax.apply_updates(params, updates), state

    def scan_none(params: Any, state: Any, batches: Any) -> tuple[Any, Any]:
        updates, state = tx.update(
            None, state, params, grad_fn=grad_fn, batches=batches, **extra_args
        )
        return optax.apply_updates(params, updates), state

    def streaming(params: Any, state: Any, batches: Any) -> tuple[Any, Any]:
        def body(carry: Any, batch: Any) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(grad_fn(params, batch), state, params, **extra_args)
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(body, (params, state), batches)
        return carry

    return {"scan": scan, "scan_none": scan_none, "streaming": streaming}[mode]


def train(
    tx: optax.GradientTransformation,
    mode: str,
    params: Any,
    batches: Any,
    grad_fn: Callable[[Any, Any], Any] = gradient,
    **extra_args: Any,
) -> tuple[Any, Any]:
    """Inits and takes one outer step for each row of `batches`, (T, L, ...), in one program."""
    return jax.jit(training(tx, mode, grad_fn, **extra_args))(params, batches)


def training(
    tx: optax.GradientTransformation,
    mode: str,
    grad_fn: Callable[[Any, Any], Any] = gradient,
    **extra_args: Any,
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The program of `train`, a `lax.scan`: it is refused if a type changes on the way."""
    step = outer_step(tx, mode, grad_fn, **extra_args)

    def run(params: Any, batches: Any) -> tuple[Any, Any]:
        def body(carry: Any, rows: Any) -> tuple[Any, None]:
            return step(*carry, rows), None

        return jax.lax.scan(body, (params, tx.init(params)), batches)[0]

    return run


def rows(steps: int, inner_steps: int) -> np.ndarray:
    """`batches` for `train`: distinct scalars of order one, shape (steps, inner_steps)."""
    return np.sin(np.arange(steps * inner_steps, dtype=np.float32)).reshape(steps, inner_steps)


def without_keys(tree: Any) -> Any:
    """`tree` with every typed key as its numbers, for NumPy to compare."""

    def plain(leaf: Any) -> Any:
        is_key = jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(plain, tree)


def assert_close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Two trees of one structure have close leaves; keys and integers are equal."""
    actual, expected = without_keys(actual), without_keys(expected)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, leaf), other in pairs:
        name = jax.tree_util.keystr(path)
        assert leaf.dtype == other.dtype, name
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf, other = leaf.astype(np.float64), other.astype(np.float64)
            np.testing.assert_allclose(leaf, other, rtol, atol, err_msg=name)
        else:
            np.testing.assert_array_equal(leaf, other, err_msg=name)


def assert_same(actual: Any, expected: Any) -> None:
    """Two trees agree bit for bit, NaN with NaN."""
    assert_close(actual, expected, rtol=0, atol=0)


def layout(tree: Any) -> Any:
    """Structure, shapes and dtypes of `tree`, to be compared with ==."""
    leaves = [(jnp.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), leaves


def assert_finite(tree: Any) -> None:
    """Every floating leaf of `tree` is finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(without_keys(tree)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.all(np.isfinite(leaf.astype(np.float64))), jax.tree_util.keystr(path)


@functools.cache
def exchange(**fewer: Any) -> tuple[Any, Callable[..., Any]]:
    """`average_over_replicas` with these arguments, and its step for all replicas at once."""
    tx = average_over_replicas("r", **fewer)

    def one(updates: Any, state: Any, weight: Any) -> Any:
        return tx.update(updates, state, replica_weight=weight)

    return tx, jax.jit(jax.vmap(one, axis_name="r"))


def tree_of(numbers: np.ndarray) -> Any:
    """A matrix, a vector and a scalar for each replica, from shape (replicas, n)."""
    count, size = numbers.shape
    side = math.isqrt(size - 2)
    matrix, rest = numbers[:, : side**2], numbers[:, side**2 :]
    return {
        "a": jnp.asarray(matrix.reshape(count, side, side)),
        "b": jnp.asarray(rest[:, :-1]),
        "c": jnp.asarray(rest[:, -1]),
    }


def flat(tree: Any) -> np.ndarray:
    """The numbers again."""
    return np.concatenate(
        [np.asarray(leaf).reshape(len(leaf), -1) for leaf in tree.values()], axis=1
    )
