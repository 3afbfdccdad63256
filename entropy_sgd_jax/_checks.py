"""Checks of what a user passes in, with errors that say what to do about it.

Only what Python knows is checked. Traced values pass: their range is the caller's promise.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

_ADVICE = {
    "learning_rate": "1.0 is the paper's start for entropy_sgd, 0.01 or less for entropy_adam.",
    "momentum": "0.9 is usual; None for none.",
    "inner_momentum": "0.9 is the paper's; None for none.",
    "b1": "0.9 is usual.",
    "b2": "0.999 is usual.",
    "eps": "1e-8 is usual.",
    "inner_steps": "5 to 20 is usual, 0 runs the base optimizer alone. It must be static: under "
    "optax.inject_hyperparams pass static_args=('inner_steps',).",
    "inner_learning_rate": "0.1 to 1 is usual.",
    "scope": "1e-4 to 0.1 is usual to start with; scoping(...) lets it grow.",
    "noise_scale": "1e-4 to 1e-3 is usual, 0 switches the noise off.",
    "averaging": "It is the weight of the newest iterate; 0.75 is the paper's, 1 keeps the last.",
    "noise": "gaussian is the Langevin equation's, rademacher is cheaper.",
    "base_optimizer": "Pass for example optax.sgd(1.0), called.",
    "inner_transform": "Pass a direction such as optax.trace(0.9) or optax.scale_by_adam(), "
    "without a learning rate of its own, or None.",
    "strength": "Parle's grows from 1 to 10; 0 lets the replicas go their own ways.",
    "coupling": "Parle's grows from 1 to 10; 0 lets the replicas go their own ways.",
    "batch_axis_name": "It is the `axis_name` of vmap or pmap, or an axis of shard_map's mesh, "
    "over which the batch is split. Under jit with shardings leave it out.",
    "axis_name": "It is the `axis_name` of vmap or pmap, or an axis of shard_map's mesh, over the "
    "replicas.",
    "replica_axis_name": "It is the `axis_name` of vmap or pmap, or an axis of shard_map's mesh, "
    "over the replicas.",
    "accumulator_dtype": "Pass for example jnp.float32, or None for at least float32.",
    "key": "Pass for example key=0 or key=jax.random.key(0).",
    "grads": "Pass jax.grad of a scalar loss with respect to `params`; in scan mode grads=None is "
    "allowed too, and leaves all gradients to `grad_fn`.",
    "grad_fn(params, batch)": "It must return the gradients alone: for (value, gradients) pass "
    "`value_and_grad_fn` instead, and drop auxiliary outputs.",
    "value_and_grad_fn(params, batch)": "It must return the scalar loss and the gradients, without "
    "auxiliary outputs.",
    "vector": "Build it with jax.tree.map over `params`.",
    "init_value": "The paper's are 1e-4 on MNIST and 0.03 on CIFAR-10.",
    "growth_rate": "The paper's is 0.001 for each outer step.",
    "max_value": "Parle's is 1.0; None for no ceiling.",
}


def number(
    name: str,
    value: Any,
    low: float = 0,
    high: float = math.inf,
    *,
    open_end: str = "",
    schedule: bool = True,
) -> Any:
    """Returns `value`, as a float where Python knows it; raises ValueError out of range.

    `open_end` names the end, "low" or "high", that is not allowed itself.
    """
    if schedule and callable(value):
        return value
    known = _python_float(value)
    if known is None:
        return value
    excluded = {"low": (low,), "high": (high,), "": ()}[open_end]
    if not low <= known <= high or known in (*excluded, math.inf):
        left = "(" if open_end == "low" else "["
        right = ")" if open_end == "high" or high == math.inf else "]"
        allowed = f"a number in {left}{low}, {high}{right}" + " or a schedule" * schedule
        raise _error(name, allowed, repr(value))
    return value if isinstance(value, jax.Array) else known


def decay(name: str, value: Any) -> Any:
    """A number in [0, 1), or None."""
    if value is None:
        return None
    return number(name, value, high=1, open_end="high", schedule=False)


def inner_steps(value: Any) -> int:
    """Returns `value` as an int; raises ValueError unless it is a static integer >= 0."""
    try:
        if isinstance(value, bool | np.bool_ | jax.Array):
            raise TypeError
        steps = operator.index(value)
    except TypeError:
        raise _error("inner_steps", "an integer >= 0", repr(value)) from None
    if steps < 0:
        raise _error("inner_steps", "an integer >= 0", repr(value))
    return steps


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Returns `value`; raises ValueError unless it is one of `allowed`."""
    if value not in allowed:
        raise _error(name, " or ".join(map(repr, allowed)), repr(value))
    return value


def axis_name(name: str, value: Any, *, optional: bool = False) -> Any:
    """Returns `value`; raises ValueError if it cannot name an axis."""
    names = value if isinstance(value, tuple) else (value,)
    is_name = bool(names) and all(isinstance(part, Hashable) and part is not None for part in names)
    if not is_name and not (optional and value is None):
        allowed = "the name of an axis, or a tuple of them" + ", or None" * optional
        raise _error(name, allowed, repr(value))
    return value


def bound(name: str, value: Any) -> None:
    """Raises ValueError unless the axis is one of a `vmap`, `pmap` or `shard_map` around us."""
    if value is None:
        return
    try:
        lax.axis_index(value)
    except NameError:
        allowed = "an axis of a vmap, pmap or shard_map around this call"
        raise _error(name, allowed, f"{value!r}, which none of them has") from None


def transformation(name: str, value: Any) -> optax.GradientTransformationExtraArgs:
    """Returns `value` with extra arguments supported; raises ValueError if it is no optimizer."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        raise _error(name, "an optax.GradientTransformation", repr(value))
    return optax.with_extra_args_support(value)


def accumulator_dtype(value: Any) -> Any:
    """Returns `value` as a dtype (None stays None); raises ValueError unless it is floating."""
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise _error("accumulator_dtype", "None or a real floating dtype", repr(value)) from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise _error("accumulator_dtype", "None or a real floating dtype", repr(value))
    return dtype


def key(value: Any) -> Any:
    """Returns `value`; raises ValueError unless it is an integer, a typed key or a legacy one."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    is_array = isinstance(value, jax.Array | np.ndarray)
    if is_array:
        dtype = value.dtype
        typed = jnp.issubdtype(dtype, jax.dtypes.prng_key) and value.ndim == 0
        seed = jnp.issubdtype(dtype, jnp.integer) and value.ndim == 0
        legacy = dtype == jnp.uint32 and value.shape in ((2,), (4,))
        is_array = typed or seed or legacy
    if not (is_integer or is_array):
        raise _error("key", "an integer, a typed key or a legacy uint32 key", repr(value))
    return value


def params(tree: Any) -> None:
    """Raises ValueError unless `tree` is given and every leaf is real floating."""
    if tree is None:
        raise ValueError(
            "`params` must be the parameters; got None. The local entropy is a function of them: "
            "call tx.update(grads, state, params)."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"`params{jax.tree_util.keystr(path)}` must be an array; got {leaf}. For the "
                "shapes of the state call jax.eval_shape(tx.init, params)."
            )
        try:
            dtype = jnp.result_type(leaf)
            is_real, is_complex = (
                jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.complexfloating)
            )
            shown = str(dtype)
        except TypeError:
            is_real, is_complex, shown = False, False, repr(leaf)
        if not is_real:
            advice = (
                "Wrap the optimizer in optax.contrib.split_real_and_imaginary, with streaming=True."
                if is_complex
                else "Keep integers, keys, counters and names out of `params`."
            )
            raise ValueError(
                f"`params{jax.tree_util.keystr(path)}` must have a real floating dtype; got "
                f"{shown}. {advice}"
            )


def one_gradient(batches: Any) -> None:
    """Raises ValueError where streaming mode is given batches."""
    if batches is not None:
        raise ValueError(
            "`batches` must be left out in streaming mode, where one update takes one gradient; "
            f"got a {type(batches).__name__}. Leave out streaming=True to run all inner steps in "
            "one update."
        )


def incoming(grads: Any, like: Any, streaming: bool) -> None:
    """Raises ValueError unless `grads` are gradients of `like`, the params."""
    if grads is None:
        mode = "in streaming mode" if streaming else "with inner_steps=0"
        raise ValueError(
            f"`grads` must be the gradients at `params` {mode}; got None. Pass "
            "tx.update(jax.grad(loss)(params, batch), state, params); only scan mode takes "
            "grads=None, and leaves all gradients to `grad_fn`."
        )
    same_tree("grads", grads, like)


def same_tree(name: str, tree: Any, like: Any) -> None:
    """Raises ValueError unless `tree` has the structure and the shapes of `like`, the params."""
    if tree is None and like is not None:
        raise _error(name, "a tree with the structure of `params`", "None")
    expected, got = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (like, tree))
    )
    for path in [*expected, *got]:
        if path not in got or path not in expected:
            which = f"lacks {path}" if path in expected else f"has {path} besides"
            raise _error(name, "a tree with the structure of `params`", f"one that {which}")
        if expected[path] != got[path]:
            allowed = f"of the parameter's shape {expected[path]}"
            raise _error(name, allowed, f"the shape {got[path]}", path)
    if str(jax.tree.structure(like)) != str(jax.tree.structure(tree)):
        nodes = f"the same leaves in other nodes, {type(tree).__name__}"
        raise _error(name, f"a tree with the structure of `params`, {type(like).__name__}", nodes)


def gradient_function(
    grad_fn: Any, value_and_grad_fn: Any, batches: Any, extra_args: Mapping[str, Any]
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Returns whichever is given as a function to (loss or None, gradients).

    Raises ValueError unless exactly one is given; the function does where it returns anything else.
    """
    arrived = sorted([*extra_args, *(["batches"] if batches is not None else [])])
    if grad_fn is None and value_and_grad_fn is None:
        raise ValueError(
            "`grad_fn` must be given in scan mode; got None, "
            f"{f'and the keyword arguments {arrived}' if arrived else 'and no other keyword'}. "
            "Either pass tx.update(grads, state, params, grad_fn=..., "
            "batches=...), where grad_fn(params, batch) returns gradients; or build the optimizer "
            "with streaming=True, which takes one tx.update(grads, state, params) for each "
            "gradient. TrainState.apply_gradients does not hand grad_fn on: call tx.update "
            "yourself, or use streaming=True."
        )
    if grad_fn is not None and value_and_grad_fn is not None:
        raise ValueError(
            "`grad_fn` and `value_and_grad_fn` must not both be given; got both. Pass one of them."
        )
    name = "grad_fn" if value_and_grad_fn is None else "value_and_grad_fn"
    function = grad_fn if value_and_grad_fn is None else value_and_grad_fn
    if not callable(function):
        raise ValueError(
            f"`{name}` must be a function of (params, batch); got {function!r}. Pass for example "
            f"jax.{name.removesuffix('_fn')}(loss)."
        )

    def evaluate(point: Any, batch: Any) -> tuple[Any, Any]:
        returned = function(point, batch)
        loss, grads = (None, returned) if grad_fn is not None else _pair(returned)
        same_tree(f"{name}(params, batch)", grads, point)
        return loss, grads

    return evaluate


def whole(tree: Any) -> None:
    """Raises ValueError where `optax.masked` or `optax.partition` has cut holes into `tree`."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    if any(isinstance(node, optax.MaskedNode) for node in nodes):
        raise ValueError(
            "`params` must be the whole model in scan mode, for `grad_fn` to see; got a tree with "
            "MaskedNode in it, from optax.masked or optax.partition. To freeze parameters, mask "
            "after the optimizer: optax.chain(tx, optax.masked(optax.set_to_zero(), frozen)). To "
            "give each group an optimizer of its own, use streaming=True."
        )


def stacked(batches: Any, calls: int, steps: int) -> None:
    """Raises ValueError unless every leaf of `batches` has a leading axis of length `calls`."""

    def is_leaf(node: Any) -> bool:  # an iterator is none of JAX's trees
        return hasattr(node, "__next__")

    for path, leaf in jax.tree_util.tree_leaves_with_path(batches, is_leaf=is_leaf):
        shape = () if isinstance(leaf, int | float) else getattr(leaf, "shape", None)
        if shape is None or shape[:1] != (calls,):
            got = f"a {type(leaf).__name__}" if shape is None else f"the shape {shape}"
            how = "`grads` is None" if calls == steps else "`grads` is the first of the gradients"
            raise ValueError(
                f"`batches{jax.tree_util.keystr(path)}` must have a leading axis of length {calls} "
                f"(inner_steps={steps} and {how}); got {got}. Stack the batches along "
                "a new leading axis: jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)."
            )


def _pair(returned: Any) -> tuple[Any, Any]:
    """What `value_and_grad_fn` returned; raises ValueError unless it is a scalar and a tree."""
    got = f"a {type(returned).__name__}"
    if isinstance(returned, tuple) and len(returned) == 2:
        if jax.tree_util.all_leaves(returned[:1]) and jnp.shape(returned[0]) == ():
            return returned
        shapes = jax.tree.map(jnp.shape, returned[0])
        got = f"a value of the shape {shapes}"
    raise ValueError(
        "`value_and_grad_fn(params, batch)` must be a pair of a scalar loss and the gradients; got "
        f"{got}. Pass jax.value_and_grad(loss) of a scalar loss without auxiliary outputs, or "
        "`grad_fn` if there is no value."
    )


def _error(name: str, allowed: str, got: str, path: str = "") -> ValueError:
    return ValueError(f"`{name}{path}` must be {allowed}; got {got}. {_ADVICE[name]}")


def _python_float(value: Any) -> float | None:
    """`value` as a float; None if it is a traced scalar; NaN if it is no scalar number."""
    is_number = isinstance(value, int | float | np.number | np.ndarray | jax.Array)
    if not is_number or isinstance(value, bool) or jnp.ndim(value) != 0:
        return math.nan
    try:
        return float(value)
    except jax.errors.ConcretizationTypeError:
        return None
    except TypeError:
        return math.nan
