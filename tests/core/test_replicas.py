"""Replicas against plain float64 NumPy statements of the published equations."""

from __future__ import annotations

import functools
import inspect
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropy_sgd_jax as esj
from tests.core.helpers import (
    MODES,
    ROUNDED_AS_USUAL,
    assert_same,
    double_precision,
    outer_step,
    run_program,
)
from tests.core.reference import SGD, Adam, Momentum

N, D, L, UPDATES = 3, 5, 4, 6  # replicas, parameters, Langevin steps, outer steps
RANDOM = np.random.default_rng(0)
STARTS = RANDOM.normal(size=(N, D))
TARGETS = RANDOM.normal(size=(UPDATES, N, L, D))  # one mini-batch each
CURVATURE = np.linspace(0.5, 2.0, D)


def np_gradient(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    return CURVATURE * np.tanh(x - target)


def loss(params: Any, target: Any) -> jax.Array:
    return jnp.sum(jnp.asarray(CURVATURE) * jnp.log(jnp.cosh(params["w"] - target)))


grad_fn = jax.grad(loss)


def run(
    tx: Any,
    starts: Any = STARTS,
    targets: Any = TARGETS,
    streaming: bool = False,
    keys: Any = None,
) -> Any:
    """x of all replicas after each outer step, in float64, and the last state; `keys` are their
    own, if the replicas are optimizers that know nothing of each other.
    """

    def update(params: Any, state: Any, batches: Any) -> Any:
        if not streaming:
            updates, state = tx.update(None, state, params, grad_fn=grad_fn, batches=batches)
            return optax.apply_updates(params, updates), state
        return jax.lax.scan(stream, (params, state), batches)[0]

    def stream(carry: Any, batch: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grad_fn(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    vmapped = jax.vmap(update, axis_name="replica")
    step = jax.jit(vmapped, compiler_options=ROUNDED_AS_USUAL)
    params = {"w": jnp.asarray(starts)}
    state = jax.vmap(tx.init)(params)
    if keys is not None:
        state = state._replace(rng_key=keys)
    history = []
    for batches in targets:
        params, state = step(params, state, jnp.asarray(batches))
        history.append(np.asarray(esj.anchor_params(state, params)["w"]))
    return np.stack(history), state


def np_two_loops(
    outer: list[Any],
    inner: list[Any],
    *,
    inner_learning_rate: float,
    scope: float = 0.0,
    averaging: float = 1.0,
    coupling: Any = lambda t: 0.0,
    average_gradients: bool = False,
    starts: np.ndarray = STARTS,
) -> np.ndarray:
    """The two loops in the equations' order, one replica after another."""
    x = [start.copy() for start in starts]
    history = []
    for t in range(UPDATES):
        pseudo = []
        for a in range(len(x)):
            y, mu = x[a], x[a]
            for step in range(L):
                direction = inner[a](np_gradient(y, TARGETS[t, a, step]), y)
                y = y - inner_learning_rate * (direction + scope * (y - x[a]))
                mu = (1 - averaging) * mu + averaging * y
            pseudo.append(x[a] - mu)
        center = sum(x) / len(x)
        if average_gradients:
            pseudo = [sum(pseudo) / len(x)] * len(x)
        x = [
            outer[a].step({"w": x[a]}, {"w": pseudo[a] + coupling(t) * (x[a] - center)}, t)["w"]
            for a in range(len(x))
        ]
        history.append(np.stack(x))
    return np.stack(history)


def np_adamw_direction(b1: float = 0.9, b2: float = 0.999, weight_decay: float = 1e-4) -> Any:
    """Loshchilov and Hutter's direction: Adam's, and the decoupled weight decay."""
    adam = Adam(1.0, b1, b2)
    count = iter(range(10**6))

    def direction(gradient: np.ndarray, y: np.ndarray) -> np.ndarray:
        zero = {"w": np.zeros_like(y)}
        return -adam.step(zero, {"w": gradient}, next(count))["w"] + weight_decay * y

    return direction


def np_momentum_direction(decay: float) -> Any:
    momentum = Momentum(decay, nesterov=True)
    return lambda gradient, y: momentum.direction({"w": gradient}, {"w": y})["w"]


@pytest.mark.parametrize("streaming", [False, True])
def test_parle_is_its_equations(streaming: bool) -> None:
    with double_precision():
        tx = esj.parle(
            0.5,
            0.9,
            True,
            replica_axis_name="replica",
            coupling=esj.scoping(0.1, 1.0, 0.6),
            inner_steps=L,
            inner_learning_rate=0.2,
            scope=0.3,
            noise_scale=0,
            averaging=0.25,
            inner_transform=optax.trace(0.9, nesterov=True),
            reset_inner_state=False,
            streaming=streaming,
        )
        found, _ = run(tx, streaming=streaming)
    expected = np_two_loops(
        [SGD(0.5, Momentum(0.9, nesterov=True)) for _ in range(N)],
        [np_momentum_direction(0.9) for _ in range(N)],
        inner_learning_rate=0.2,
        scope=0.3,
        averaging=0.25,
        coupling=lambda t: min(0.1 * 2.0**t, 0.6),
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("streaming", [False, True])
def test_diloco_is_its_equations(streaming: bool) -> None:
    start = np.tile(STARTS[:1], (N, 1))
    with double_precision():
        tx = esj.diloco(
            replica_axis_name="replica",
            inner_steps=L,
            inner_learning_rate=0.05,
            streaming=streaming,
        )
        found, _ = run(tx, start, streaming=streaming)
    expected = np_two_loops(
        [SGD(0.7, Momentum(0.9, nesterov=True)) for _ in range(N)],
        [np_adamw_direction() for _ in range(N)],
        inner_learning_rate=0.05,
        average_gradients=True,
        starts=start,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found, found[:, :1].repeat(N, axis=1))


@pytest.mark.parametrize("streaming", [False, True])
def test_snoo_is_one_worker_without_an_axis(streaming: bool) -> None:
    with double_precision():
        tx = esj.diloco(
            inner_steps=L,
            inner_learning_rate=0.05,
            inner_transform=optax.trace(0.8, nesterov=True),
            streaming=streaming,
        )
        found, _ = run(tx, streaming=streaming)  # three workers that know nothing of each other
    expected = np_two_loops(
        [SGD(0.7, Momentum(0.9, nesterov=True)) for _ in range(N)],
        [np_momentum_direction(0.8) for _ in range(N)],
        inner_learning_rate=0.05,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_lookahead_is_optax_lookahead() -> None:
    targets = TARGETS[:, 0].reshape(-1, D)
    with double_precision():
        ours = esj.diloco(
            0.6, None, inner_steps=L, inner_learning_rate=0.1, inner_transform=optax.scale_by_adam()
        )
        found, _ = run(ours, STARTS[:1], TARGETS[:, :1])
        theirs = optax.lookahead(optax.adam(0.1), sync_period=L, slow_step_size=0.6)
        params = optax.LookaheadParams.init_synced({"w": jnp.asarray(STARTS[0])})
        state = theirs.init(params)
        step = jax.jit(theirs.update)
        for target in targets:
            updates, state = step(grad_fn(params.fast, jnp.asarray(target)), state, params)
            params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(found[-1, 0], np.asarray(params.slow["w"]), rtol=0, atol=1e-12)


def test_local_sgd_with_one_step_is_data_parallel_sgd() -> None:
    """One local step, an outer step onto the mean: SGD on the mean gradient."""
    start = np.tile(STARTS[:1], (N, 1))
    with double_precision():
        tx = esj.diloco(
            1.0,
            None,
            replica_axis_name="replica",
            inner_steps=1,
            inner_learning_rate=0.1,
            inner_transform=optax.identity(),
        )
        found, _ = run(tx, start, TARGETS[:, :, :1])
    x = STARTS[0]
    for t in range(UPDATES):
        x = x - 0.1 * np.mean([np_gradient(x, TARGETS[t, a, 0]) for a in range(N)], axis=0)
    np.testing.assert_allclose(found[-1], np.tile(x, (N, 1)), rtol=0, atol=1e-12)


def test_elastic_sgd_is_its_equations() -> None:
    with double_precision():
        tx = esj.elastic_sgd(0.1, replica_axis_name="replica", coupling=lambda t: 0.5 + 0.05 * t)

        def step(params: Any, state: Any, target: Any) -> Any:
            updates, state = tx.update(grad_fn(params, target), state, params)
            return optax.apply_updates(params, updates), state

        step = jax.jit(jax.vmap(step, axis_name="replica"))
        params = {"w": jnp.asarray(STARTS)}
        state = jax.vmap(tx.init)(params)
        x = list(STARTS)
        outer = [SGD(0.1, Momentum(0.9, nesterov=True)) for _ in range(N)]
        for t in range(UPDATES):
            params, state = step(params, state, jnp.asarray(TARGETS[t, :, 0]))
            center, rho = sum(x) / N, 0.5 + 0.05 * t
            pulled = [np_gradient(x[a], TARGETS[t, a, 0]) + rho * (x[a] - center) for a in range(N)]
            x = [outer[a].step({"w": x[a]}, {"w": pulled[a]}, t)["w"] for a in range(N)]
            np.testing.assert_allclose(np.asarray(params["w"]), np.stack(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("factory", [esj.elastic_sgd, esj.replicated_sgd])
def test_parle_with_one_step_and_no_scope_is_elastic_sgd(factory: Any) -> None:
    with double_precision():
        arguments = dict(replica_axis_name="replica", coupling=esj.scoping(0.1, 0.5, 0.4))
        tx = esj.parle(
            0.1,
            inner_steps=1,
            inner_learning_rate=1.0,
            scope=0,
            noise_scale=0,
            averaging=1,
            **arguments,
        )
        found, _ = run(tx, targets=TARGETS[:, :, :1])
        elastic = factory(0.1, **arguments)
        streamed, _ = run(
            esj.entropic(elastic, inner_steps=0, streaming=True),
            targets=TARGETS[:, :, :1],
            streaming=True,
        )
    np.testing.assert_allclose(found, streamed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("streaming", [False, True])
def test_one_replica_without_coupling_is_entropy_sgd_bit_for_bit(streaming: bool) -> None:
    common = dict(inner_steps=L, noise_scale=0.1, streaming=streaming, key=3)
    alone = esj.entropy_sgd(0.5, 0.9, True, inner_momentum=None, **common)
    tx = esj.parle(0.5, replica_axis_name="replica", coupling=0, **common)
    one = dict(starts=STARTS[:1].astype(np.float32), targets=TARGETS[:, :1].astype(np.float32))
    found, _ = run(tx, streaming=streaming, **one)
    expected, _ = run(alone, streaming=streaming, **one)
    np.testing.assert_array_equal(found, expected)


NOISY = dict(replica_axis_name="replica", inner_steps=L, noise_scale=0.1)


@pytest.mark.parametrize("streaming", [False, True])
def test_replicas_draw_noise_of_their_own_from_one_key(streaming: bool) -> None:
    common = dict(inner_steps=L, noise_scale=0.1, streaming=streaming, key=3)
    tx = esj.parle(0.5, replica_axis_name="replica", coupling=0, **common)
    start = np.tile(STARTS[:1], (N, 1)).astype(np.float32)
    targets = np.repeat(TARGETS[:, :1], N, axis=1).astype(np.float32)  # the same data for all
    found, state = run(tx, start, targets, streaming=streaming)
    key = jax.random.key(3)
    assert (jax.random.key_data(state.rng_key) == jax.random.key_data(key)).all()
    keys = jnp.stack([key, *(jax.random.fold_in(key, a) for a in range(1, N))])
    alone = esj.entropy_sgd(0.5, 0.9, True, inner_momentum=None, **common)
    expected, _ = run(alone, start, targets, streaming=streaming, keys=keys)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    spread = np.abs(found[-1, 0] - found[-1, 1:]).min()
    assert spread > 1e-3


def test_replicas_draw_the_same_from_every_kind_of_key() -> None:
    """The kinds differ in how they fold in an index; ours goes by the words of the key alone."""
    words = jnp.arange(4, dtype=jnp.uint32)
    ends = []
    for impl in ("rbg", "unsafe_rbg"):
        key = jax.random.wrap_key_data(words, impl=impl)
        tx = esj.parle(0.5, coupling=0.1, **NOISY, key=key)
        ends.append(run(tx)[0])
    np.testing.assert_array_equal(*ends)


def test_replicas_reuse_no_key() -> None:
    with jax.debug_key_reuse(True):
        tx = esj.parle(0.5, coupling=0.1, **NOISY, key=3)
        assert np.isfinite(run(tx)[0]).all()


def test_coupling_draws_replicas_together_at_its_rate() -> None:
    """On a flat loss, x − x̄ shrinks by 1 − ηρ in each update, and x̄ stays."""
    with double_precision():
        tx = esj.elastic_sgd(0.1, None, replica_axis_name="replica", coupling=2.0)

        def step(x: Any) -> Any:
            updates, _ = tx.update(jnp.zeros(D), tx.init(x), x)
            return optax.apply_updates(x, updates)

        x = jax.vmap(step, axis_name="replica")(jnp.asarray(STARTS))
    center = STARTS.mean(0)
    np.testing.assert_allclose(x, center + 0.8 * (STARTS - center), rtol=0, atol=1e-15)


def test_means_of_narrow_parameters_are_taken_in_float32() -> None:
    # 256 + 1 is 256 in bfloat16, and so would be any running sum.
    params = jnp.asarray([256.0] + [1.0] * 255, jnp.bfloat16)
    mean = jax.vmap(lambda x: esj.replica_average(x, "r"), axis_name="r", out_axes=None)(params)
    assert mean.dtype == jnp.bfloat16
    assert float(mean) == float(jnp.asarray((256 + 255) / 256, jnp.bfloat16))
    tx = esj.add_elastic_coupling(1.0, "r")
    pull = jax.vmap(lambda x: tx.update(jnp.zeros_like(x), tx.init(x), x)[0], axis_name="r")
    assert pull(params).dtype == jnp.bfloat16
    np.testing.assert_allclose(pull(params)[0].astype(float), 256 - 511 / 256, rtol=2**-8)


def test_replica_average_keeps_structure_and_is_the_identity_without_an_axis() -> None:
    tree = {"a": jnp.arange(3.0), "b": [jnp.ones((2, 2), jnp.bfloat16)]}
    same = esj.replica_average(tree, None)
    assert jax.tree.structure(same) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, same, tree)


@pytest.mark.skipif(
    not hasattr(optax.contrib, "MuonDimensionNumbers"), reason="Muon came with Optax 0.2.6"
)
def test_muon_runs_inside() -> None:
    matrices = {"w": optax.contrib.MuonDimensionNumbers()}
    tx = esj.diloco(
        replica_axis_name="replica",
        inner_steps=3,
        inner_learning_rate=0.01,
        inner_transform=optax.contrib.scale_by_muon(weight_dimension_numbers=matrices),
    )
    weights = {"w": jnp.asarray(RANDOM.normal(size=(2, 4, 6)), jnp.float32)}
    weights = {"w": jnp.broadcast_to(weights["w"][:1], (2, 4, 6))}
    target = jnp.asarray(RANDOM.normal(size=(2, 4, 6)), jnp.float32)
    state = jax.vmap(tx.init)(weights)

    def value(params: Any, goal: Any) -> Any:
        return jnp.sum((params["w"] - goal) ** 2)

    def step(params: Any, state: Any, goal: Any) -> Any:
        batches = jnp.broadcast_to(goal, (3, *goal.shape))
        updates, state = tx.update(None, state, params, grad_fn=jax.grad(value), batches=batches)
        return optax.apply_updates(params, updates), state

    step = jax.jit(jax.vmap(step, axis_name="replica"))
    params = weights
    for _ in range(30):
        params, state = step(params, state, target)
    center = target.mean(0)
    before = float(jnp.abs(weights["w"][0] - center).mean())
    after = float(jnp.abs(params["w"][0] - center).mean())
    assert after < 0.5 * before
    np.testing.assert_array_equal(params["w"][0], params["w"][1])


@pytest.mark.parametrize("mode", MODES)
def test_devices_that_share_a_batch_weigh_their_replica_together(mode: str) -> None:
    """Each says what it has seen; the replica counts by their mean, and they stay equal."""
    targets = jnp.array([1.0, 5.0])  # of two replicas, each on two devices
    weights = jnp.array([[1.0, 3.0], [2.0, 1.0]])

    def ends(targets: Any, weights: Any, **axes: Any) -> Any:
        tx = esj.diloco(
            1.0, None, replica_axis_name="replica", inner_steps=2, streaming=mode == "streaming",
            inner_optimizer=optax.sgd(0.1), **axes,
        )  # fmt: skip

        def train(target: Any, weight: Any) -> Any:
            step, params = outer_step(tx, mode, replica_weight=weight), jnp.zeros(())
            return step(params, tx.init(params), jnp.broadcast_to(target, (2,)))[0]

        inner = jax.vmap(train, axis_name="data") if axes else train
        return jax.jit(jax.vmap(inner, axis_name="replica"))(targets, weights)

    apart = ends(jnp.tile(targets[:, None], 2), weights, batch_axis_name="data")
    together = ends(targets, weights.mean(1))
    np.testing.assert_array_equal(apart, np.full((2, 2), apart[0, 0]))
    np.testing.assert_allclose(apart[:, 0], together, rtol=1e-6)


@pytest.mark.parametrize("fewer", [{"bits": 4}, {"top_k": 64}], ids=str)
def test_replicas_without_a_parameter_exchange_nothing(fewer: dict[str, int]) -> None:
    tx = esj.diloco(replica_axis_name="r", inner_steps=2, inner_optimizer=optax.sgd(0.1), **fewer)
    params = {"w": jnp.ones((2, 0))}
    state = jax.vmap(tx.init)(params)
    update = jax.vmap(
        lambda state, params: tx.update(None, state, params, grad_fn=lambda x, _: x),
        axis_name="r",
    )
    assert update(state, params)[0]["w"].shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "argument", "advice"),
    [
        (lambda: esj.add_elastic_coupling(-1.0, "r"), "strength", "Parle's"),
        (lambda: esj.add_elastic_coupling(1.0, None), "axis_name", "over the replicas"),
        (lambda: esj.parle(0.1, replica_axis_name=None, coupling=1.0), "replica_axis_name", "mesh"),
        (lambda: esj.parle(0.1, replica_axis_name="r", coupling=-1.0), "coupling", "Parle's"),
        (lambda: esj.elastic_sgd(-0.1, replica_axis_name="r", coupling=1.0), "learning_rate", ""),
        (lambda: esj.replicated_sgd(0.1, 1.5, replica_axis_name="r", coupling=1), "momentum", ""),
        (lambda: esj.diloco(inner_steps=-1, inner_learning_rate=0.1), "inner_steps", "5 to 20"),
        (lambda: esj.diloco(-1, inner_steps=1, inner_learning_rate=0.1), "learning_rate", ""),
        (
            lambda: esj.diloco(replica_axis_name=[], inner_steps=1, inner_learning_rate=0.1),
            "replica_axis_name",
            "mesh",
        ),
        (lambda: esj.average_over_replicas(()), "axis_name", "mesh"),
        (
            lambda: esj.add_elastic_coupling(1.0, "r").update(1.0, None, 1.0, replica_weight=1.0),
            "replica_weight",
            "Only diloco",
        ),
        (
            lambda: esj.diloco(inner_steps=1, inner_learning_rate=1, scale_by_scope=True),
            "scale_by_scope",
            "never move",
        ),
        (
            lambda: esj.diloco(
                inner_steps=2, inner_learning_rate=1, streaming=True, fragments=[jnp.int32(0)]
            ),
            "fragments",
            "Number",
        ),
    ],
)
def test_bad_arguments_are_named(call: Any, argument: str, advice: str) -> None:
    with pytest.raises(ValueError, match=rf"`{argument}` must be .*; got .*{advice}"):
        call()


@pytest.mark.parametrize(
    "tx",
    [
        esj.add_elastic_coupling(1.0, "nowhere"),
        esj.average_over_replicas("nowhere"),
        esj.parle(0.1, replica_axis_name="nowhere", coupling=1.0, inner_steps=0),
        esj.diloco(replica_axis_name="nowhere", inner_steps=1, inner_learning_rate=0.1),
        esj.entropy_sgd(0.1, batch_axis_name="nowhere", streaming=True),
    ],
)
def test_an_axis_that_is_not_there_is_named(tx: Any) -> None:
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=r"axis_name` must be an axis of .* got 'nowhere'"):
        tx.update(params, tx.init(params), params)


def test_coupling_without_params_is_refused() -> None:
    tx = esj.add_elastic_coupling(1.0, "r")
    with pytest.raises(ValueError, match="`params` must be the parameters; got None"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="jax.shard_map came with JAX 0.6")
def test_replicas_on_devices_equal_replicas_under_vmap() -> None:
    program = pathlib.Path(__file__).with_name("replica_recipes.py")
    deviations = json.loads(run_program(program))
    assert len(deviations) == 12
    assert {name: gap for name, gap in deviations.items() if not gap < 2e-6} == {}


def sums_over_replicas(jaxpr: Any, carried: bool = False) -> list[bool]:
    """For each in the program: is it in a loop that runs where a carried boolean says so?"""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith("psum"):
            found.append(carried)
        unconditional = eqn.primitive.name != "while" or eqn.params["cond_jaxpr"].jaxpr.eqns
        for inner in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += sums_over_replicas(inner, carried or not unconditional)
    return found


def test_streaming_synchronises_where_x_moves() -> None:
    for streaming in (False, True):
        tx = esj.diloco(
            replica_axis_name="replica",
            inner_steps=L,
            inner_learning_rate=0.1,
            streaming=streaming,
        )
        params = {"w": jnp.zeros(D)}
        update = functools.partial(tx.update, grad_fn=lambda params, call: params)
        traced = jax.make_jaxpr(update, axis_env=[("replica", 1)])(params, tx.init(params), params)
        found = sums_over_replicas(traced.jaxpr)
        assert found
        assert all(found) if streaming else not any(found)


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="jax.shard_map came with JAX 0.6")
def test_replicas_communicate_one_lth_of_data_parallel_sgd() -> None:
    program = pathlib.Path(__file__).parents[2] / "benchmarks" / "communication.py"
    records = [
        json.loads(line) for line in run_program(program).splitlines() if line.startswith("{")
    ]
    parameters = 64 * 256 + 256 + 256 * 10 + 10
    assert [record["inner_steps"] for record in records] == [20, 500]
    for record in records:
        everything = 2 * 4 * parameters  # an all-reduce passes everything twice
        weight = 2 * 4  # of each replica, beside its pseudo-gradient
        found = record["bytes"]
        ways = ("bits=8", "bits=4", "top_k=64", "top_k=64, bits=4")
        eighth, fourth, largest, both = (found.pop(f"DiLoCo, {way}") for way in ways)
        assert found == {
            "data-parallel SGD": everything,
            "data-parallel Entropy-SGD": everything,
            "Parle": everything / record["inner_steps"],
            "DiLoCo": (everything + weight) / record["inner_steps"],
            "DiLoCo, streaming": (everything + weight) / record["inner_steps"],
        }
        assert eighth <= 0.27 * everything / record["inner_steps"]
        assert fourth <= 0.15 * everything / record["inner_steps"]
        # Each replica receives 64 of 4,096 numbers from all eight, with their places in two bytes.
        chunks, weights = 8 * -(-parameters // 4096) / record["inner_steps"], 8 * 4
        weights /= record["inner_steps"]
        assert largest == pytest.approx(chunks * 64 * (4 + 2) + weights)
        assert both == pytest.approx(chunks * (64 * (0.5 + 2) + 4) + weights)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_single_worker_of_weight_zero_takes_no_step(streaming: bool) -> None:
    """As replicas whose weights are all 0; any other weight is its own mean."""
    tx = esj.diloco(0.7, inner_steps=2, inner_learning_rate=0.1, streaming=streaming)
    x, batches, mode = jnp.ones(2), jnp.zeros(2), "streaming" if streaming else "scan_none"

    def after(**weight: float) -> jax.Array:
        return jax.jit(outer_step(tx, mode, **weight))(x, tx.init(x), batches)[0]

    assert_same(after(replica_weight=0.0), x)
    assert_same(after(replica_weight=0.25), after())
    assert (after() != x).all()


def test_the_papers_defaults() -> None:
    signature = inspect.signature(esj.parle).parameters
    assert signature["inner_steps"].default == 25
