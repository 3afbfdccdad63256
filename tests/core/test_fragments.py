"""Streaming DiLoCo: fragments in turn, offsets, delays and blends, against plain NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import anchor_params, diloco
from tests.core.helpers import assert_finite, assert_same, double_precision

N, L, GRADIENTS = 3, 6, 24  # replicas, gradients in a cycle, gradients in all: four cycles
RANDOM = np.random.default_rng(0)
SIZES = {"a": 4, "b": 2, "c": 3}
DATA = {name: RANDOM.normal(size=(GRADIENTS, N, size)) for name, size in SIZES.items()}
ALONE = {name: 0 for name in SIZES}
TWO = {"a": 0, "b": 1, "c": 0}
THREE = {"a": 2, "b": 0, "c": 1}


def rate(count: Any) -> Any:
    """Of the local steps, counted in gradients."""
    return 0.2 / (1 + 0.1 * count)


def np_streaming_diloco(
    labels: dict[str, int], offset: int = 0, delay: int = 0, blend: float = 0.0
) -> dict[str, np.ndarray]:
    """x′ of all replicas and their x after each gradient: {name: (GRADIENTS, 2, N, size)}."""
    count = 1 + max(labels.values())
    x = {name: np.ones(size) for name, size in SIZES.items()}
    local = {name: np.ones((N, size)) for name, size in SIZES.items()}
    inner = {name: np.zeros((N, size)) for name, size in SIZES.items()}
    outer = {name: np.zeros(size) for name, size in SIZES.items()}
    arrivals: dict[str, int | None] = dict.fromkeys(SIZES)
    history: dict[str, list[Any]] = {name: [] for name in SIZES}
    for g in range(GRADIENTS):
        for name, label in labels.items():
            gradient = np.tanh(local[name] - DATA[name][g])
            inner[name] = 0.9 * inner[name] + gradient
            local[name] = local[name] - rate(g) * inner[name]
            shift = offset + label * L // count
            if (g + shift) % L == L - 1:  # the fragment's cycle ends
                pseudo = (x[name] - local[name]).mean(0)
                outer[name] = 0.8 * outer[name] + pseudo
                x[name] = x[name] - 0.7 * (pseudo + 0.8 * outer[name])
                arrivals[name] = g + delay
            if arrivals[name] == g:
                local[name] = blend * local[name] + (1 - blend) * x[name]
            history[name].append(np.stack([local[name], np.tile(x[name], (N, 1))]))
    return {name: np.stack(steps) for name, steps in history.items()}


def stream(spelled: dict[str, Any], **options: Any) -> dict[str, np.ndarray]:
    tx = diloco(
        0.7, 0.8, replica_axis_name="replica", inner_steps=L, streaming=True, **spelled, **options
    )

    def replica(data: Any) -> Any:
        params = {name: jnp.ones(size) for name, size in SIZES.items()}

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            grads = jax.tree.map(lambda x, b: jnp.tanh(x - b), params, batch)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            x = anchor_params(state, params)
            both = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, x)
            return (params, state), both

        return jax.lax.scan(step, (params, tx.init(params)), data)[1]

    replicas = jax.jit(jax.vmap(replica, axis_name="replica", in_axes=1, out_axes=2))
    return jax.tree.map(np.asarray, replicas(jax.tree.map(jnp.asarray, DATA)))


SPELLED = {
    "direction": dict(inner_learning_rate=rate, inner_transform=optax.trace(0.9)),
    "optimizer": dict(inner_optimizer=optax.sgd(rate, 0.9)),
}


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (ALONE, {"offset": 4}),
        (TWO, {}),
        (THREE, {"offset": 1}),
        (THREE, {"offset": 3}),  # the last fragment's own goes round the cycle
        (ALONE, {"delay": 2}),
        (ALONE, {"blend": 0.25}),
        (THREE, {"delay": 1, "blend": 0.5}),
    ],
    ids=str,
)
def test_fragments_are_their_equations(labels: Any, options: Any, spelled: str) -> None:
    with double_precision():
        fragments = {} if labels is ALONE else {"fragments": labels}
        found = stream(SPELLED[spelled], **fragments, **options)
        expected = np_streaming_diloco(labels, **options)
        for name in SIZES:
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-12)
            x = found[name][:, 1]
            np.testing.assert_array_equal(x, x[:, :1].repeat(N, axis=1))


@pytest.mark.parametrize(
    "options",
    [{"fragments": THREE}, {"offset": 4}, {"delay": 2}, {"blend": 0.25}],
    ids=str,
)
def test_parameters_may_be_replaced_before_the_first_update(options: Any) -> None:
    """As by a checkpoint that is restored after `init`: the state follows them."""
    tx = diloco(0.7, 0.8, inner_steps=L, streaming=True, **SPELLED["optimizer"], **options)
    start, update = {name: jnp.ones(size) for name, size in SIZES.items()}, jax.jit(tx.update)
    zeros = jax.tree.map(jnp.zeros_like, start)

    def train(state: Any, params: Any) -> Any:
        history = []
        for step in range(GRADIENTS):
            history.append((params, anchor_params(state, params)))
            grads = {name: jnp.tanh(x - DATA[name][step, 0]) for name, x in params.items()}
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return history

    assert_same(train(tx.init(zeros), start), train(tx.init(start), start))


@pytest.mark.parametrize("options", [{"delay": 2}, {"blend": 0.25}], ids=str)
def test_x_is_not_moved_with_parameters_that_are_not_x(options: Any) -> None:
    """Where a cycle ends, x′ is not x in a stream with a delay or a blend."""
    tx = diloco(0.7, 0.8, inner_steps=3, streaming=True, **SPELLED["optimizer"], **options)
    params = jnp.ones(3)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(1, 10):
        updates, state = update(jnp.ones(3), state, params)
        params = optax.apply_updates(params, updates)
        assert_same(anchor_params(state, params + 1), anchor_params(state, params))
        assert_same(state.count, jnp.int32(step // 3))


def test_the_shapes_of_a_state_leave_no_trace() -> None:
    tx = diloco(
        inner_steps=L, streaming=True, fragments=TWO, noise_scale=0.1, **SPELLED["optimizer"]
    )
    params = {name: jnp.ones(size) for name, size in SIZES.items()}
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.map(jnp.shape, tx.init(params)) == jax.tree.map(jnp.shape, shapes)


def test_fragments_may_be_a_function_of_the_parameters() -> None:
    by_name = stream(SPELLED["direction"], fragments=TWO)
    by_function = stream(
        SPELLED["direction"], fragments=lambda params: {name: TWO[name] for name in params}
    )
    assert_same(by_function, by_name)


def sizes_of_sums(jaxpr: Any) -> list[int]:
    """The numbers that are summed over replicas together, scalars left out."""
    here, inside = 0, []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith("psum"):
            here += sum(int(np.prod(var.aval.shape)) for var in eqn.invars if var.aval.shape)
        for inner in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                inside += sizes_of_sums(inner)
    return [here, *inside] if here else inside


def test_a_message_is_one_fragment() -> None:
    params = {name: jnp.ones(size) for name, size in SIZES.items()}
    for labels, sizes in ((None, [9]), (TWO, [2, 7]), (THREE, [2, 3, 4])):
        tx = diloco(
            replica_axis_name="replica", inner_steps=L, streaming=True, fragments=labels,
            **SPELLED["optimizer"],
        )  # fmt: skip
        traced = jax.make_jaxpr(tx.update, axis_env=[("replica", 1)])(
            params, tx.init(params), params
        )
        assert sorted(sizes_of_sums(traced.jaxpr)) == sizes


@pytest.mark.parametrize("delay", [0, 2])
def test_a_sick_replica_of_a_delayed_stream_comes_back(delay: int) -> None:
    """At the common x, and finite all the way."""
    tx = diloco(
        replica_axis_name="r", inner_steps=4, streaming=True, delay=delay, blend=0.5,
        inner_optimizer=optax.sgd(0.1),
    )  # fmt: skip
    step = jax.jit(jax.vmap(tx.update, axis_name="r"))
    params, bad = jnp.ones((2, 3)), jnp.zeros((2, 3)).at[1, 0].set(jnp.nan)
    state = jax.vmap(tx.init)(params)
    for number in range(12):
        updates, state = step(params + (bad if number == 1 else 0), state, params)
        params = optax.apply_updates(params, updates)
        x = anchor_params(state, params)
        assert_finite((params, x))
        assert_same(x[0], x[1])
    assert (jnp.abs(x) < 0.9).all()


def test_a_sick_replica_of_a_blended_stream_starts_at_the_common_x() -> None:
    tx = diloco(
        replica_axis_name="r", inner_steps=2, streaming=True, blend=0.5,
        inner_optimizer=optax.sgd(0.1),
    )  # fmt: skip
    step = jax.jit(jax.vmap(tx.update, axis_name="r"))
    params = jnp.ones((2, 3))
    state = jax.vmap(tx.init)(params)
    for bad in (0, jnp.nan):
        updates, state = step(jnp.array([[1.0], [1 + bad]]) * params, state, params)
        params = optax.apply_updates(params, updates)
    x = anchor_params(state, params)
    assert (x < 1).all()
    assert_same(params[1], x[1])


def test_gradients_and_a_state_that_do_not_fit_are_named() -> None:
    tx = diloco(inner_steps=L, streaming=True, fragments=TWO, **SPELLED["optimizer"])
    params = {name: jnp.ones(size) for name, size in SIZES.items()}
    for grads, got in ((None, "got None"), ({"a": jnp.ones(4)}, "lacks")):
        with pytest.raises(ValueError, match=f"`grads` must be .*{got}"):
            tx.update(grads, tx.init(params), params)
    alone = diloco(inner_steps=L, streaming=True, **SPELLED["optimizer"])
    with pytest.raises(ValueError, match=r"`state` must be that of .* type EntropicState"):
        tx.update(params, alone.init(params), params)


def test_fragments_draw_noise_of_their_own() -> None:
    """Not what another draws at the same place of its cycle, in this replica or another."""
    tx = diloco(
        0.0, None, inner_steps=4, inner_optimizer=optax.sgd(0.0), noise_scale=1.0, streaming=True,
        fragments={"a": 0, "b": 1}, replica_axis_name="r",
    )  # fmt: skip
    params = zeros = {"a": jnp.zeros((2, 8)), "b": jnp.zeros((2, 8))}
    update, drawn = jax.jit(jax.vmap(tx.update, axis_name="r")), []
    state = jax.vmap(tx.init)(params)
    for step in range(8):
        updates, state = update(zeros, state, params)
        params = optax.apply_updates(params, updates)
        for name, shift in (("a", 0), ("b", 2)):
            if (step + shift) % 4 < 3:  # the last step of a cycle goes back to x
                drawn.extend(np.asarray(updates[name]))
    gaps = np.abs(np.stack(drawn)[:, None] - np.stack(drawn)[None]).max(-1)
    assert (gaps + np.eye(len(gaps))).min() > 1e-3


def test_fragments_of_other_parameters_are_named() -> None:
    tx = diloco(inner_steps=L, streaming=True, fragments=TWO, **SPELLED["optimizer"])
    with pytest.raises(ValueError, match="`fragments` must be a tree like `params`; got one that"):
        tx.init({"a": jnp.ones(4), "z": jnp.ones(2)})


REFUSED = {
    "offset in scan mode": (dict(offset=1), "`offset` must be 0 without streaming=True"),
    "offset of no steps": (
        dict(offset=1, streaming=True, inner_steps=0),
        "`offset` must be 0 without .*and inner_steps of at least 1",
    ),
    "delay in scan mode": (dict(delay=1), "`delay` must be 0 without streaming=True"),
    "blend in scan mode": (dict(blend=0.5), "`blend` must be 0 without streaming=True"),
    "fragments in scan mode": (dict(fragments=TWO), "`fragments` must be None without"),
    "fragments of no steps": (
        dict(fragments=TWO, streaming=True, inner_steps=0),
        "`fragments` must be None without .*Pass streaming=True, and inner_steps of at least 1",
    ),
    "a long offset": (dict(offset=L, streaming=True), r"`offset` must be an integer in \[0, 5\]"),
    "a long delay": (dict(delay=L, streaming=True), r"`delay` must be an integer in \[0, 5\]"),
    "a traced blend": (
        dict(blend=0.5, streaming=True, traced=True),
        r"`blend` must be a number in \[0, 1\], and not traced; got",
    ),
    "a large blend": (dict(blend=1.5, streaming=True), r"`blend` must be a number in \[0, 1\]"),
    "names": (dict(fragments={"a": "x"}, streaming=True), "`fragments` must be a tree of the ints"),
    "parameters": (
        dict(fragments=[jnp.ones(1)] * 100, streaming=True),
        r"a tree of the ints 0 … P − 1; got Array\(\[1.\], dtype=float32\)\. Number",
    ),
    "a hole": (dict(fragments=[0, 2], streaming=True), "`fragments` must be a tree of the ints"),
    "too many": (
        dict(fragments=[0, 1, 2, 3], streaming=True),
        "as many as divide `inner_steps`, 6",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options, message = REFUSED[name]
    options = dict(options)

    def build(blend: Any) -> Any:
        diloco(**({"inner_steps": L, "inner_learning_rate": 0.1} | options | {"blend": blend}))
        return blend

    traced, blend = options.pop("traced", False), options.get("blend", 0.0)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(build, blend) if traced else build(blend)
