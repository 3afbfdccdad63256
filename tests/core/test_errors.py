"""Every wrong call says which argument, what it was, what is allowed and what to do.

Print all messages as a user sees them with `pytest tests/test_errors.py -s -k no_message`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from entropy_sgd_jax import (
    anchor_params,
    average_over_replicas,
    entropic,
    entropic_diagnostics,
    entropy_adam,
    entropy_sgd,
    scoping,
)
from tests.core.helpers import FACTORIES, gradient, partition

L = 3
PARAMS = {"w": jnp.ones(2), "b": jnp.zeros(())}
GRADS = {"w": jnp.ones(2), "b": jnp.ones(())}
MORE = {**GRADS, "more": jnp.ones(1)}

Case = tuple[Callable[[], Any], tuple[str, ...]]


def update(grads: Any = None, params: Any = PARAMS, *, build: Any = None, **extra: Any) -> Any:
    """A traced call of `update`, in scan mode unless `build` says otherwise."""
    tx = entropy_sgd(1.0, **{"inner_steps": L, "noise_scale": 0, **(build or {})})
    state = tx.init(PARAMS)
    jax.eval_shape(lambda grads: tx.update(grads, state, params, **extra), grads)


def with_grad_fn(returned: Any, **kwargs: Any) -> Any:
    """A call whose `grad_fn` returns `returned`."""
    return update(grad_fn=lambda params, batch: returned, **kwargs)


def with_value_and_grad_fn(returned: Any) -> Any:
    """A call whose `value_and_grad_fn` returns `returned`."""
    return update(value_and_grad_fn=lambda params, batch: returned)


def with_holes(wrap: Callable[[Any], optax.GradientTransformation]) -> Any:
    """A call in scan mode with part of the tree hidden."""
    tx = wrap(entropy_sgd(1.0, inner_steps=L))
    state = tx.init(PARAMS)
    jax.eval_shape(lambda grads: tx.update(grads, state, PARAMS, grad_fn=gradient), GRADS)


def two_records() -> Any:
    one = entropy_sgd(1.0, streaming=True, diagnostics=True)
    tx = partition({"a": one, "b": one}, {"w": "a", "b": "b"})
    entropic_diagnostics(tx.init(PARAMS))


def anchor_of_what_is_wrapped(wrap: Callable[[Any], Any], dtype: Any = jnp.float32) -> Any:
    """x asked for outside of a wrapper that hands the optimizer other arrays."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    state = wrap(entropy_sgd(1.0, inner_steps=L, streaming=True)).init(params)
    anchor_params(state, params)


class Loader:
    """What jax.tree takes for a leaf."""

    def __len__(self) -> int:
        return L


STREAMING = {"streaming": True}
BASELINE = {"inner_steps": 0}
BATCHES = [{"x": jnp.ones((8, 4))} for _ in range(L - 1)]

CALLS: dict[str, Case] = {
    "no grad_fn": (lambda: update(GRADS), ("`grad_fn`", "None", "streaming=True", "batches")),
    "a misspelt grad_fn": (
        lambda: update(GRADS, grad_func=gradient, batches=jnp.ones(L - 1)),
        ("`grad_fn`", "grad_func", "'batches'", "tx.update(grads, state, params, grad_fn="),
    ),
    "TrainState": (lambda: update(GRADS), ("TrainState", "apply_gradients")),
    "grad_fn is no function": (
        lambda: update(GRADS, grad_fn=GRADS["w"]),
        ("`grad_fn`", "function", "jax.grad(loss)"),
    ),
    "value_and_grad_fn is no function": (
        lambda: update(GRADS, value_and_grad_fn=3.5),
        ("`value_and_grad_fn`", "3.5", "jax.value_and_grad(loss)"),
    ),
    "both functions": (
        lambda: update(grad_fn=gradient, value_and_grad_fn=jax.value_and_grad(lambda p, b: 0.0)),
        ("`grad_fn`", "`value_and_grad_fn`", "both"),
    ),
    "no params": (
        lambda: update(GRADS, None, grad_fn=gradient),
        ("`params`", "None", "tx.update(grads, state, params"),
    ),
    "no params, streaming": (
        lambda: update(GRADS, None, build=STREAMING),
        ("`params`", "None", "tx.update(grads, state, params"),
    ),
    "no params, L = 0": (
        lambda: update(GRADS, None, build=BASELINE),
        ("`params`", "None", "tx.update(grads, state, params"),
    ),
    "no grads, streaming": (
        lambda: update(None, build=STREAMING),
        ("`grads`", "None", "streaming"),
    ),
    "no grads, L = 0": (lambda: update(None, build=BASELINE), ("`grads`", "None", "inner_steps=0")),
    "grads of another structure": (
        lambda: update(MORE, grad_fn=gradient),
        ("`grads`", "structure", "more"),
    ),
    "grads of another structure, streaming": (
        lambda: update(MORE, build=STREAMING),
        ("`grads`", "structure", "more"),
    ),
    "grads of another shape": (
        lambda: update({**GRADS, "w": jnp.ones(3)}, grad_fn=gradient),
        ("`grads['w']`", "(2,)", "(3,)"),
    ),
    "grads of another shape, L = 0": (
        lambda: update({**GRADS, "w": jnp.ones(3)}, build=BASELINE),
        ("`grads['w']`", "(2,)", "(3,)"),
    ),
    "batches as a list": (
        lambda: update(GRADS, grad_fn=gradient, batches=BATCHES),
        ("`batches[0]['x']`", "leading axis", "2", "(8, 4)", "inner_steps=3", "jnp.stack"),
    ),
    "one batch too many": (
        lambda: update(GRADS, grad_fn=gradient, batches=jnp.ones((L, 4))),
        ("`batches`", "leading axis of length 2", "(3, 4)", "inner_steps=3", "`grads`"),
    ),
    "one batch too few": (
        lambda: update(None, grad_fn=gradient, batches={"x": jnp.ones((L - 1, 4))}),
        ("`batches['x']`", "leading axis of length 3", "(2, 4)", "`grads` is None"),
    ),
    "a scalar in batches": (
        lambda: update(None, grad_fn=gradient, batches=(jnp.ones((L, 4)), 0.5)),
        ("`batches[1]`", "leading axis of length 3", "()"),
    ),
    "a data loader as batches": (
        lambda: update(None, grad_fn=gradient, batches=iter(BATCHES)),
        ("`batches`", "leading axis", "list_iterator", "jnp.stack"),
    ),
    "an unknown object as batches": (
        lambda: update(None, grad_fn=gradient, batches=Loader()),
        ("`batches`", "leading axis", "Loader", "jnp.stack"),
    ),
    "no second batch at L = 1": (
        lambda: update(GRADS, build={"inner_steps": 1}, batches=jnp.ones((1, 4))),
        ("`batches`", "left out", "inner_steps=1", "grads=None"),
    ),
    "grad_fn returns (value, grads)": (
        lambda: with_grad_fn((jnp.zeros(()), GRADS)),
        ("`grad_fn(params, batch)`", "structure", "`value_and_grad_fn`"),
    ),
    "grad_fn returns (grads, aux)": (
        lambda: with_grad_fn((GRADS, {"accuracy": jnp.zeros(())})),
        ("`grad_fn(params, batch)`", "structure", "auxiliary"),
    ),
    "grad_fn returns nothing": (
        lambda: with_grad_fn(None),
        ("`grad_fn(params, batch)`", "structure", "None"),
    ),
    "grad_fn returns more": (
        lambda: with_grad_fn(MORE, grads=GRADS),
        ("`grad_fn(params, batch)`", "structure", "more"),
    ),
    "grad_fn returns another shape": (
        lambda: with_grad_fn({**GRADS, "b": jnp.ones(4)}),
        ("`grad_fn(params, batch)['b']`", "()", "(4,)"),
    ),
    "value is no scalar": (
        lambda: update(GRADS, value=jnp.ones(4), grad_fn=gradient),
        ("`value`", "scalar", "(4,)", "mean over the batch"),
    ),
    "value_and_grad_fn returns gradients": (
        lambda: with_value_and_grad_fn(GRADS),
        ("`value_and_grad_fn(params, batch)`", "scalar loss", "`grad_fn`"),
    ),
    "value_and_grad_fn returns three": (
        lambda: with_value_and_grad_fn((jnp.zeros(()), GRADS, 0)),
        ("`value_and_grad_fn(params, batch)`", "pair"),
    ),
    "value_and_grad_fn returns auxiliary outputs": (
        lambda: with_value_and_grad_fn(((jnp.zeros(()), {"accuracy": jnp.zeros(())}), GRADS)),
        ("`value_and_grad_fn(params, batch)`", "scalar loss", "auxiliary"),
    ),
    "value_and_grad_fn returns a vector of losses": (
        lambda: with_value_and_grad_fn((jnp.zeros(8), GRADS)),
        ("`value_and_grad_fn(params, batch)`", "scalar loss", "(8,)"),
    ),
    "value_and_grad_fn returns gradients of another shape": (
        lambda: with_value_and_grad_fn((jnp.zeros(()), {**GRADS, "b": jnp.ones(4)})),
        ("`value_and_grad_fn(params, batch)['b']`", "()", "(4,)"),
    ),
    "masked in scan mode": (
        lambda: with_holes(lambda tx: optax.masked(tx, {"w": True, "b": False})),
        ("`params`", "MaskedNode", "set_to_zero", "streaming=True"),
    ),
    "partition in scan mode": (
        lambda: with_holes(
            lambda tx: partition({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "b": "b"})
        ),
        ("`params`", "MaskedNode", "set_to_zero", "streaming=True"),
    ),
    "batches in streaming mode": (
        lambda: update(GRADS, build=STREAMING, batches=jnp.ones((L, 8, 4))),
        ("`batches`", "one gradient", "Leave out streaming=True"),
    ),
    "shapes for parameters": (
        lambda: entropy_sgd(1.0).init(jax.eval_shape(lambda: PARAMS)),
        ("`params['b']`", "ShapeDtypeStruct", "jax.eval_shape(tx.init, params)"),
    ),
    "integer parameters": (
        lambda: entropy_sgd(1.0).init({"w": jnp.ones(2), "step": jnp.zeros((), jnp.int32)}),
        ("`params['step']`", "int32", "floating"),
    ),
    "complex parameters": (
        lambda: entropy_sgd(1.0).init([jnp.ones(2, jnp.complex64)]),
        ("`params[0]`", "complex64", "split_real_and_imaginary", "streaming=True"),
    ),
    "a key among the parameters": (
        lambda: entropy_sgd(1.0).init({"w": jnp.ones(2), "dropout": jax.random.key(0)}),
        ("`params['dropout']`", "key", "floating"),
    ),
    "a string among the parameters": (
        lambda: entropy_sgd(1.0).init({"w": jnp.ones(2), "name": "dense"}),
        ("`params['name']`", "dense", "floating"),
    ),
    "no parameters": (lambda: entropy_sgd(1.0).init(None), ("`params`", "None")),
    "no record": (
        lambda: entropic_diagnostics(optax.chain(entropy_sgd(1.0)).init(PARAMS)),
        ("diagnostics=True", "entropy_sgd("),
    ),
    "no EntropicState, diagnostics": (
        lambda: entropic_diagnostics(optax.adam(0.1).init(PARAMS)),
        ("`state`", "EntropicState", "tx.init"),
    ),
    "parameters of another shape, anchor_params": (
        lambda: anchor_of_what_is_wrapped(optax.flatten),
        ("`params`", "(3,)", "optax.flatten", "every L-th update"),
    ),
    "parameters of another structure, anchor_params": (
        lambda: anchor_of_what_is_wrapped(optax.contrib.split_real_and_imaginary, jnp.complex64),
        ("`params`", "split_real_and_imaginary", "nnx.as_pure"),
    ),
    "no EntropicState, anchor_params": (
        lambda: anchor_params(optax.adam(0.1).init(PARAMS), PARAMS),
        ("`state`", "EntropicState", "tx.init"),
    ),
    "params and state swapped": (
        lambda: anchor_params(PARAMS, entropy_sgd(1.0).init(PARAMS)),
        ("`state`", "EntropicState", "dict"),
    ),
    "two records": (two_records, ("`state`", "one EntropicState", "2", "inner_states")),
}

FROM_ZERO = ("a number in [0, inf)", "schedule")
FROM_ZERO_TO_ONE = ("a number in [0, 1]", "schedule")
BELOW_ONE = ("a number in [0, 1)",)
INTEGER = ("an integer >= 0",)
KEY = ("an integer, a typed key or a legacy uint32 key", "key=0")
SCHEDULE = optax.constant_schedule(0.9)  # Optax's own momentum takes none
DTYPE = ("a real floating dtype", "jnp.float32")
TRANSFORMATION = ("an optax.GradientTransformation", "Pass")

BAD: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "inner_steps": ((-1, 2.5, True, "3", None, jnp.int32(3), np.float32(3)), INTEGER),
    "inner_learning_rate": (
        (-0.1, np.nan, np.inf, "0.1", None, True, [0.1], jnp.float32(-0.1), np.float64(-0.1)),
        FROM_ZERO,
    ),
    "scope": ((-1, np.nan, jnp.ones(3), np.ones((1, 1)), 1j), FROM_ZERO),
    "noise_scale": ((-1, np.nan, "1e-4"), FROM_ZERO),
    "averaging": ((1.5, -0.1, np.nan, jnp.float32(1.5)), FROM_ZERO_TO_ONE),
    "learning_rate": ((-1, np.nan, "1.0", None, jnp.float32(-1)), FROM_ZERO),
    "momentum": ((1.0, -0.5, np.nan, "0.9", SCHEDULE), BELOW_ONE),
    "inner_momentum": ((1.0, -0.5, np.nan, "0.9", SCHEDULE), BELOW_ONE),
    "noise": (("cauchy", "Gaussian", None, 1.0), ("'gaussian'", "'rademacher'")),
    "key": (
        ("abc", 1.5, None, True, jnp.ones(2), np.zeros(3, np.uint32), jnp.zeros(2, jnp.int32)),
        KEY,
    ),
    "accumulator_dtype": (("nonsense", jnp.int32, jnp.complex64, 3), DTYPE),
    "inner_transform": ((optax.trace, 0.9, "trace"), TRANSFORMATION),
}


def show(value: Any) -> str:
    """A name for the test: the same in every worker, so no addresses."""
    return getattr(value, "__name__", None) or repr(value)


def paper(**kwargs: Any) -> Any:
    return entropy_sgd(**{"learning_rate": 1.0, **kwargs})


def hyperparameter_cases() -> dict[str, Case]:
    """Every value of `BAD` as a case; the message must show the value."""

    def case(make: Callable[..., Any], name: str, value: Any, allowed: tuple[str, ...]) -> Case:
        return lambda: make(**{name: value}), (f"`{name}`", repr(value), *allowed)

    cases = {}
    for name, (values, allowed) in BAD.items():
        for value in values:
            shown = f"entropy_sgd({name}={show(value)})"
            cases[shown] = case(
                lambda **kwargs: entropy_sgd(**{"learning_rate": 1.0, **kwargs}),
                name,
                value,
                allowed,
            )
    for name, value, allowed in (
        ("b1", 1, BELOW_ONE),
        ("b1", -0.1, BELOW_ONE),
        ("b2", 1.0, BELOW_ONE),
        ("b2", "0.9", BELOW_ONE),
        ("b2", SCHEDULE, BELOW_ONE),
        ("eps", -1e-8, ("a number in [0, inf)",)),
        ("eps", SCHEDULE, ("a number in [0, inf)",)),
        ("learning_rate", -1, FROM_ZERO),
        ("inner_momentum", 1.0, BELOW_ONE),
        ("scope", -1, FROM_ZERO),
        ("inner_steps", -1, INTEGER),
    ):
        cases[f"entropy_adam({name}={show(value)})"] = case(
            lambda **kwargs: entropy_adam(**{"learning_rate": 0.1, **kwargs}), name, value, allowed
        )
    for value in (optax.sgd, None, 0.1, optax.constant_schedule(0.1)):
        cases[f"entropic(base_optimizer={show(value)})"] = case(
            entropic, "base_optimizer", value, TRANSFORMATION
        )
    for name, value, low in (
        ("scope", -1, FROM_ZERO),
        ("averaging", 1.5, FROM_ZERO_TO_ONE),
        ("inner_steps", 2.5, INTEGER),
        ("key", "abc", KEY),
        ("noise", "cauchy", ("'gaussian'",)),
    ):
        cases[f"entropic({name}={show(value)})"] = case(
            lambda **kwargs: entropic(optax.sgd(1.0), **kwargs), name, value, low
        )
    defaults = {"init_value": 0.1, "growth_rate": 1e-3, "max_value": None}
    for name, value, allowed in (
        ("init_value", -1, ("[0, inf)",)),
        ("init_value", "0.1", ("[0, inf)",)),
        ("growth_rate", -1, ("(-1, inf)",)),
        ("growth_rate", np.nan, ("(-1, inf)",)),
        ("max_value", -1.0, ("[0, inf)",)),
        ("init_value", SCHEDULE, ("[0, inf)",)),
    ):
        cases[f"scoping({name}={show(value)})"] = case(
            lambda **kwargs: scoping(**{**defaults, **kwargs}), name, value, allowed
        )
    return cases


def test_only_what_takes_a_schedule_says_so() -> None:
    for name in ("momentum", "inner_momentum"):
        with pytest.raises(ValueError, match="must be") as caught:
            entropy_sgd(1.0, **{name: 2.0})
        assert "schedule" not in str(caught.value)
    for name in ("b1", "b2", "eps"):
        with pytest.raises(ValueError, match="must be") as caught:
            entropy_adam(1.0, **{name: -2.0})
        assert "schedule" not in str(caught.value)
    with pytest.raises(ValueError, match="must be") as caught:
        scoping(-1.0, 0.1)
    assert "schedule" not in str(caught.value)


ALL = {**CALLS, **hyperparameter_cases()}


@pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
def test_message(case: Case) -> None:
    call, words = case
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the words are checked below)
        call()
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, message
    assert message.endswith((".", ")")), message
    assert len(message) < 1000, message


def message_of(call: Callable[[], Any]) -> str:
    """What `call` says, and with which kind of error."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_no_message_is_empty() -> None:
    # For the eye: run with -s.
    messages = {name: message_of(call) for name, (call, _) in ALL.items()}
    for name, message in messages.items():
        print(f"\n{name}\n    {message}")
    assert all(len(message) > 40 for message in messages.values() if "ValueError" in message)


def test_the_message_is_short_for_a_large_model() -> None:
    layers = {f"layer{i}": {"kernel": jnp.ones(1), "bias": jnp.ones(1)} for i in range(200)}
    tx = entropy_sgd(1.0, inner_steps=L)
    state = tx.init(layers)
    missing = {name: layer for name, layer in layers.items() if name != "layer7"}
    with pytest.raises(ValueError, match="layer7") as caught:
        tx.update(missing, state, layers, grad_fn=gradient)
    assert len(str(caught.value)) < 1000


def test_missing_batches_are_the_number_of_the_call_not_an_error() -> None:
    update(GRADS, grad_fn=lambda params, call: jax.tree.map(lambda leaf: leaf * call, params))


def test_a_wrong_grad_fn_is_found_under_grad_too() -> None:
    # The usual slip: jax.value_and_grad where jax.grad is wanted.
    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(params["w"] ** 2) + params["b"]

    with pytest.raises(ValueError, match="value_and_grad_fn"):
        update(GRADS, grad_fn=jax.value_and_grad(loss))
    with pytest.raises(ValueError, match="auxiliary"):
        update(GRADS, grad_fn=jax.grad(lambda p, b: (loss(p, b), p["w"]), has_aux=True))


@pytest.mark.parametrize("build", [{}, STREAMING, BASELINE], ids=["scan", "streaming", "baseline"])
def test_an_axis_that_is_not_there_is_named_in_every_mode(build: Any) -> None:
    with pytest.raises(ValueError, match=r"`batch_axis_name` must be an axis of .* got 'nowhere'"):
        update(GRADS, grad_fn=gradient, build={**build, "batch_axis_name": "nowhere"})


@pytest.mark.parametrize("name", [{}, (None,), ["data"]])
def test_the_name_of_an_axis_is_checked(name: Any) -> None:
    with pytest.raises(ValueError, match="`batch_axis_name` must be "):
        entropy_sgd(1.0, batch_axis_name=name)


def test_scoping_from_zero_stays_there() -> None:
    schedule = scoping(0.0, 0.1, 1.0)  # whose growth overflows at step 931
    assert [float(schedule(jnp.int32(count))) for count in (0, 1, 10_000)] == [0, 0, 0]


NAMES = ("learning_rate", "momentum", "inner_momentum", "inner_learning_rate", "scope",
         "noise_scale", "averaging")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_traced_hyperparameters_are_not_checked(name: str) -> None:
    def traced(value: jax.Array) -> Any:
        tx = entropy_sgd(**{"learning_rate": 1.0, "inner_steps": L, name: value})
        return tx.update(None, tx.init(PARAMS), PARAMS, grad_fn=gradient)

    jax.eval_shape(traced, -1.0)  # out of every range


@pytest.mark.parametrize("name", ["b1", "b2", "eps"])
def test_traced_hyperparameters_of_adam_are_not_checked(name: str) -> None:
    def traced(value: jax.Array) -> Any:
        tx = entropy_adam(0.1, inner_steps=L, **{name: value})
        return tx.update(None, tx.init(PARAMS), PARAMS, grad_fn=gradient)

    jax.eval_shape(traced, -1.0)


def test_traced_arguments_of_scoping_are_not_checked() -> None:
    jax.eval_shape(lambda a, b, c: scoping(a, b, c)(3), -1.0, -2.0, -3.0)


def test_a_traced_inner_steps_is_refused() -> None:
    def traced(value: jax.Array) -> Any:
        return entropy_sgd(1.0, inner_steps=value).init(PARAMS)

    with pytest.raises(ValueError, match=r"`inner_steps` must be .*static_args"):
        jax.eval_shape(traced, 3)
    make = optax.inject_hyperparams(entropy_sgd)
    with pytest.raises(ValueError, match=r"static_args=\('inner_steps',\)"):
        make(1.0, inner_steps=3).init(PARAMS)
    make = optax.inject_hyperparams(average_over_replicas)
    with pytest.raises(ValueError, match=r"static_args=\('bits',\)"):
        make("replica", bits=8).init(PARAMS)


GOOD: dict[str, tuple[Any, ...]] = {
    "inner_steps": (0, 1, np.int64(3)),
    "inner_learning_rate": (0, 1, np.float32(0.1), jnp.float32(0.1), np.array(0.1)),
    "scope": (0, 0.0, 10, optax.constant_schedule(0.1), scoping(0.1, 0)),
    "noise_scale": (0, 10),
    "averaging": (0, 1, 1.0, np.array(0.5)),
    "momentum": (None, 0, 0.9),
    "inner_momentum": (None, 0, 0.999),
    "learning_rate": (0, 100, optax.cosine_decay_schedule(1.0, 10)),
    "noise": ("gaussian", "rademacher"),
    "accumulator_dtype": (None, "float32", jnp.bfloat16, np.float64, jnp.dtype("float16")),
    "inner_transform": (None, optax.identity(), optax.chain(optax.clip(1.0), optax.trace(0.9))),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in GOOD.items() for value in values],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_ends_of_the_ranges_are_allowed(name: str, value: Any) -> None:
    entropy_sgd(**{"learning_rate": 1.0, name: value})


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())
def test_every_factory_checks_what_it_passes_on(factory: Callable[..., Any]) -> None:
    for name in ("inner_steps", "inner_learning_rate", "scope", "noise_scale", "averaging"):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            factory(**{name: -1})
