"""BatchNorm, dropout, evaluation and the networks of train.py against NumPy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from entropy_sgd_jax import entropy_sgd
from experiments import workloads
from experiments.harness import contestants, evaluation, networks, settings, training
from experiments.io.dataset import Dataset

RANDOM = np.random.default_rng(0)


class Normalised(nnx.Module):
    """BatchNorm on the inputs, dropout, one layer; as a user would write it."""

    def __init__(self, rngs: nnx.Rngs, momentum: float = 0.99):
        self.norm = nnx.BatchNorm(3, momentum=momentum, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, inputs, key=None):
        return self.last(self.dropout(self.norm(inputs)))


class Dropped(nnx.Module):
    """BatchNorm, dropout, layer, BatchNorm, with the key of the mask from outside."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.last = nnx.Linear(3, 2, rngs=rngs)
        self.end = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, inputs, key=None):
        return self.end(self.last(networks.dropout(self.norm(inputs), 0.5, key)))


def normalise(x, mean, variance):
    return (x - mean) / np.sqrt(variance + 1e-5)


def test_batch_statistics_are_the_means_over_the_batches():
    model, batches = Normalised(nnx.Rngs(0)), RANDOM.normal(2, 3, (5, 7, 3)).astype(np.float32)
    params = nnx.state(model, nnx.Param)
    before = jax.tree.map(jnp.copy, nnx.state(model))
    known = networks.batch_statistics(model, params, jnp.asarray(batches))
    np.testing.assert_allclose(known["norm"]["mean"][...], batches.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(known["norm"]["var"][...], batches.var(1).mean(0), rtol=1e-5)
    # The caller's model is left as it was.
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(_data, before), _state(model))
    assert model.norm.momentum == 0.99
    assert not model.dropout.deterministic


def _data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _state(model):
    return jax.tree.map(_data, nnx.state(model))


def test_deep_statistics_and_logits_equal_numpy():
    model = networks.pure(Dropped)
    params = model.init(jax.random.key(0))
    batches = RANDOM.normal(1, 2, (4, 6, 3)).astype(np.float32)
    known = model.statistics(params, jnp.asarray(batches))
    weights, bias = (np.asarray(params["last"][name][...]) for name in ("kernel", "bias"))
    hidden = [normalise(x, x.mean(0), x.var(0)) @ weights + bias for x in batches]
    mean, variance = np.mean([h.mean(0) for h in hidden], 0), np.mean([h.var(0) for h in hidden], 0)
    np.testing.assert_allclose(known["end"]["mean"][...], mean, atol=1e-5)
    np.testing.assert_allclose(known["end"]["var"][...], variance, rtol=1e-4)
    x = batches[0]
    first = normalise(x, batches.mean((0, 1)), batches.var(1).mean(0))
    expected = normalise(first @ weights + bias, mean, variance)
    logits = model.logits(params, known, jnp.asarray(x))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(logits, model.logits(params, known, jnp.asarray(x)))


def test_training_normalises_by_the_batch_and_drops_by_the_key():
    model = networks.pure(Dropped)
    params, x = model.init(jax.random.key(0)), jnp.asarray(RANDOM.normal(3, 1, (8, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 2)
    ends = [model.training_logits(params, x, key) for key in (keys[0], keys[0], keys[1])]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert (ends[0] != ends[2]).any()
    np.testing.assert_allclose(ends[0].mean(0), 0, atol=1e-5)  # the last BatchNorm's doing


def test_every_inner_step_has_a_mask_of_its_own():
    """The gradient of each unit is 1 where it is kept: L steps show L masks."""

    def loss(params, batch):
        return networks.dropout(params, 0.5, batch[2]).sum()

    budget = training.Budget(rounds=1, inner_steps=4, batch_size=2)
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    order, masks = training.draw_segment(keys, 0, budget, 10)
    optimizer, seen = entropy_sgd(1.0, inner_steps=4, noise_scale=0), []

    def grad_fn(params, batch):
        grads = jax.grad(loss)(params, batch)
        jax.debug.callback(lambda grads: seen.append(np.asarray(grads) > 0), grads)
        return grads

    params = jnp.zeros(64)
    batches = order[0, 0], order[0, 0], masks[0, 0]
    take_round = jax.jit(functools.partial(contestants.entropy_round, optimizer, grad_fn))
    take_round(params, optimizer.init(params), batches)
    jax.effects_barrier()
    assert len({mask.tobytes() for mask in seen}) == 4


def test_dropout_of_nearly_all_drops_nearly_all():
    dropped = np.asarray(networks.dropout(jnp.ones(100_000), 1 - 1e-7, jax.random.key(0)))
    assert (dropped != 0).sum() < 20  # in the mean 1.5


def test_dropout_keeps_the_mean_and_the_rate():
    dropped = np.asarray(networks.dropout(jnp.ones(100_000), 0.3, jax.random.key(0)))
    assert np.mean(dropped == 0) == pytest.approx(0.3, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(networks.dropout(jnp.ones(5), 0.3, None), np.ones(5))


def test_max_pool_equals_the_usual_one():
    images = jnp.asarray(RANDOM.normal(size=(2, 12, 12, 3)), jnp.float32)
    pooled = nnx.max_pool(images, (3, 3), (3, 3))
    np.testing.assert_array_equal(networks.max_pool(images, 3), pooled)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("size", "strides"), [((5, 5), (1, 1)), ((3, 3), (2, 2)), ((1, 1), (1, 1)), ((2, 3), (3, 2))]
)
def test_patches_convolve_as_the_usual_convolution(size, strides, padding):
    images = jnp.asarray(RANDOM.normal(size=(2, 12, 9, 3)), jnp.float32)
    layers = [
        make(3, 4, size, strides, padding=padding, rngs=nnx.Rngs(0))
        for make in (networks.Conv, nnx.Conv)
    ]
    for layer in layers:
        layer.bias[...] = jnp.arange(4.0)
    ours, usual = (layer(images) for layer in layers)
    assert ours.shape == usual.shape
    np.testing.assert_allclose(ours, usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": ((1, 1), (1, 1))},
        {"feature_group_count": 2},
        {"padding": ((1, 0), (2, 1))},
        {"padding": "CIRCULAR"},
        {"kernel_size": (3,)},
    ],
    ids=str,
)
def test_other_convolutions_are_the_usual_ones(options):
    chosen = {"kernel_size": (3, 3), **options}
    shape = (2, *(9,) * len(chosen["kernel_size"]), 4)
    images = jnp.asarray(RANDOM.normal(size=shape), jnp.float32)
    ours, usual = (
        make(4, 4, **chosen, rngs=nnx.Rngs(0))(images) for make in (networks.Conv, nnx.Conv)
    )
    np.testing.assert_allclose(ours, usual, rtol=1e-4, atol=1e-5)


def test_patches_are_for_cpus_only(monkeypatch):
    layer = networks.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    images = jnp.ones((1, 6, 6, 3))
    program = lambda: str(jax.make_jaxpr(lambda images: layer(images))(images))  # noqa: E731
    assert "conv_general_dilated" not in program()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in program()


def test_lstm_equals_its_formula():
    layer = networks.LSTM(3, 2, networks.torch_uniform, networks.within(1.0), nnx.Rngs(0))
    x = RANDOM.normal(size=(1, 4, 3)).astype(np.float32)
    inputs, bias = layer.inputs.kernel[...], layer.inputs.bias[...]
    hidden, cell = start = RANDOM.normal(size=(2, 2))
    shown, after = layer(jnp.asarray(x), jnp.asarray(start, jnp.float32)[:, None])
    for step, seen in enumerate(x[0]):
        gates = seen @ inputs + bias + hidden @ layer.recurrent.kernel[...]
        write, keep, read = (1 / (1 + np.exp(-gates[2 * i : 2 * i + 2])) for i in range(3))
        cell = keep * cell + write * np.tanh(gates[6:])
        hidden = read * np.tanh(cell)
        np.testing.assert_allclose(shown[0, step], hidden, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after[:, 0], (hidden, cell), rtol=1e-4)


def test_gpt_sees_only_what_came_before():
    workload = workloads.get("char_gpt")
    data = Dataset(*4 * [np.zeros((4, 6), np.int32)])
    model = workload.make_model(settings.Settings(width=8, layers=1), data, 5)
    params, symbols = model.init(jax.random.key(0)), jnp.array([[0, 1, 2, 3, 4, 0]])
    logits = jax.jit(lambda symbols: model.logits(params, nnx.State({}), symbols))
    before, after = logits(symbols), logits(symbols.at[0, 4].set(1))
    np.testing.assert_allclose(before[0, :4], after[0, :4], atol=1e-6)
    assert (before[0, 4:] != after[0, 4:]).all(-1).any()


@pytest.mark.parametrize(
    ("name", "shape", "classes", "weights"),
    [
        ("mnistfc", (1, 28, 28), 10, 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10),
        ("lenet", (1, 28, 28), 10, 20 * 26 + 50 * 501 + 500 * 201 + 10 * 501),
        ("allcnn", (1, 32, 32, 3), 10, 1_667_166),  # the paper's number
        ("ptb", (1, 35), 10_000, None),  # "66 million"
        ("ptb_small", (1, 20), 10_000, None),
        ("char_gpt", (1, 128), 65, None),
    ],
)
def test_networks_have_the_published_sizes(name, shape, classes, weights):
    workload = workloads.get(name)
    data = Dataset(*4 * [np.zeros(shape, np.int32)])
    chosen = workload.settings["entropy_sgd"]
    model = workload.make_model(chosen, data, classes)
    params = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if weights is None:
        published = {"ptb": 65.9e6, "ptb_small": 4.65e6, "char_gpt": 4.8e6}
        assert published[name] == pytest.approx(count, rel=0.02)
    else:
        assert count == weights


def test_chunks_change_nothing():
    inputs, labels = jnp.asarray(RANDOM.normal(size=(23, 3)), jnp.float32), jnp.arange(23) % 3
    logits = lambda params, statistics, inputs: inputs * params  # noqa: E731
    ends = [
        evaluation.judge(evaluation.Model(None, None, None, logits, chunk), 2.0, (), inputs, labels)
        for chunk in (5, 100)
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-6)


def test_only_the_last_symbols_of_a_window_count():
    logits = jnp.asarray(RANDOM.normal(size=(2, 5, 4)), jnp.float32)
    labels = jnp.asarray([[1, 2], [3, 0]])
    losses = evaluation.cross_entropies(logits, labels)
    expected = -jax.nn.log_softmax(logits)[0, 3, 1]
    assert losses.shape == (2, 2)
    np.testing.assert_allclose(losses[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "rising"), [(0.0, 0), (0.25, 5), (0.99, 19)])
def test_cosine_rises_in_a_straight_line_and_falls_to_zero(warmup, rising):
    chosen = settings.Settings(learning_rate=8.0, schedule="cosine", warmup=warmup)
    rates = jax.vmap(contestants.schedule(chosen, 20))(jnp.arange(21))
    line = 8.0 / max(rising, 1) * (1 + np.arange(rising) * (1 - 1 / max(rising, 1)))
    fall = 4.0 * (1 + np.cos(np.pi * np.arange(21 - rising) / (20 - rising)))
    np.testing.assert_allclose(rates, np.concatenate([line, fall]), atol=1e-5)


def test_step_schedule_divides_at_each_fraction():
    chosen = settings.Settings(
        learning_rate=8.0, schedule="step", drop_at=(0.25, 0.5, 0.5), drop_by=2.0
    )
    rate = jax.vmap(contestants.schedule(chosen, 8))(jnp.arange(8))
    np.testing.assert_allclose(rate, [8, 8, 4, 4, 1, 1, 1, 1])


@pytest.mark.parametrize("clip", [{"clip_norm": 1.0}, {"clip_value": 0.5}, {"weight_decay": 0.1}])
def test_regularisers_reach_every_optimizer(clip):
    """One round on slopes of several steepnesses ends elsewhere than without."""
    slope = lambda params, batch: 3 * jnp.ones(4) * (1 + batch[0])  # noqa: E731
    batches = (jnp.arange(4.0), jnp.ones(4), jax.random.split(jax.random.key(0), 4))
    budget = training.Budget(1, 4, 1)
    for name in ("sgd", "adamw", "sam", "entropy_sgd", "snoo"):
        ends = []
        for own in ({}, clip):
            chosen = settings.Settings(inner_steps=4, noise_scale=0.0, rho=0.0, **own)
            contestant = contestants.RECIPES[name](chosen, budget)
            state = contestant.optimizer.init(params := jnp.ones(4))
            take = jax.jit(contestant.take_round, static_argnums=(0, 1))
            ends.append(take(contestant.optimizer, slope, params, state, batches)[0])
        assert (ends[0] != ends[1]).all()


def test_sgld_is_a_falling_step_and_noise_of_its_size():
    """Against NumPy: without noise to rounding, with it by the sum of all steps' variances."""
    chosen = settings.Settings(learning_rate=0.2, schedule="power", power=0.25, noise_scale=0.0)
    ends = {}
    for epsilon in (0.0, 0.01):
        own = dataclasses.replace(chosen, noise_scale=epsilon)
        contestant = contestants.RECIPES["sgld"](own, training.Budget(1, 20, 1))
        params = jnp.ones(100_000)
        state = contestant.optimizer.init(params)
        batches = (jnp.arange(20.0), jnp.ones(20), jax.random.split(jax.random.key(0), 20))
        take = jax.jit(contestant.take_round, static_argnums=(0, 1))
        slope = lambda params, batch: params - batch[0]  # noqa: E731
        ends[epsilon] = take(contestant.optimizer, slope, params, state, batches)[0]
    place, variance = 1.0, 0.0
    for step in range(20):
        rate = 0.2 / (1 + step) ** 0.25
        place, variance = place - rate * (place - step), (1 - rate) ** 2 * variance + 2 * rate
    np.testing.assert_allclose(ends[0.0], place, rtol=1e-5)
    noise = np.asarray(ends[0.01] - ends[0.0], np.float64) / (0.01 * math.sqrt(variance))
    assert abs(noise.mean()) < 4 / math.sqrt(noise.size)
    assert abs((noise**2).mean() - 1) < 4 * math.sqrt(2 / noise.size)


def test_parle_replicas_start_alike_and_are_averaged():
    chosen = settings.Settings(inner_steps=2, replicas=3, momentum=0.9)
    contestant = contestants.RECIPES["parle"](chosen, training.Budget(1, 6, 1))
    params = contestant.prepare(jnp.zeros(2))
    assert params.shape == (3, 2)
    grad_fn = jax.grad(lambda params, batch: jnp.sum((params - batch[0]) ** 2))
    targets = jnp.repeat(jnp.array([1.0, 2.0, 6.0]), 2)  # two batches for each replica
    state = contestant.optimizer.init(params)
    take = jax.jit(contestant.take_round, static_argnums=(0, 1))
    for _ in range(60):
        params, state = take(contestant.optimizer, grad_fn, params, state, (targets,))
    np.testing.assert_allclose(contestant.reported(params), 3, atol=0.2)
    assert params[0, 0] < params[1, 0] < params[2, 0]


def test_one_by_one_is_vmap():
    square = lambda pair: pair[0] ** 2 + pair[1]  # noqa: E731
    pair = (jnp.arange(3.0), jnp.ones(3))
    expected = jax.vmap(square)(pair)
    np.testing.assert_array_equal(training.one_by_one(square)(pair), expected)
    np.testing.assert_array_equal(lax.map(square, pair), expected)
