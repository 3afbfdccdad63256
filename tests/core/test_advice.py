"""What used to go wrong in silence, or with somebody else's error, is refused or warned of."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropy_sgd_jax as esj
from entropy_sgd_jax import diloco, entropic, entropy_adam, entropy_sgd, parle, scoping
from tests.core.helpers import (
    MODES,
    ROUNDED_AS_USUAL,
    assert_same,
    build,
    gradient,
    outer_step,
    rows,
)

L = 3
PARAMS = {"w": jnp.ones(2), "b": jnp.zeros(())}


def refused(call: Callable[[], Any], *said: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as caught:
        call()
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    for part in said:
        assert part in message, message


# Up or down.

WHOLE = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, 0.9, True),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(1e-2),
    "lion": optax.lion(1e-3),
    "lamb": optax.lamb(1e-3),
    "scheduled": optax.adamw(optax.cosine_decay_schedule(1e-3, 100)),
    "warmed up": optax.adamw(optax.linear_schedule(0.0, 1e-3, 10)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
}
DIRECTIONS = {
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(),
    "adamw": optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1)),
    "turned": optax.chain(optax.adam(1e-3), optax.scale(-1.0)),
    "clipping": optax.clip_by_global_norm(1.0),
    "signs": optax.scale_by_lion(),
    "noise": optax.add_noise(10.0, 0.0, 0),  # of no direction at all
    "nothing": optax.set_to_zero(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_optimizer_inside_is_refused_as_a_direction(name: str) -> None:
    for factory in (functools.partial(entropic, optax.adam(1e-3)), functools.partial(parle, 0.1)):
        extra = {} if factory.func is entropic else dict(replica_axis_name="r", coupling=1.0)
        refused(
            lambda factory=factory, extra=extra: factory(inner_transform=WHOLE[name], **extra),
            "`inner_transform`", "downhill", "scale(-1.0)", "inner_optimizer",
        )  # fmt: skip


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_direction_uphill_is_taken(name: str) -> None:
    entropic(optax.sgd(1.0), inner_transform=DIRECTIONS[name])


def test_what_cannot_be_known_is_taken() -> None:
    labels = {"w": "a", "b": "b"}
    transforms = {"a": optax.sgd(0.1), "b": optax.adam(0.1)}
    partition = getattr(optax, "partition", None) or optax.multi_transform
    entropic(optax.sgd(1.0), inner_transform=partition(transforms, labels))
    jax.jit(lambda rate: entropic(optax.sgd(rate), inner_transform=optax.trace(rate)).init(rate))(
        0.5
    )


def test_a_direction_is_refused_as_a_whole_optimizer() -> None:
    refused(
        lambda: diloco(inner_steps=5, inner_optimizer=optax.scale_by_adam()),
        "`inner_optimizer`", "uphill", "optax.adamw(4e-4)", "inner_transform",
    )  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"inner_optimizer": optax.adam(1e-3), "inner_learning_rate": 0.1},
        {"inner_optimizer": optax.adam(1e-3), "inner_transform": optax.trace(0.9)},
        {"inner_transform": optax.trace(0.9)},
    ],
    ids=" ".join,
)
def test_the_inner_loop_is_spelled_in_one_way(given: dict[str, Any]) -> None:
    refused(lambda: diloco(inner_steps=5, **given), "`inner_optimizer`", "`inner_learning_rate`")


@pytest.mark.parametrize("mode", MODES)
def test_an_inner_optimizer_is_its_direction_bit_for_bit(mode: str) -> None:
    """With its own schedule, which counts gradients."""
    rate = optax.cosine_decay_schedule(0.1, 4 * L)
    ways = {
        "optimizer": dict(inner_optimizer=optax.adamw(rate, weight_decay=0.1)),
        "direction": dict(
            inner_learning_rate=rate,
            inner_transform=optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1)),
        ),
    }

    def run(way: dict[str, Any]) -> Any:
        tx = diloco(inner_steps=L, streaming=mode == "streaming", **way)
        step = jax.jit(outer_step(tx, mode), compiler_options=ROUNDED_AS_USUAL)
        params, history = jnp.array([1.0, -2.0, 0.3]), []
        state = tx.init(params)
        for batches in rows(5, L):
            params, state = step(params, state, batches)
            history.append(esj.anchor_params(state, params))
        return history

    assert_same(run(ways["optimizer"]), run(ways["direction"]))


# Warnings.


@pytest.mark.parametrize("mode", MODES)
def test_an_update_outside_of_jit_is_told_once(mode: str) -> None:
    tx = build(functools.partial(entropy_sgd, 1.0), mode, inner_steps=L, noise_scale=0)
    params = jnp.ones(2)
    state, batches = tx.init(params), jnp.asarray(rows(1, L)[0])

    def call() -> Any:
        if mode == "streaming":
            return tx.update(gradient(params, batches[0]), state, params)
        grads = None if mode == "scan_none" else gradient(params, batches[0])
        calls = batches if mode == "scan_none" else batches[1:]
        return tx.update(grads, state, params, grad_fn=gradient, batches=calls)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
        call()
    assert len(caught) == 1
    assert "outside of jax.jit" in str(caught[0].message)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = build(functools.partial(entropy_sgd, 1.0), mode, inner_steps=L, noise_scale=0)
        jax.jit(outer_step(other, mode))(params, other.init(params), batches)
        constants = outer_step(other, mode)
        jax.jit(lambda: constants(params, other.init(params), batches))()
        alone = entropy_sgd(1.0, inner_steps=0)  # the base optimizer alone compiles no loop
        alone.update(params, alone.init(params), params)


def test_a_misspelt_keyword_of_update_is_told_once() -> None:
    tx = entropy_sgd(1.0, inner_steps=L, noise_scale=0)
    params = jnp.ones(2)
    state = tx.init(params)

    def call(**extra: Any) -> None:
        jax.eval_shape(
            lambda params: tx.update(
                None, state, params, grad_fn=lambda p, call: gradient(p, 0.0), **extra
            ),
            params,
        )

    for name, near in (("batch", "batches"), ("batchs", "batches"), ("data", "batches")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(**{name: jnp.ones(L)})
            call(**{name: jnp.ones(L)})
        assert len(caught) == 1
        assert f"`{name}`" in str(caught[0].message)
        assert f"Did you mean `{near}`?" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(value=1.0, gain=2.0, value_fn=print, colour="red", loss_fn=print)


@pytest.mark.parametrize(
    ("factory", "given", "meant"),
    [
        (entropy_sgd, "lr", "learning_rate"),
        (entropy_sgd, "gamma", "scope"),
        (entropy_sgd, "L", "inner_steps"),
        (entropy_sgd, "steps", "inner_steps"),
        (entropy_sgd, "inner_lr", "inner_learning_rate"),
        (entropy_sgd, "scpoe", "scope"),
        (entropy_adam, "alpha", "averaging"),
        (entropy_adam, "seed", "key"),
        (parle, "rho", "coupling"),
        (parle, "axis_name", "replica_axis_name"),
        (entropy_sgd, "axis_name", "batch_axis_name"),
        (entropy_adam, "epsilon", "eps"),
        (diloco, "outer_optimizer", "learning_rate"),
        (diloco, "sync_every", "inner_steps"),
        (diloco, "inner_optimiser", "inner_optimizer"),
        (entropic, "inner_step", "inner_steps"),
        (esj.elastic_sgd, "replica_axis", "replica_axis_name"),
    ],
)
def test_a_misspelt_keyword_of_a_factory_is_named(factory: Any, given: str, meant: str) -> None:
    said = (f"{factory.__name__}()", f"'{given}'", f"Did you mean `{meant}`?")
    refused(lambda: factory(**{given: 1}), *said, error=TypeError)


def test_an_unknown_keyword_of_a_factory_shows_the_known_ones() -> None:
    refused(lambda: entropic(colour=1), "'colour'", "inner_steps", error=TypeError)


def test_a_grad_fn_that_fails_without_batches_says_what_it_was_called_with() -> None:
    tx, params = entropy_sgd(1.0, inner_steps=L), jnp.ones(2)

    def grad_fn(params: Any, batch: Any) -> Any:
        return params - batch[0]

    refused(
        lambda: jax.eval_shape(lambda p: tx.update(None, tx.init(p), p, grad_fn=grad_fn), params),
        "number of the call", "`batches`", error=IndexError,
    )  # fmt: skip


# Arguments.

REFUSED: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "streaming": (lambda: entropy_sgd(1.0, streaming="yes"), ("`streaming`", "True or False")),
    "diagnostics": (lambda: entropy_sgd(1.0, diagnostics=1), ("`diagnostics`", "True or False")),
    "nesterov": (lambda: entropy_sgd(1.0, nesterov=0.9), ("`nesterov`", "0.9")),
    "inner_nesterov": (lambda: entropy_adam(1.0, inner_nesterov=None), ("`inner_nesterov`",)),
    "reset": (
        lambda: diloco(inner_steps=1, inner_learning_rate=1, reset_inner_state="no"),
        ("no",),
    ),
    "an axis by its place": (
        lambda: parle(0.1, replica_axis_name=0, coupling=1.0),
        ("`replica_axis_name`", "got 0"),
    ),
    "the same axis in a tuple": (
        lambda: entropy_sgd(1.0, batch_axis_name=("a", "a")),
        ("`batch_axis_name`", "('a', 'a')"),
    ),
    "the same axis twice": (
        lambda: parle(0.1, replica_axis_name="data", coupling=1.0, batch_axis_name="data"),
        ("`replica_axis_name`", "`batch_axis_name`", "'data'"),
    ),
    "one of two axes twice": (
        lambda: diloco(
            inner_steps=1,
            inner_learning_rate=1.0,
            replica_axis_name="a",
            batch_axis_name=("b", "a"),
        ),
        ("`replica_axis_name`", "`batch_axis_name`"),
    ),
    "a huge rate": (lambda: entropy_sgd(10**400), ("`learning_rate`", "1329 bits")),
    "a huge scope": (lambda: scoping(10**400, 0.1), ("`init_value`", "1329 bits")),
    "too many steps": (
        lambda: entropy_sgd(1.0, inner_steps=2**31),
        ("`inner_steps`", "2147483648"),
    ),
    "endless steps": (lambda: entropy_sgd(1.0, inner_steps=10**5000), ("`inner_steps`", "bits")),
    "a key of 65 bits": (lambda: entropy_sgd(1.0, key=2**64), ("`key`", "64 bits")),
    "functions among the parameters": (
        lambda: entropy_sgd(1.0).init({"w": jnp.ones(2), "activation": jnp.tanh}),
        ("`params['activation']`", "eqx.partition"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, said = REFUSED[name]
    refused(call, *said)


# States.


def updated(tx: Any, state: Any, params: Any = PARAMS) -> Any:
    batches = {} if getattr(state, "anchor", None) is not None else {"grad_fn": gradient}
    return jax.eval_shape(lambda grads: tx.update(grads, state, params, **batches), params)


SCAN, STREAMING = (entropy_sgd(1.0, inner_steps=L, streaming=mode) for mode in (False, True))
LAST = entropy_sgd(1.0, 0.9, inner_momentum=None, averaging=1, inner_steps=L)
STATES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "another optimizer's": (
        lambda: updated(SCAN, optax.adam(0.1).init(PARAMS)),
        ("`state`", "EntropicState", "tuple", "tx.init(params)"),
    ),
    "a chain's": (
        lambda: updated(SCAN, optax.chain(SCAN).init(PARAMS)),
        ("`state`", "EntropicState", "tuple"),
    ),
    "scan mode's in streaming mode": (
        lambda: updated(STREAMING, SCAN.init(PARAMS)),
        ("`state`", "streaming mode", "scan mode", "anchor_params"),
    ),
    "streaming mode's in scan mode": (
        lambda: updated(SCAN, STREAMING.init(PARAMS)),
        ("`state`", "scan mode", "anchor_params"),
    ),
    "of other shapes": (
        lambda: updated(SCAN, SCAN.init({"w": jnp.ones(3), "b": jnp.zeros(())})),
        ("`state.langevin_iterate['w']`", "(2,)", "(3,)", "tx.init(params)"),
    ),
    "of other shapes, with states alone to tell": (
        lambda: updated(LAST, LAST.init({"w": jnp.ones(()), "b": jnp.zeros(())})),
        ("`state.base_state", "(2,)", "()", "tx.init(params)"),
    ),
    "of another structure": (
        lambda: updated(STREAMING, STREAMING.init({"w": jnp.ones(2)})),
        ("`state.langevin_iterate`", "lacks ['b']"),
    ),
    "not vmapped": (
        lambda: jax.eval_shape(
            jax.vmap(lambda p, s: SCAN.update(p, s, p, grad_fn=gradient), in_axes=(0, None)),
            jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), PARAMS),
            SCAN.init(jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), PARAMS)),
        ),
        ("`state.langevin_iterate", "jax.vmap(tx.init)(params)"),
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_does_not_fit_teaches(name: str) -> None:
    call, said = STATES[name]
    refused(call, *said)


# Strictness.


def strict_updates(dtype: Any) -> None:
    params = {"w": jnp.ones(3, dtype), "v": jnp.ones(2)}

    def gradient(params: Any, batch: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf - batch.astype(leaf.dtype), params)

    def run(tx: Any, streaming: bool, params: Any) -> Any:
        step = outer_step(tx, "streaming" if streaming else "scan", gradient)
        params, state = step(params, tx.init(params), jnp.ones(L))
        return esj.anchor_params(state, params)

    for streaming in (False, True):
        common = dict(
            inner_steps=L, streaming=streaming, noise_scale=0.1, diagnostics=True,
            scope=scoping(0.1, 0.1, 1.0),
        )  # fmt: skip
        alone = [
            entropy_sgd(0.5, 0.9, True, **common),
            entropy_sgd(0.5, noise="rademacher", averaging=lambda t: 0.5, **common),
            entropic(optax.sgd(1.0), scale_by_scope=True, averaging=1, **common),
        ]
        for tx in alone:
            jax.eval_shape(functools.partial(run, tx, streaming), params)
        axis = dict(replica_axis_name="r", **common)
        for tx in (
            parle(0.5, coupling=scoping(0.1, 0.1), **axis),
            diloco(inner_optimizer=optax.sgd(0.1), **axis),
        ):
            stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
            replicas = jax.vmap(functools.partial(run, tx, streaming), axis_name="r")
            jax.eval_shape(replicas, stacked)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_strict_promotion(dtype: Any) -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        strict_updates(dtype)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_transferred_behind_the_users_back(mode: str) -> None:
    tx = build(functools.partial(entropy_sgd, 0.5), mode, inner_steps=L, diagnostics=True)
    params, batches = {"w": jnp.ones(3, jnp.bfloat16)}, jnp.asarray(rows(1, L)[0])
    step, init = jax.jit(outer_step(tx, mode)), jax.jit(tx.init)
    with jax.transfer_guard("disallow"):
        params, state = step(params, init(params), batches)
        esj.anchor_params(state, params)
        jax.jit(esj.anchor_params)(state, params)


def test_noise_of_a_leaf_of_more_than_2_to_the_32_elements_does_not_repeat() -> None:
    """Looked at through a slice, so that no leaf is ever in memory."""
    from entropy_sgd_jax import _noise

    shape = (2**18, 2**15)  # 2³³ elements
    pages = 2**32 // 2**15
    like = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((64,), jnp.float32)]

    @jax.jit
    def look(words: jax.Array) -> Any:
        source = _noise.SOURCES["gaussian"].transform
        starts = _noise._first_numbers([leaf.shape for leaf in like])
        large = source(_noise._words(starts[0], shape, words))
        small = source(_noise._words(starts[1], (64,), words))
        return [large[row, :64] for row in (0, pages - 1, pages, pages + 1, 2 * pages - 1)], small

    compiled = look.lower(jnp.array([3, 5], jnp.uint32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20
    found, small = compiled(jnp.array([3, 5], jnp.uint32))
    values = np.concatenate([*map(np.asarray, found), np.asarray(small)])
    assert len(np.unique(values)) == len(values)
    assert abs(values.mean()) < 4 / len(values) ** 0.5
    assert abs(values.std() - 1) < 4 / (2 * len(values)) ** 0.5


@pytest.mark.parametrize(
    "base",
    [
        optax.scale_by_adam(),
        optax.trace(0.9),
        optax.sgd(-1.0),
        optax.chain(optax.trace(0.9), optax.scale_by_schedule(optax.linear_schedule(0.0, 1.0, 9))),
    ],
)
def test_a_base_optimizer_that_points_uphill_is_warned_of(base: Any) -> None:
    with pytest.warns(UserWarning, match=r"`base_optimizer` points uphill .* optax.scale\(-rate"):
        entropic(base)


def test_parameters_that_are_not_finite_are_warned_of() -> None:
    """No update would be taken: as with an attention mask among the parameters."""
    params = {"w": jnp.ones(2), "mask": jnp.array([0.0, -jnp.inf])}
    tx = entropy_sgd(1.0)
    with pytest.warns(UserWarning, match=r"`params\['mask'\]` holds a NaN or Inf") as caught:
        tx.init(params)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    jax.eval_shape(tx.init, params)  # nothing to look at
