"""Checks of the arguments of a factory, with errors that say what to do about it.

Each argument has one rule, with its range and its advice in one place. Only concrete values are
checked, not traced ones: their range is the user's promise.
"""

from __future__ import annotations

import difflib
import math
import operator
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_sgd_jax import _noise

Rule: TypeAlias = Callable[[str, Any], Any]  # (name, value) -> value, or ValueError

INT32_MAX = 2**31 - 1


def check(name: str, value: Any) -> Any:
    """Returns `value` as the library uses it; raises ValueError if the argument's rule says so."""
    return RULES[name](name, value)


def error(name: str, allowed: str, got: str, advice: str) -> ValueError:
    """An error in the form that all of them share."""
    return ValueError(f"`{name}` must be {allowed}; got {got}. {advice}")


def number(
    advice: str,
    low: float = 0,
    high: float = math.inf,
    *,
    open_end: str = "",
    schedule: bool = True,
    optional: bool = False,
    static: bool = False,
) -> Rule:
    """A number in a range, as a float if it is concrete; a schedule too, or None, if allowed.

    `open_end` names the end, "low" or "high", that is excluded; `static` means that the number
    decides which program is built, so that it must not be traced.
    """
    left = "(" if open_end == "low" else "["
    right = ")" if open_end == "high" or high == math.inf else "]"
    allowed = f"a number in {left}{low}, {high}{right}" + " or a schedule" * schedule
    excluded = {"low": (low,), "high": (high,), "": ()}[open_end]

    def rule(name: str, value: Any) -> Any:
        if optional and value is None:
            return None
        if schedule and callable(value):
            return value
        known = _python_float(value)
        if known is None and static:
            hint = advice + _static(name, value)
            raise error(name, f"{allowed}, and not traced", repr(value), hint)
        if known is None:
            return value
        if not low <= known <= high or known in (*excluded, math.inf):
            raise error(name, allowed, shown(value), advice)
        return value if isinstance(value, jax.Array) and not static else known

    return rule


def decay(advice: str) -> Rule:
    """A number in [0, 1), or None."""
    return number(advice, high=1, open_end="high", schedule=False, optional=True)


def integer(advice: str, low: int = 0, high: int = INT32_MAX, *, optional: bool = False) -> Rule:
    """A static integer in a range; None too, if allowed."""
    in_range = f"a static integer in [{low}, {high}]"
    allowed = f"an integer >= {low}" if high == INT32_MAX else in_range

    def rule(name: str, value: Any) -> int | None:
        if optional and value is None:
            return None
        try:
            if isinstance(value, bool | np.bool_ | jax.Array):
                raise TypeError
            known = operator.index(value)
        except TypeError:
            raise error(name, allowed, shown(value), advice + _static(name, value)) from None
        if not low <= known <= high:
            raise error(name, in_range if known > high else allowed, shown(value), advice)
        return known

    return rule


def flag(advice: str) -> Rule:
    """True or False."""

    def rule(name: str, value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise error(name, "True or False", repr(value), advice)
        return bool(value)

    return rule


def choice(advice: str, allowed: tuple[Any, ...]) -> Rule:
    """One of a few values."""
    listed = " or ".join(map(repr, allowed))

    def rule(name: str, value: Any) -> Any:
        if isinstance(value, jax.Array | np.ndarray) or value not in allowed:
            raise error(name, listed, repr(value), advice + _static(name, value))
        return value

    return rule


def axis(advice: str) -> Rule:
    """The name of an axis, or a tuple of different ones, or None."""
    allowed = "the name of an axis, or a tuple of them, or None"

    def rule(name: str, value: Any) -> Any:
        if value is None:
            return None
        names = _axes(value)
        named = all(
            isinstance(part, Hashable) and not isinstance(part, int | None) for part in names
        )
        if not names or not named or len(set(names)) < len(names):
            raise error(name, allowed, repr(value), advice)
        return value

    return rule


def transformation(advice: str) -> Rule:
    """An Optax transformation, returned with extra arguments supported."""

    def rule(name: str, value: Any) -> optax.GradientTransformationExtraArgs:
        if not (
            callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))
        ):
            raise error(name, "an optax.GradientTransformation", repr(value), advice)
        return optax.with_extra_args_support(value)

    return rule


def direction(advice: str) -> Rule:
    """A transformation that does not point downhill, or None."""

    def rule(name: str, value: Any) -> optax.GradientTransformationExtraArgs | None:
        if value is None:
            return None
        known = transformation(advice)(name, value)
        cosine = _cosine_with_gradient(known)
        if cosine is not None and cosine < -0.5:
            raise error(
                name,
                "a direction uphill, without a learning rate of its own",
                f"one that points downhill (the cosine with the gradient is {cosine:.2f}), as a "
                "whole optimizer does",
                "Pass the direction alone, such as optax.trace(0.9) for optax.sgd(…, 0.9) or "
                "optax.scale_by_adam() for optax.adam(…), with the rate as `inner_learning_rate`; "
                "or turn it round: optax.chain(optimizer, optax.scale(-1.0)) with "
                "inner_learning_rate=1. diloco takes a whole optimizer as `inner_optimizer`.",
            )
        return known

    return rule


def whole_optimizer(advice: str) -> Rule:
    """A transformation that does not point uphill."""

    def rule(name: str, value: Any) -> optax.GradientTransformationExtraArgs:
        known = transformation(advice)(name, value)
        cosine = _cosine_with_gradient(known)
        if cosine is not None and cosine > 0.5:
            raise error(
                name,
                "a whole optimizer, which goes downhill at its own learning rate",
                f"one that points uphill (the cosine with the gradient is {cosine:.2f})",
                "Pass for example optax.adamw(4e-4); a direction such as optax.scale_by_adam() "
                "goes into `inner_transform`, with its rate as `inner_learning_rate`.",
            )
        return known

    return rule


def warn_uphill(base_optimizer: optax.GradientTransformation) -> None:
    """Warns of a base optimizer that points uphill: it may be right, before a negative scale."""
    cosine = _cosine_with_gradient(base_optimizer)
    if cosine is not None and cosine > 0.5:
        warnings.warn(
            f"`base_optimizer` points uphill (the cosine with x - μ is {cosine:.2f}), away from μ. "
            "Pass a whole optimizer such as optax.adam(0.01), or put optax.scale(-rate) after it: "
            "entropic(optax.chain(direction, optax.scale(-rate))).",
            stacklevel=4,
        )


def dtype(advice: str) -> Rule:
    """A real floating dtype, or None."""

    def rule(name: str, value: Any) -> Any:
        if value is None:
            return None
        try:
            known = jnp.dtype(value)
        except TypeError:
            known = None
        if known is None or not jnp.issubdtype(known, jnp.floating):
            raise error(name, "None or a real floating dtype", repr(value), advice)
        return known

    return rule


def key(advice: str) -> Rule:
    """An integer of at most 64 bits, a typed key or a legacy uint32 key."""

    def rule(name: str, value: Any) -> Any:
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if is_integer and not -(2**63) <= int(value) < 2**64:
            raise error(name, "an integer of at most 64 bits", shown(value), advice)
        if not (is_integer or _is_key_array(value)):
            allowed = "an integer, a typed key or a legacy uint32 key"
            raise error(name, allowed, repr(value), advice)
        return value

    return rule


_AXIS = "It is the `axis_name` of vmap or pmap, or an axis of shard_map's mesh, over the replicas."
_COUPLING = number("Parle's grows from 1 to 10; 0 lets the replicas go their own ways.")

RULES: Mapping[str, Rule] = {
    "learning_rate": number("1.0 is the paper's for entropy_sgd, 0.01 or less for entropy_adam."),
    "momentum": decay("0.9 is usual; None for none."),
    "nesterov": flag("It says whether the momentum is Nesterov's."),
    "inner_momentum": decay("0.9 is the paper's; None for none."),
    "inner_nesterov": flag("It says whether the inner momentum is Nesterov's."),
    "b1": number("0.9 is usual.", high=1, open_end="high", schedule=False),
    "b2": number("0.999 is usual.", high=1, open_end="high", schedule=False),
    "eps": number("1e-8 is usual.", schedule=False),
    "base_optimizer": transformation("Pass for example optax.sgd(1.0), called."),
    "inner_steps": integer("5 to 20 is usual, 0 runs the base optimizer alone."),
    "inner_learning_rate": number("0.1 to 1 is usual."),
    "scope": number("1e-4 to 0.1 is usual to start with; scoping(...) lets it grow."),
    "noise_scale": number("1e-4 to 1e-3 is usual, 0 switches the noise off."),
    "averaging": number(
        "It is the weight of the newest iterate; 0.75 is the paper's, 1 keeps the last.", high=1
    ),
    "inner_transform": direction(
        "Pass a direction such as optax.trace(0.9) or optax.scale_by_adam(), without a learning "
        "rate of its own, or None."
    ),
    "inner_optimizer": whole_optimizer("Pass for example optax.adamw(4e-4), called."),
    "reset_inner_state": flag(
        "False carries the state of inner_transform over to the next update."
    ),
    "noise": choice(
        "gaussian is the Langevin equation's, rademacher is cheaper.", tuple(_noise.SOURCES)
    ),
    "scale_by_scope": flag("True multiplies x - μ by the scope."),
    "streaming": flag("True takes one gradient in each update, False all of them in one."),
    "batch_axis_name": axis(
        "It is the `axis_name` of vmap or pmap, or an axis of shard_map's mesh, over which the "
        "batch is split. Under jit with shardings leave it out."
    ),
    "replica_axis_name": axis(_AXIS),
    "axis_name": axis(_AXIS),
    "coupling": _COUPLING,
    "strength": _COUPLING,
    "offset": integer("It is how many gradients old the first cycle counts as, below L."),
    "delay": integer("It is how many gradients an outer step takes to arrive, below L."),
    "blend": number(
        "0 goes on from x alone, 0.5 from half of it.", high=1, schedule=False, static=True
    ),
    "bits": choice("None exchanges the pseudo-gradients in their own dtype.", (None, 8, 4)),
    "top_k": integer("64 of each 4,096 numbers is usual; None sends all.", 1, 4096, optional=True),
    "accumulator_dtype": dtype("Pass for example jnp.float32, or None for at least float32."),
    "diagnostics": flag("True keeps a record of each update for entropic_diagnostics(state)."),
    "key": key("Pass for example key=0 or key=jax.random.key(0)."),
    "init_value": number("The paper's are 1e-4 on MNIST and 0.03 on CIFAR-10.", schedule=False),
    "growth_rate": number(
        "The paper's is 0.001 for each outer step.", low=-1, open_end="low", schedule=False
    ),
    "max_value": number("Parle's is 1.0; None for no ceiling.", schedule=False, optional=True),
    "replica_weight": number(
        "It is for example the number of tokens that the replica has seen, 0 if it is absent.",
        schedule=False,
    ),
}


def given(name: str, value: Any) -> Any:
    """Returns the axis `value`; raises ValueError for None, which other functions allow."""
    if value is None:
        raise error(name, "the name of an axis, or a tuple of them", "None", _AXIS)
    return check(name, value)


def different_axes(batch_axis_name: Any, replica_axis_name: Any) -> None:
    """Raises ValueError if an axis is one of the batch and of the replicas."""
    both = set(_axes(batch_axis_name)) & set(_axes(replica_axis_name)) - {None}
    if both:
        raise error(
            "replica_axis_name",
            "another axis than `batch_axis_name`",
            f"{replica_axis_name!r} and {batch_axis_name!r}",
            "Replicas differ along the one, and share their gradients along the other: give the "
            "mesh, or the nested vmap or pmap, an axis for each.",
        )


def of_streams_only(options: Mapping[str, Any]) -> None:
    """Raises ValueError for options that need streaming mode, or that exceed its cycle."""
    for name in ("offset", "delay", "blend"):
        value = options.get(name, 0)
        if value and not options["streaming"]:
            raise streams_only(name, 0, value)
        if name != "blend" and value >= max(options["inner_steps"], 1):
            allowed = f"an integer in [0, {options['inner_steps'] - 1}], below `inner_steps`"
            raise error(name, allowed, repr(value), "A cycle has no more gradients.")


def streams_only(name: str, otherwise: Any, got: Any) -> ValueError:
    """The error about an option that needs streaming mode."""
    allowed = f"{otherwise} without streaming=True or inner steps"
    return error(name, allowed, repr(got), "Pass streaming=True, and inner_steps of at least 1.")


def _cosine_with_gradient(transform: optax.GradientTransformation) -> float | None:
    """The cosine of the first update with its gradient; None if it cannot be found here.

    The first that is not zero, as it is at the start of a warm-up.
    """
    like = np.linspace(0.5, 1.0, 64, dtype=np.float32).reshape(8, 8)
    try:
        # Concrete even if the optimizer is built inside a traced function.
        with jax.ensure_compile_time_eval():
            params = jnp.asarray(like)
            state = transform.init(params)
            for _ in range(8):
                direction, state = transform.update(params, state, params)
                d = np.asarray(direction, np.float64)
                if d.any():
                    break
    except Exception:  # it needs parameters or arguments of its own
        return None
    norm = np.linalg.norm(d) * np.linalg.norm(like)
    return float(np.sum(d * like) / norm) if np.isfinite(norm) and norm > 0 else None


# What users of other libraries, and of the paper, call the arguments; the likeliest first.
_SYNONYMS = {
    "lr": "learning_rate",
    "eta": "learning_rate",
    "step_size": "learning_rate",
    "inner_lr": "inner_learning_rate",
    "inner_step_size": "inner_learning_rate",
    "langevin_lr": "inner_learning_rate",
    "gamma": "scope",
    "g0": "scope",
    "L": "inner_steps",
    "steps": "inner_steps",
    "num_steps": "inner_steps",
    "num_inner_steps": "inner_steps",
    "sync_every": "inner_steps",
    "sync_period": "inner_steps",
    "langevin_iters": "inner_steps",
    "noise_std": "noise_scale",
    "epsilon": "eps noise_scale",
    "temperature": "noise_scale",
    "alpha": "averaging",
    "beta": "averaging",
    "seed": "key",
    "rng_key": "key",
    "rng": "key",
    "axis_name": "replica_axis_name batch_axis_name",
    "rho": "coupling",
    "outer_learning_rate": "learning_rate",
    "outer_lr": "learning_rate",
    "outer_optimizer": "base_optimizer learning_rate",
    "batch": "batches",
    "data": "batches",
    "gradient_fn": "grad_fn",
    "loss_and_grad_fn": "value_and_grad_fn",
    "grads_fn": "grad_fn",
    "weight": "replica_weight",
    "loss": "value",
}


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """The argument that `name` seems to stand for; None if it resembles none."""
    known = list(known)
    meant = [near for near in _SYNONYMS.get(name, "").split() if near in known]
    return next(iter(meant or difflib.get_close_matches(name, known, n=1, cutoff=0.8)), None)


def known_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError, as Python does, for a keyword that the function does not have."""
    known = list(known)
    for name in given:
        if name not in known:
            near = suggestion(name, known)
            advice = f"Did you mean `{near}`?" if near else f"It takes {', '.join(known)}."
            raise TypeError(f"{function}() got an unexpected keyword argument '{name}'. {advice}")


def _static(name: str, value: Any) -> str:
    """What to do about an array in the place of a static value."""
    hint = f" It must be static: under optax.inject_hyperparams pass static_args=({name!r},)."
    return hint * isinstance(value, jax.Array)


def _axes(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def shown(value: Any) -> str:
    """`value` as an error shows it; Python refuses to print an integer of thousands of digits."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _is_key_array(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or jnp.issubdtype(value.dtype, jnp.integer):
        return value.ndim == 0 or (value.dtype == jnp.uint32 and value.shape in ((2,), (4,)))
    return False


def _python_float(value: Any) -> float | None:
    """`value` as a float; None if it is a traced scalar; NaN if it is no scalar number."""
    is_number = isinstance(value, int | float | np.number | np.ndarray | jax.Array)
    if not is_number or isinstance(value, bool) or jnp.ndim(value) != 0:
        return math.nan
    try:
        return float(value)
    except jax.errors.ConcretizationTypeError:
        return None
    except (OverflowError, TypeError):
        return math.nan
