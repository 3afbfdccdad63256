"""Checks of what arrives in `init` and `update`, with errors that say what to do about it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_sgd_jax import _checks, _collectives, _trees
from entropy_sgd_jax._state import EntropicState
from entropy_sgd_jax._typing import AxisName, PyTree

OWN_KEYWORDS = ("grad_fn", "value_and_grad_fn", "batches", "value", "replica_weight")

_LOOKED_AT = 1 << 24  # elements of a leaf that `init` copies to the host to look at

_GRADS = (
    "Pass jax.grad of a scalar loss with respect to `params`; in scan mode grads=None is allowed "
    "too, which leaves all gradients to `grad_fn`."
)
_GRAD_FN = {
    "grad_fn(params, batch)": "It must return the gradients alone: for (value, gradients) pass "
    "`value_and_grad_fn` instead, and drop auxiliary outputs.",
    "value_and_grad_fn(params, batch)": "It must return the scalar loss and the gradients, without "
    "auxiliary outputs.",
}


class Adviser:
    """Warns of calls that work, but not as intended: once for each message and optimizer."""

    def __init__(self) -> None:
        """Nothing has been said yet."""
        self._said: set[str] = set()

    def look_at(self, arrays: PyTree, keywords: Mapping[str, Any]) -> None:
        """Warns of a call outside `jax.jit`, and of keywords that look misspelt."""
        for name in keywords:
            near = _checks.suggestion(name, OWN_KEYWORDS)
            if name not in OWN_KEYWORDS and near:
                self._say(
                    f"update() got the keyword argument `{name}`, which it does not know and "
                    f"passes on to the base optimizer. Did you mean `{near}`?"
                )
        if not _trees.is_traced((arrays, jnp.zeros(()))):  # the last for constants under jit
            self._say(
                "update() runs outside of jax.jit, where each call compiles the inner loop again, "
                "which takes seconds. Put the training step into a function under jax.jit."
            )

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)


def params(tree: PyTree) -> None:
    """Raises ValueError unless `tree` is given and every leaf is real floating."""
    if tree is None:
        raise ValueError(
            "`params` must be the parameters; got None. The local entropy is a function of them: "
            "call tx.update(grads, state, params)."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = f"params{jax.tree_util.keystr(path)}"
        if isinstance(leaf, jax.ShapeDtypeStruct):
            advice = "For the shapes of the state call jax.eval_shape(tx.init, params)."
            raise _checks.error(name, "an array", str(leaf), advice)
        kind, shown = _kind(leaf)
        if kind != "real":
            raise _checks.error(name, "real floating", shown, _KIND_ADVICE[kind])


def warn_not_finite(tree: PyTree) -> None:
    """Warns of a leaf that is not finite, where its values are here and cheap to look at."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        known = not _trees.is_traced(leaf) and getattr(leaf, "is_fully_addressable", True)
        known = known and jnp.size(leaf) <= _LOOKED_AT
        with jax.transfer_guard_device_to_host("allow"):
            if known and not np.isfinite(np.asarray(leaf)).all():
                warnings.warn(
                    f"`params{jax.tree_util.keystr(path)}` holds a NaN or Inf. As long as it does, "
                    "no update is taken and nothing trains. Keep what is not trained out of "
                    "`params`, such as an attention mask of -inf.",
                    stacklevel=3,
                )


_KIND_ADVICE = {
    "complex": "Wrap the optimizer in optax.contrib.split_real_and_imaginary, with streaming=True.",
    "function": "Of an Equinox model pass only the arrays: params, static = eqx.partition(model, "
    "eqx.is_inexact_array), and eqx.combine(params, static) inside the loss.",
    "other": "Keep integers, keys, counters and names out of `params`.",
}


def _kind(leaf: Any) -> tuple[str, str]:
    """Whether a leaf is real, complex, a function or something else, and how to show it."""
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        return "function" if callable(leaf) else "other", repr(leaf)
    if jnp.issubdtype(dtype, jnp.floating):
        return "real", str(dtype)
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    return "complex" if is_complex else "other", str(dtype)


def state(
    tree: Any, like: PyTree, streaming: bool, **transforms: optax.GradientTransformation
) -> None:
    """Raises ValueError unless `tree` is the state of this optimizer for these parameters.

    Where it holds no x′ to tell, it must hold the states that `transforms` give them.
    """
    if not isinstance(tree, EntropicState):
        raise foreign_state("an EntropicState", tree)
    own, other = ("streaming", "scan") if streaming else ("scan", "streaming")
    if (tree.anchor is not None) != streaming:
        raise _checks.error(
            "state",
            f"that of an optimizer in {own} mode",
            f"one of {other} mode",
            f"Initialise it with the optimizer that takes the update. To go from {other} to {own} "
            "mode take x = anchor_params(state, params), and start again from tx.init(x).",
        )
    try:
        if tree.langevin_iterate is not None:
            same_tree("state.langevin_iterate", tree.langevin_iterate, like, "")
            return
        for name, transform in transforms.items():
            expected = jax.eval_shape(transform.init, like)
            same_tree(f"state.{name}", getattr(tree, name), expected, "")
    except ValueError as mismatch:
        raise ValueError(
            f"{mismatch}The state belongs to other parameters: initialise it with tx.init(params), "
            "for replicas with jax.vmap(tx.init)(params), whose leading axis `update` is mapped "
            "over."
        ) from None


def foreign_state(allowed: str, got: Any) -> ValueError:
    """The error about the state of another optimizer."""
    advice = "Pass what tx.init(params) or the last tx.update of this very optimizer returned."
    return _checks.error("state", allowed, f"one of type {type(got).__name__}", advice)


def bound(name: str, value: AxisName | None) -> None:
    """Raises ValueError unless a `vmap`, `pmap` or `shard_map` around the call has the axis."""
    if value is not None and not _collectives.is_bound(value):
        raise _checks.error(
            name,
            "an axis of a vmap, pmap or shard_map around this call",
            f"{value!r}, which none of them has",
            "It is the `axis_name` of vmap or pmap, or an axis of shard_map's mesh. Under jit "
            "with shardings a batch axis needs no name.",
        )


def one_gradient(batches: Any) -> None:
    """Raises ValueError if streaming mode is given batches."""
    if batches is not None:
        raise ValueError(
            "`batches` must be left out in streaming mode, where one update takes one gradient; "
            f"got a {type(batches).__name__}. Leave out streaming=True to run all inner steps in "
            "one update."
        )


def incoming(grads: PyTree, like: PyTree, mode: str) -> None:
    """Raises ValueError unless `grads` are gradients of `like`, the params."""
    if grads is None:
        raise ValueError(
            f"`grads` must be the gradients at `params` {mode}; got None. Pass "
            "tx.update(jax.grad(loss)(params, batch), state, params); only scan mode takes "
            "grads=None, which leaves all gradients to `grad_fn`."
        )
    same_tree("grads", grads, like, _GRADS)


def scalar_value(value: Any) -> None:
    """Raises ValueError unless `value` is left out or one number."""
    if value is not None and jnp.shape(value) != ():
        got, advice = f"the shape {jnp.shape(value)}", "Pass the mean over the batch."
        raise _checks.error("value", "the scalar loss that belongs to `grads`", got, advice)


def not_summed(grads: PyTree, axis_name: AxisName | None) -> None:
    """Raises ValueError if JAX has summed `grads` over the replicas already."""
    if axis_name is not None and _collectives.is_equal_on_all(grads, axis_name):
        raise _checks.error(
            "grads",
            "the gradient of the replica's own loss",
            f"one that is equal on all replicas along {axis_name!r}",
            "Inside shard_map JAX sums the gradient at replicated parameters over the mesh. Make "
            "the parameters the replica's own before you differentiate: params = "
            f"jax.lax.pcast(params, {axis_name!r}, to='varying'); or pass check_vma=False.",
        )


def same_tree(name: str, tree: PyTree, like: PyTree, advice: str) -> None:
    """Raises ValueError unless `tree` has the structure and the shapes of `like`: of the params,
    or of what was made from them.
    """
    allowed = "a tree with the structure of `params`"
    if tree is None and like is not None:
        raise _checks.error(name, allowed, "None", advice)
    expected, got = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (like, tree))
    )
    for path in [*expected, *got]:
        if path not in got or path not in expected:
            which = f"lacks {path}" if path in expected else f"also has {path}"
            raise _checks.error(name, allowed, f"one that {which}", advice)
        if expected[path] != got[path]:
            shape = f"of the parameter's shape {expected[path]}"
            raise _checks.error(f"{name}{path}", shape, f"the shape {got[path]}", advice)
    if str(jax.tree.structure(like)) != str(jax.tree.structure(tree)):
        nodes = f"the same leaves in other nodes, {type(tree).__name__}"
        raise _checks.error(name, f"{allowed}, {type(like).__name__}", nodes, advice)


def gradient_function(
    grad_fn: Any, value_and_grad_fn: Any, batches: PyTree, extra_args: Mapping[str, Any]
) -> Callable[[PyTree, PyTree], tuple[Any, PyTree]]:
    """Returns whichever is given as a function to (loss or None, gradients).

    Raises ValueError unless exactly one is given; the function does if it returns anything else.
    """
    if grad_fn is None and value_and_grad_fn is None:
        raise _no_gradient_function(batches, extra_args)
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
    call = f"{name}(params, batch)"

    def evaluate(point: PyTree, batch: PyTree) -> tuple[Any, PyTree]:
        try:
            returned = function(point, batch)
        except Exception as error:
            if batches is None:
                error.add_note(
                    f"`{name}` was called with the number of the call for its second argument, "
                    "because tx.update was given no `batches`."
                )
            raise
        loss, grads = (None, returned) if grad_fn is not None else _pair(returned)
        same_tree(call, grads, point, _GRAD_FN[call])
        return loss, grads

    return evaluate


def whole(tree: PyTree) -> None:
    """Raises ValueError if `optax.masked` or `optax.partition` has left holes in `tree`."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    if any(isinstance(node, optax.MaskedNode) for node in nodes):
        raise ValueError(
            "`params` must be the whole model in scan mode, for `grad_fn` to see; got a tree with "
            "MaskedNode in it, from optax.masked or optax.partition. To freeze parameters, hold "
            "them inside and outside the loop: with hold = optax.masked(optax.set_to_zero(), "
            "frozen), entropic(optax.chain(base_optimizer, hold), noise_scale=0, "
            "inner_transform=optax.chain(optax.trace(0.9), hold)). To give each group an optimizer "
            "of its own, use streaming=True."
        )


def stacked(batches: PyTree, calls: int, steps: int) -> None:
    """Raises ValueError unless every leaf of `batches` has a leading axis of length `calls`."""

    def is_leaf(node: Any) -> bool:  # an iterator is not a JAX tree
        return hasattr(node, "__next__")

    for path, leaf in jax.tree_util.tree_leaves_with_path(batches, is_leaf=is_leaf):
        shape = () if isinstance(leaf, int | float) else getattr(leaf, "shape", None)
        if shape is None or shape[:1] != (calls,):
            if not calls:
                raise ValueError(
                    "`batches` must be left out with inner_steps=1 and `grads`, which is all the "
                    "gradients there are; got batches. Pass grads=None for `grad_fn` to see them."
                )
            got = f"a {type(leaf).__name__}" if shape is None else f"the shape {shape}"
            how = "`grads` is None" if calls == steps else "`grads` is the first of the gradients"
            raise ValueError(
                f"`batches{jax.tree_util.keystr(path)}` must have a leading axis of length {calls} "
                f"(inner_steps={steps} and {how}); got {got}. Stack the batches along "
                "a new leading axis: jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)."
            )


def _no_gradient_function(batches: PyTree, extra_args: Mapping[str, Any]) -> ValueError:
    arrived = sorted([*extra_args, *(["batches"] if batches is not None else [])])
    near = [(name, _checks.suggestion(name, OWN_KEYWORDS[:2])) for name in extra_args]
    meant = "".join(f" Did you mean `{hit}` by `{name}`?" for name, hit in near if hit)
    return ValueError(
        "`grad_fn` must be given in scan mode; got None, "
        f"{f'and the keyword arguments {arrived}' if arrived else 'and no other keyword'}.{meant} "
        "Either pass tx.update(grads, state, params, grad_fn=..., "
        "batches=...), where grad_fn(params, batch) returns gradients; or build the optimizer "
        "with streaming=True, which takes one tx.update(grads, state, params) for each "
        "gradient. TrainState.apply_gradients does not pass grad_fn on: call tx.update "
        "yourself, or use streaming=True."
    )


def _pair(returned: Any) -> tuple[Any, PyTree]:
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
