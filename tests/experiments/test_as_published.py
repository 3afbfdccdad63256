"""The paper's workloads in small: forward pass, loss, order of batches, evaluation, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import workloads
from experiments.harness import contestants, evaluation, settings, training
from experiments.io.dataset import Dataset

RANDOM = np.random.default_rng(0)
SYMBOLS, WIDTH, LENGTH, BATCH = 5, 3, 4, 2
KEY = jax.random.key(0)


def windows(count: int) -> np.ndarray:
    return RANDOM.integers(0, SYMBOLS, (count, LENGTH)).astype(np.int32)


def make(name: str, **chosen):
    """A small model, and its parameters: jittered, so that none is 0 or 1.

    About 0, or BatchNorm would divide what hardly varies, and rounding with it.
    """
    data = Dataset(*4 * [np.zeros((1, LENGTH), np.int32)])
    own = settings.Settings(width=WIDTH, **chosen)
    model = workloads.get(name).make_model(own, data, SYMBOLS)
    params = model.init(KEY)
    jitter = lambda leaf: leaf + RANDOM.uniform(-0.5, 0.5, leaf.shape).astype(np.float32)  # noqa: E731
    return model, jax.tree.map(jitter, params)


def numbers(params) -> dict:
    """The parameters as plain dictionaries of float64 arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(params))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(params, inputs, state):
    hidden, cell = state
    shown = []
    for step in range(inputs.shape[1]):
        gates = inputs[:, step] @ params["inputs"]["kernel"] + params["inputs"]["bias"]
        write, keep, read, new = np.split(gates + hidden @ params["recurrent"]["kernel"], 4, 1)
        cell = sigmoid(keep) * cell + sigmoid(write) * np.tanh(new)
        hidden = sigmoid(read) * np.tanh(cell)
        shown.append(hidden)
    return np.stack(shown, 1), (hidden, cell)


def normalised(x, params, mean, variance):
    scaled = (x - mean) / np.sqrt(variance + 1e-5)
    return scaled * params.get("scale", 1) + params.get("bias", 0)


def forward(params, symbols, states, statistics=None):
    """Logits, the states afterwards, and the mean and variance that each BatchNorm saw."""
    hidden, after, seen = params["embedding"]["embedding"][symbols], [], []
    for index, state in enumerate(states):
        hidden, state = lstm(params["layers"][index], hidden, state)
        after.append(state)
        if params.get("norms"):
            seen.append((hidden.mean((0, 1)), hidden.var((0, 1))))
            known = statistics[index] if statistics else seen[-1]
            hidden = normalised(hidden, params["norms"][index], *known)
    return hidden @ params["last"]["kernel"] + params["last"]["bias"], after, seen


def zero_states(streams):
    return 2 * [2 * [np.zeros((streams, WIDTH))]]


def losses(logits, labels):
    shifted = logits - logits.max(-1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(-1))
    return log_sums - np.take_along_axis(shifted, labels[..., None], -1)[..., 0]


LSTMS = pytest.mark.parametrize("name", ["ptb", "ptb_small", "char_lstm"])


@LSTMS
def test_the_loss_and_the_state_after_two_windows(name):
    """PTB sums over the steps; the second window starts where the first ended."""
    model, params = make(name)
    steps, states = LENGTH if name.startswith("ptb") else 1, zero_states(BATCH)
    plain, carry = numbers(params), 7 + model.carry(BATCH)  # a start forgets what was before
    assert bool(plain.get("norms")) == (name == "char_lstm")
    for first in (True, False):
        inputs, labels = windows(BATCH), windows(BATCH)
        logits, states, _ = forward(plain, inputs, states)
        loss, carry = jax.jit(model.carried_loss)(params, (inputs, labels, KEY, first), carry)
        np.testing.assert_allclose(loss, steps * losses(logits, labels).mean(), rtol=1e-4)
        np.testing.assert_allclose(carry, np.array(states), rtol=1e-4, atol=1e-6)


@LSTMS
def test_a_text_is_judged_in_streams(name):
    """Against all windows of a stream as one; BatchNorm's statistics in streams too."""
    model, params = make(name)
    if name == "char_lstm":
        assert model.streams == 128
        model = model._replace(streams=2)
    inputs, labels, train = windows(6), windows(6), windows(7)
    batches = evaluation.statistics_batches(jnp.asarray(train), in_order=True)
    plain = numbers(params)
    _, _, known = forward(plain, train, zero_states(7))  # one batch: seven streams of a window
    streams = 1 if name.startswith("ptb") else 2
    long = [x.reshape(streams, -1) for x in (inputs, labels)]
    logits, *_ = forward(plain, long[0], zero_states(streams), known)
    statistics = model.statistics(params, batches)
    loss, wrong = evaluation.judge(model, params, statistics, inputs, labels)
    np.testing.assert_allclose(loss, losses(logits, long[1]).mean(), rtol=1e-4)
    np.testing.assert_allclose(wrong, (logits.argmax(-1) != long[1]).mean())


def test_statistics_go_on_from_batch_to_batch():
    model, params = make("char_lstm")
    batches, states, seen = windows(6).reshape(3, 2, LENGTH), zero_states(2), []
    plain = numbers(params)
    for batch in batches:
        _, states, found = forward(plain, batch, states)
        seen.append(found)
    known = model.statistics(params, jnp.asarray(batches))
    for index in range(2):
        mean, variance = np.mean([found[index] for found in seen], 0)
        np.testing.assert_allclose(known["norms"][index]["mean"][...], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(known["norms"][index]["var"][...], variance, rtol=1e-4)


def test_streams_are_read_in_order_through_all_segments():
    budget = training.Budget(7, 2, 3, measurements=3, sampling="streams")  # segments of 3, 3, 1
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    orders = [training.draw_segment(keys, index, budget, 16)[0] for index in range(3)]
    order = np.concatenate(orders, 1)[:, :7]
    text = np.arange(15).reshape(3, 5)  # of 16 windows the last is left over
    expected = [text[:, step % 5] for step in range(14)]
    for seed in range(2):
        np.testing.assert_array_equal(order[seed].reshape(14, 3), expected)


def test_replacement_draws_every_example_with_the_same_chance():
    budget = training.Budget(50, 20, 10, measurements=1, sampling="replacement")
    order, _ = training.draw_segment(jax.vmap(jax.random.key)(jnp.arange(1)), 0, budget, 100)
    counts = np.bincount(np.asarray(order).ravel(), minlength=100)
    # 10,000 draws: 100 ± 10 each; shuffled passes would have exactly 100.
    assert 60 < counts.min() < 90
    assert 110 < counts.max() < 140


def quadratic(params, batch, carry):
    """A gradient that shows the order of batches and the state before."""
    return params - batch[0] + carry, 0.5 * carry + params


def test_the_state_goes_on_between_langevin_steps():
    batches, eta, gamma, alpha = np.arange(6.0), 0.1, 0.5, 0.25
    chosen = settings.Settings(
        learning_rate=0.5, inner_steps=3, inner_learning_rate=eta, scope=gamma, averaging=alpha,
        noise_scale=0.0, inner_momentum=0.0, sampling="streams", batch_size=1,
    )  # fmt: skip
    contestant, _ = contestants.prepare("entropy_sgd", chosen, 60, 1)
    params, carry = jnp.zeros(1), jnp.zeros(1)
    state, x, c = contestant.optimizer.init(params), 0.0, 0.0
    take = jax.jit(contestant.take_round, static_argnums=(0, 1))
    for part in (batches[:3], batches[3:]):
        params, state, carry = take(
            contestant.optimizer, quadratic, params, state, (part[:, None],), carry
        )
        inner = mean = x
        for batch in part:
            grad, c = quadratic(inner, (batch,), c)
            inner -= eta * (grad + gamma * (inner - x))
            mean = (1 - alpha) * mean + alpha * inner
        x -= 0.5 * (x - mean)
        np.testing.assert_allclose((params[0], carry[0]), (x, c), rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "sam"])
def test_the_state_goes_on_between_steps(name):
    """SAM climbs by the radius, and takes its second gradient from the state before."""
    rho = 0.1 if name == "sam" else 0.0
    chosen = settings.Settings(learning_rate=0.5, rho=0.1, sampling="streams", batch_size=1)
    contestant, _ = contestants.prepare(name, chosen, 60, 1)
    params, carry = jnp.zeros(1), jnp.zeros(1)
    state, x, c = contestant.optimizer.init(params), 0.0, 0.0
    batches = 1 + np.arange(4.0)
    take = jax.jit(contestant.take_round, static_argnums=(0, 1))
    params, _, carry = take(
        contestant.optimizer, quadratic, params, state, (batches[:, None],), carry
    )
    for batch in batches:
        grad, after = quadratic(x, (batch,), c)
        grad, _ = quadratic(x + rho * np.sign(grad), (batch,), c)
        x, c = x - 0.5 * grad, after
    np.testing.assert_allclose((params[0], carry[0]), (x, c), rtol=1e-5)


@pytest.mark.parametrize(("name", "bound"), [("ptb", 0.04), ("ptb_small", 0.1)])
def test_all_parameters_of_the_word_lstm_start_within_a_bound(name, bound):
    data = Dataset(*4 * [np.zeros((1, LENGTH), np.int32)])
    model = workloads.get(name).make_model(settings.Settings(width=20), data, 50)
    for leaf in jax.tree.leaves(model.init(KEY)):
        assert np.abs(leaf).max() <= bound
        assert leaf.std() == pytest.approx(bound / np.sqrt(3), rel=0.3)  # 50 numbers or more


def test_the_character_lstm_starts_as_torch_rnn():
    data = Dataset(*4 * [np.zeros((1, LENGTH), np.int32)])
    model = workloads.get("char_lstm").make_model(settings.Settings(), data, 84)
    params = model.init(KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 259_640  # the authors' number
    plain = numbers(params)
    assert plain["embedding"]["embedding"].std() == pytest.approx(1, rel=0.03)
    for layer, inputs in ((plain["layers"][0], 85), (plain["layers"][1], 128)):
        for kernel in (layer["inputs"]["kernel"], layer["recurrent"]["kernel"]):
            assert kernel.std() == pytest.approx((inputs + 128) ** -0.5, rel=0.02)
        np.testing.assert_array_equal(layer["inputs"]["bias"], np.repeat([0, 1, 0, 0], 128))
    for norm in plain["norms"].values():
        assert norm["scale"].min() >= 0
        assert norm["scale"].mean() == pytest.approx(0.5, abs=0.1)
    assert plain["last"]["bias"].std() == pytest.approx(128**-0.5 / np.sqrt(3), rel=0.3)


# Images.


def images(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def make_images(name: str, shape: tuple, **chosen):
    """A small model as it starts."""
    data = Dataset(*4 * [np.zeros((1, *shape), np.float32)])
    model = workloads.get(name).make_model(settings.Settings(width=2, **chosen), data, 10)
    return model, model.init(KEY)


def convolve(x, params, stride=1, border=0):
    kernel = params["kernel"]
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    products = np.einsum("nhwcij,ijco->nhwo", patches[:, ::stride, ::stride], kernel)
    return products + params["bias"]


def pool(x, size):
    count, height, width, channels = x.shape
    return x.reshape(count, height // size, size, width // size, size, channels).max((2, 4))


def relu(x):
    return np.maximum(x, 0)


def by_batch(x, params):
    axes = tuple(range(x.ndim - 1))
    return normalised(x, params, x.mean(axes), x.var(axes))


def mnistfc(params, x):
    x = x.reshape(len(x), -1)
    for name in ("first", "second"):
        x = relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["last"]["kernel"] + params["last"]["bias"]


def lenet(params, x):
    x = by_batch(pool(relu(convolve(x[..., None], params["conv1"])), 3), params.get("norm1", {}))
    x = by_batch(pool(relu(convolve(x, params["conv2"])), 2), params.get("norm2", {}))
    x = relu(x.reshape(len(x), -1) @ params["dense"]["kernel"] + params["dense"]["bias"])
    return x @ params["last"]["kernel"] + params["last"]["bias"]


def allcnn(params, x):
    strides = (1, 1, 2, 1, 1, 2, 1, 1)
    for layer, stride in zip(params["layers"].values(), strides, strict=True):
        x = relu(by_batch(convolve(x, layer["conv"], stride, 1), layer["norm"]))
    x = relu(by_batch(convolve(x, params["last"]["conv"]), params["last"]["norm"]))
    return x.mean((1, 2))


@pytest.mark.parametrize(
    ("name", "shape", "affine", "reference"),
    [
        ("mnistfc", (28, 28), False, mnistfc),
        ("lenet", (28, 28), False, lenet),
        ("lenet", (28, 28), True, lenet),
        ("allcnn", (8, 8, 3), False, allcnn),
    ],
)
def test_the_training_loss_of_images(name, shape, affine, reference):
    """The forward pass, and a mean over the batch; biases are not zero at the start."""
    model, params = make_images(name, shape, affine=affine)
    inputs, labels = images(3, *shape), np.array([1, 0, 9])
    plain = numbers(params)
    assert ("norm1" in plain) == affine
    loss = jax.jit(model.loss)(params, (inputs, labels, KEY))
    expected = losses(reference(plain, inputs.astype(np.float64)), labels).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize(("name", "shape"), [("mnistfc", (28, 28)), ("lenet", (28, 28))])
def test_weights_and_biases_start_within_a_bound_by_their_inputs(name, shape):
    for layer in numbers(make_images(name, shape)[1]).values():
        bound = np.prod(layer["kernel"].shape[:-1]) ** -0.5
        for leaf in layer.values():
            assert 0 < np.abs(leaf).max() <= bound
            assert np.abs(leaf).max() > 0.5 * bound or leaf.size < 5  # 2⁻ⁿ for n numbers


def test_allcnn_starts_as_torch():
    for layer in numbers(make_images("allcnn", (8, 8, 3))[1])["layers"].values():
        bound = np.prod(layer["conv"]["kernel"].shape[:-1]) ** -0.5
        for leaf in layer["conv"].values():
            assert 0 < np.abs(leaf).max() <= bound
        assert 0 <= layer["norm"]["scale"].min() < layer["norm"]["scale"].max() < 1
        assert not layer["norm"]["bias"].any()


@pytest.mark.parametrize("name", ["mnistfc", "lenet", "allcnn"])
def test_images_are_drawn_with_replacement_and_adam_has_batches_of_256(name):
    usual = workloads.get(name).settings
    assert {chosen.sampling for chosen in usual.values()} == {"replacement"}
    assert usual["entropy_sgd"].batch_size == 128
    assert usual["adam"].batch_size == (128 if name == "allcnn" else 256)


@pytest.mark.parametrize("after", [False, True])
def test_weight_decay_before_or_after_the_inner_momentum(after):
    """Nesterov's momentum μ of d: the direction is d + μ m; α = 1 and η = 1 give the last x′."""
    eta, mu, decay = 0.1, 0.9, 0.5
    chosen = settings.Settings(
        learning_rate=1.0, inner_steps=3, inner_learning_rate=eta, scope=0.0, averaging=1.0,
        noise_scale=0.0, inner_momentum=mu, weight_decay=decay, decay_after_momentum=after,
    )  # fmt: skip
    contestant, _ = contestants.prepare("entropy_sgd", chosen, 10_000, 1)
    slope = lambda params, batch: batch[0] + 0 * params  # noqa: E731
    params = jnp.full(1, 2.0)
    take = jax.jit(contestant.take_round, static_argnums=(0, 1))
    state = contestant.optimizer.init(params)
    params, _ = take(contestant.optimizer, slope, params, state, (jnp.arange(3.0),))
    x, trace = 2.0, 0.0
    for gradient in range(3):
        gradient += 0 if after else decay * x
        trace = gradient + mu * trace
        x -= eta * (gradient + mu * trace + (decay * x if after else 0))
    np.testing.assert_allclose(params[0], x, rtol=1e-5)


def test_as_published_is_the_authors_average_and_noise():
    chosen = settings.Settings(averaging=0.75, noise_scale=1e-4, scope=0.1)
    published = settings.as_published(chosen)
    assert published.averaging == 0.25
    assert published.noise_scale == pytest.approx(1.41421356e-4, rel=1e-7)
    assert published == settings.Settings(
        averaging=0.25, noise_scale=published.noise_scale, scope=0.1
    )
