"""The library against the NumPy statement of the algorithm, in float64."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import entropic, entropy_adam, entropy_sgd, scoping
from tests.core import reference
from tests.core.recording import float64, record_noise
from tests.core.reference import SGD, Adam, Arrays, Momentum, OuterStep

KEY = 5
UPDATES = 4
MOST_INNER_STEPS = 20
MODES = ("grads given", "grads=None", "streaming")

# Rademacher noise is ±1 in every program: it is in every test that does not ask for another.
# Gaussian noise is made in float32, and its last bit may differ from one program to the next.
EXACT, GAUSSIAN = 1e-12, 1e-6


# The problem: a small tanh network with a quartic penalty, and its gradient by hand.


def loss(params: Any, batch: Any) -> Any:
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["matrix"] + params["vector"])
    errors = params["scalar"] * hidden.sum(axis=1) - targets
    return 0.5 * jnp.mean(errors**2) + 0.05 * jnp.sum(params["matrix"] ** 4)


def gradient(params: Arrays, batch: tuple[np.ndarray, np.ndarray]) -> Arrays:
    inputs, targets = batch
    hidden = np.tanh(inputs @ params["matrix"] + params["vector"])
    errors = (params["scalar"] * hidden.sum(axis=1) - targets) / len(targets)
    into_tanh = errors[:, None] * params["scalar"] * (1 - hidden**2)
    return {
        "matrix": inputs.T @ into_tanh + 0.2 * params["matrix"] ** 3,
        "vector": into_tanh.sum(axis=0),
        "scalar": errors @ hidden.sum(axis=1),
    }


def start() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "matrix": rng.normal(size=(3, 4)),
        "vector": rng.normal(size=4),
        "scalar": np.array(1.5),
    }


def make_data(calls: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of five for each gradient: inputs and targets with axes (t, l) in front."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(UPDATES, calls, 5, 3)), rng.normal(size=(UPDATES, calls, 5))


def batch_of(data: Any, *index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], data)


def gradient_on(data: Any) -> reference.GradientFn:
    return lambda params, t, call: gradient(params, batch_of(data, t, call))


@pytest.fixture
def double_precision() -> Iterator[None]:
    with float64():
        yield


def as_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def assert_close(actual: Any, desired: Arrays, tolerance: float = EXACT) -> None:
    """Up to `tolerance` of the largest number in `desired`."""
    scale = max(np.abs(leaf).max() for leaf in desired.values())
    assert set(actual) == set(desired)
    for name, leaf in desired.items():
        assert actual[name].shape == leaf.shape
        np.testing.assert_allclose(actual[name], leaf, rtol=0, atol=tolerance * scale)


@functools.cache
def noise_of(source: str) -> list[list[Arrays]]:
    """The library's noise, in the shape that `reference` takes."""
    leaves = record_noise(
        as_jax(start()), key=KEY, updates=UPDATES, inner_steps=MOST_INNER_STEPS, noise=source
    )
    leaves = jax.tree.map(np.asarray, leaves)
    if source == "rademacher":  # its unit is known: a wrong one would go into the reference too
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(np.abs(leaf), 1), leaves)
    return [[batch_of(leaves, t, step) for step in range(MOST_INNER_STEPS)] for t in range(UPDATES)]


# Running the library beside the reference, and comparing every number that it shows on the way.


def run(
    mode: str,
    tx: Any,
    data: Any,
    history: list[OuterStep],
    supply: str = "batches",
    tolerance: float = EXACT,
) -> None:
    """Runs `tx` in one of MODES and compares it with `history`."""
    assert len({np.round(step.params["scalar"], 6) for step in history}) > 1, "x stands still"
    if mode == "streaming":
        run_streaming(tx, data, history, tolerance)
    else:
        run_scan(tx, data, history, supply, mode == "grads given", tolerance)


def run_scan(
    tx: Any, data: Any, history: list[OuterStep], supply: str, grads_given: bool, tolerance: float
) -> None:
    alone = not history[0].iterates

    @jax.jit
    def update(state: Any, params: Any, data: Any) -> Any:
        grads = None
        if grads_given or alone:
            grads, data = jax.grad(loss)(params, batch_of(data, 0)), batch_of(data, slice(1, None))
        arguments = {} if alone else supplied(supply, data)
        updates, state = tx.update(grads, state, params, **arguments)
        return optax.apply_updates(params, updates), state

    params = as_jax(start())
    state = tx.init(params)
    for t, expected in enumerate(history):
        params, state = update(state, params, batch_of(data, t))
        assert_close(params, expected.params, tolerance)
        if not alone and state.langevin_average is not None:  # as it is where α is the number 1
            assert_close(state.langevin_iterate, expected.iterates[-1], tolerance)
            assert_close(state.langevin_average, expected.averages[-1], tolerance)
    assert state.count == len(history)


def supplied(supply: str, data: Any) -> dict[str, Any]:
    """The three ways to hand the inner gradients over."""
    if supply == "batches":
        return {"grad_fn": jax.grad(loss), "batches": data}
    if supply == "value_and_grad_fn":
        return {"value_and_grad_fn": jax.value_and_grad(loss), "batches": data}
    return {"grad_fn": lambda params, step: jax.grad(loss)(params, batch_of(data, step))}


def run_streaming(tx: Any, data: Any, history: list[OuterStep], tolerance: float) -> None:
    @jax.jit
    def update(state: Any, params: Any, batch: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    params = as_jax(start())
    state = tx.init(params)
    for t, expected in enumerate(history):
        for iterate, average in zip(expected.iterates[:-1], expected.averages[:-1], strict=True):
            step = state.inner_count
            params, state = update(state, params, batch_of(data, t, step))
            assert_close(params, iterate, tolerance)
            if state.langevin_average is not None:
                assert_close(state.langevin_average, average, tolerance)
            assert state.count == t
        params, state = update(state, params, batch_of(data, t, -1))
        assert_close(params, expected.params, tolerance)
    assert state.count == len(history)


# Every pair of choices occurs in at least one case.

CHOICES: dict[str, tuple[Any, ...]] = {
    "inner_steps": (20, 2, 1, 0),
    "inner_momentum": ("none", "plain", "nesterov"),
    "weight_decay": ("none", "inside", "outside"),
    "base": ("sgd", "momentum", "nesterov", "adam"),
    "mode": MODES,
    "supply": ("batches", "step index", "value_and_grad_fn"),
    "noise": ("rademacher", "gaussian", "off"),
    "reset_inner_state": (True, False),
    "scale_by_scope": (False, True),
    "numbers": ("constants", "schedules"),
}
MOMENTUM = 0.8
WEIGHT_DECAY = 0.05
CONSTANTS = {
    "learning_rate": 0.6,
    "inner_learning_rate": 0.1,
    "scope": 0.4,
    "noise_scale": 0.3,
    "averaging": 0.65,
}
# Arithmetic that means the same to a Python int and to a traced one.
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "learning_rate": lambda t: 0.6 / (1 + 0.3 * t),
    "inner_learning_rate": lambda evaluations: 0.12 / (1 + 0.02 * evaluations),
    "scope": lambda t: 0.3 * 1.4**t,
    "noise_scale": lambda t: 0.3 / (1 + t),
    "averaging": lambda t: 0.4 + 0.1 * t,
}


def pairwise_cases() -> list[dict[str, Any]]:
    """Cases that together hold every pair of choices: each is built around a missing pair."""
    missing = {
        frozenset({(a, i), (b, j)}): None
        for (a, left), (b, right) in itertools.combinations(CHOICES.items(), 2)
        for i, j in itertools.product(left, right)
    }
    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for name, options in CHOICES.items():
            if name not in case:
                counts = [new_pairs(missing, case, (name, option)) for option in options]
                case[name] = options[counts.index(max(counts))]
        for pair in itertools.combinations(case.items(), 2):
            missing.pop(frozenset(pair), None)
        cases.append({name: case[name] for name in CHOICES})
    return cases


def new_pairs(missing: Any, case: dict[str, Any], choice: tuple[str, Any]) -> int:
    return sum(frozenset({choice, other}) in missing for other in case.items())


def case_name(case: dict[str, Any]) -> str:
    return ", ".join(str(value) for value in case.values())


def numbers_of(case: dict[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = dict(CONSTANTS if case["numbers"] == "constants" else SCHEDULES)
    return numbers | ({"noise_scale": 0.0} if case["noise"] == "off" else {})


def library_optimizer(case: dict[str, Any]) -> Any:
    numbers = numbers_of(case)
    learning_rate = numbers.pop("learning_rate")
    if case["numbers"] == "schedules":
        numbers["scope"] = scoping(0.3, 0.4)
    base = {
        "sgd": optax.sgd(learning_rate),
        "momentum": optax.sgd(learning_rate, MOMENTUM),
        "nesterov": optax.sgd(learning_rate, MOMENTUM, nesterov=True),
        "adam": optax.adam(learning_rate),
    }[case["base"]]
    inner = {
        "none": None,
        "plain": optax.trace(MOMENTUM),
        "nesterov": optax.trace(MOMENTUM, nesterov=True),
    }[case["inner_momentum"]]
    decay = optax.add_decayed_weights(WEIGHT_DECAY)
    if case["weight_decay"] == "inside":
        inner = decay if inner is None else optax.chain(decay, inner)
    if case["weight_decay"] == "outside":
        base = optax.chain(decay, base)
    return entropic(
        base,
        inner_steps=case["inner_steps"],
        inner_transform=inner,
        reset_inner_state=case["reset_inner_state"],
        scale_by_scope=case["scale_by_scope"],
        noise="gaussian" if case["noise"] == "gaussian" else "rademacher",
        streaming=case["mode"] == "streaming",
        key=KEY,
        **numbers,
    )


def numpy_run(case: dict[str, Any], data: Any) -> list[OuterStep]:
    numbers = numbers_of(case)
    learning_rate = numbers.pop("learning_rate")
    outside = WEIGHT_DECAY if case["weight_decay"] == "outside" else 0
    inside = WEIGHT_DECAY if case["weight_decay"] == "inside" else 0
    base = {
        "sgd": SGD(learning_rate, Momentum(0, weight_decay=outside)),
        "momentum": SGD(learning_rate, Momentum(MOMENTUM, weight_decay=outside)),
        "nesterov": SGD(learning_rate, Momentum(MOMENTUM, nesterov=True, weight_decay=outside)),
        "adam": Adam(learning_rate, weight_decay=outside),
    }[case["base"]]
    inner = {
        "none": Momentum(0, weight_decay=inside),
        "plain": Momentum(MOMENTUM, weight_decay=inside),
        "nesterov": Momentum(MOMENTUM, nesterov=True, weight_decay=inside),
    }[case["inner_momentum"]]
    return reference.entropy_sgd(
        start(),
        gradient_on(data),
        noise_of("gaussian" if case["noise"] == "gaussian" else "rademacher"),
        base,
        updates=UPDATES,
        inner_steps=case["inner_steps"],
        inner_momentum=inner,
        reset_inner_state=case["reset_inner_state"],
        scale_by_scope=case["scale_by_scope"],
        **numbers,
    )


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("case", pairwise_cases(), ids=case_name)
def test_follows_the_equations(case: dict[str, Any]) -> None:
    data = make_data(max(case["inner_steps"], 1))
    tolerance = GAUSSIAN if case["noise"] == "gaussian" else EXACT
    history = numpy_run(case, data)
    run(case["mode"], library_optimizer(case), data, history, case["supply"], tolerance)


@pytest.mark.usefixtures("double_precision")
def test_the_gradient_by_hand_is_the_gradient() -> None:
    batch = batch_of(make_data(1), 0, 0)
    assert_close(jax.grad(loss)(as_jax(start()), as_jax(batch)), gradient(start(), batch))


def test_every_pair_of_choices_is_tested() -> None:
    cases = pairwise_cases()
    for (a, left), (b, right) in itertools.combinations(CHOICES.items(), 2):
        assert {(case[a], case[b]) for case in cases} == set(itertools.product(left, right))


# The ends of the ranges: numbers known in Python may take a shorter way through the code.


def three_steps(**changes: Any) -> dict[str, Any]:
    """Numbers for `entropic` and for the reference alike."""
    numbers = {name: value for name, value in CONSTANTS.items() if name != "learning_rate"}
    return {"inner_steps": 3, **numbers, **changes}


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("ends", "mode"),
    [
        ({"scope": 0}, "grads given"),
        ({"averaging": 1}, "grads=None"),
        ({"scope": 0.0, "averaging": 1.0}, "streaming"),
        ({"scope": 0.0, "noise_scale": 0, "averaging": 1.0}, "grads given"),
        ({"scope": lambda t: 0.0 * t, "averaging": lambda t: 1 - 0.0 * t}, "grads=None"),
        ({"noise_scale": lambda t: 0.0 * t, "averaging": lambda t: 0.3 * t}, "streaming"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_the_ends_of_the_ranges(ends: dict[str, Any], mode: str) -> None:
    tx = entropic(
        optax.sgd(0.5, MOMENTUM),
        noise="rademacher",
        key=KEY,
        streaming=mode == "streaming",
        **three_steps(**ends),
    )
    data = make_data(3)
    history = reference.entropy_sgd(
        start(),
        gradient_on(data),
        noise_of("rademacher"),
        SGD(0.5, Momentum(MOMENTUM)),
        updates=UPDATES,
        **three_steps(**ends),
    )
    run(mode, tx, data, history)


@pytest.mark.parametrize("name", ["averaging", "inner_learning_rate"])
def test_without_averaging_or_steps_the_parameters_stay(name: str) -> None:
    params = jnp.linspace(-1, 1, 5)
    tx = entropic(optax.sgd(1.0), **three_steps(**{name: 0.0}))
    update = jax.jit(functools.partial(tx.update, grad_fn=lambda params, step: params + 1))
    updates, _ = update(None, tx.init(params), params)
    np.testing.assert_allclose(updates, 0, atol=1e-7)


# The named optimizers.


@pytest.mark.usefixtures("double_precision")
def test_entropy_adam_is_adam_on_the_local_entropy() -> None:
    tx = entropy_adam(
        0.05, 0.8, 0.99, 1e-3, inner_momentum=0.7, noise="rademacher", key=KEY, **three_steps()
    )
    data = make_data(3)
    history = reference.entropy_sgd(
        start(),
        gradient_on(data),
        noise_of("rademacher"),
        Adam(0.05, 0.8, 0.99, 1e-3),
        updates=UPDATES,
        inner_momentum=Momentum(0.7, nesterov=True),
        **three_steps(),
    )
    run("grads=None", tx, data, history)


KEYWORDS: dict[str, Any] = {  # all of them away from their defaults
    "inner_steps": 3,
    "inner_learning_rate": 0.2,
    "scope": 0.3,
    "noise_scale": 0.1,
    "averaging": 0.5,
    "reset_inner_state": False,
    "noise": "rademacher",
    "scale_by_scope": True,
    "accumulator_dtype": jnp.bfloat16,
    "diagnostics": True,
    "key": 3,
}


@pytest.mark.parametrize("keywords", [KEYWORDS, {}], ids=["every keyword", "defaults"])
@pytest.mark.parametrize("streaming", [False, True], ids=["scan", "streaming"])
@pytest.mark.parametrize(
    ("named", "base", "inner"),
    [
        (
            functools.partial(entropy_sgd, 0.3),
            optax.sgd(0.3),
            optax.trace(0.9, nesterov=True),
        ),
        (
            functools.partial(
                entropy_sgd, 0.3, 0.5, True, inner_momentum=0.7, inner_nesterov=False
            ),
            optax.sgd(0.3, 0.5, nesterov=True),
            optax.trace(0.7),
        ),
        (
            functools.partial(entropy_sgd, 0.3, 0.5, inner_momentum=None),
            optax.sgd(0.3, 0.5),
            None,
        ),
        (
            functools.partial(entropy_sgd, 0.3, inner_transform=optax.scale(0.5)),
            optax.sgd(0.3),
            optax.scale(0.5),
        ),
        (
            functools.partial(entropy_adam, 0.03),
            optax.adam(0.03, 0.9, 0.999, 1e-8),
            optax.trace(0.9, nesterov=True),
        ),
        (
            functools.partial(entropy_adam, 0.03, 0.8, 0.9, 1e-3, inner_momentum=0.7),
            optax.adam(0.03, 0.8, 0.9, 1e-3),
            optax.trace(0.7, nesterov=True),
        ),
    ],
    ids=[
        "entropy_sgd",
        "entropy_sgd, both momenta",
        "entropy_sgd, no inner momentum",
        "entropy_sgd, inner_transform",
        "entropy_adam",
        "entropy_adam, other numbers",
    ],
)
def test_named_optimizers_are_entropic(
    named: Callable[..., Any], base: Any, inner: Any, streaming: bool, keywords: dict[str, Any]
) -> None:
    """The same program, number by number, and so the same results to the bit."""
    one = program(named(streaming=streaming, **keywords), streaming)
    other = program(
        entropic(base, inner_transform=inner, streaming=streaming, **keywords), streaming
    )
    assert one == other


def program(tx: Any, streaming: bool) -> str:
    """`init` and one `update` as JAX traces them; addresses in memory left out."""

    def init_and_update(params: Any, grads: Any) -> Any:
        more = {} if streaming else {"grad_fn": lambda params, step: params}
        updates, state = tx.update(grads, tx.init(params), params, **more)
        return updates, jax.tree.map(jnp.asarray, state._replace(rng_key=state.rng_key))

    params = {"w": jnp.ones(3)}
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(init_and_update)(params, params)))


# Noise: a function of the key, the outer step and the Langevin step, and of nothing else.


@pytest.mark.parametrize(("source", "tolerance"), [("gaussian", 1e-6), ("rademacher", 0)])
def test_noise_is_a_function_of_key_and_steps(source: str, tolerance: float) -> None:
    like = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(())}
    noise = record_noise(like, key=4, updates=3, inner_steps=5, noise=source)

    # In scan mode, and with another number of Langevin steps: the last x′ of an update is its ξ.
    tx = entropic(
        optax.sgd(0.0),
        inner_steps=4,
        inner_learning_rate=1.0,
        scope=1.0,
        noise_scale=1.0,
        noise=source,
        key=4,
    )
    zero_gradient = lambda params, step: jax.tree.map(jnp.zeros_like, params)  # noqa: E731

    @jax.jit
    def update(state: Any) -> Any:
        return tx.update(None, state, like, grad_fn=zero_gradient)[1]

    state = tx.init(like)
    for t in range(3):
        state = update(state)
        for name, xi in state.langevin_iterate.items():
            np.testing.assert_allclose(noise[name][t, 3], xi, rtol=0, atol=tolerance)

    # A state put back to an earlier outer step draws that step's noise again.
    again = update(tx.init(like)._replace(count=jnp.int32(1)))
    np.testing.assert_allclose(
        noise["a"][1, 3], again.langevin_iterate["a"], rtol=0, atol=tolerance
    )


def test_another_key_brings_other_noise() -> None:
    like = {"a": jnp.zeros((3, 5))}
    one, other = (record_noise(like, key=key, updates=2, inner_steps=2)["a"] for key in (0, 1))
    assert len(np.unique(np.stack([one, other]))) == 2 * one.size


# The rules in print and in the authors' code.


@pytest.mark.usefixtures("double_precision")
def test_the_papers_printed_rule() -> None:
    """Algorithm 1 word for word: no momentum, and γ in the outer step."""
    eta, gamma, alpha, inner_eta, eps = 0.9, 0.7, 0.75, 0.1, 0.2
    data, noise = make_data(3), noise_of("rademacher")
    x, history = start(), []
    for t in range(UPDATES):
        iterate, mu = dict(x), dict(x)
        for step in range(3):
            g = gradient(iterate, batch_of(data, t, step))
            for name in x:
                change = g[name] - gamma * (x[name] - iterate[name])
                thermal = np.sqrt(inner_eta) * eps * noise[t][step][name]
                iterate[name] = iterate[name] - inner_eta * change + thermal
                mu[name] = (1 - alpha) * mu[name] + alpha * iterate[name]
        x = {name: x[name] - eta * gamma * (x[name] - mu[name]) for name in x}
        history.append(OuterStep([iterate] * 3, [mu] * 3, x))
    tx = entropic(
        optax.sgd(eta),
        inner_steps=3,
        inner_learning_rate=inner_eta,
        scope=gamma,
        noise_scale=eps,
        averaging=alpha,
        scale_by_scope=True,
        noise="rademacher",
        key=KEY,
    )
    run("grads given", tx, data, history)


def published_setting(momentum: float, nesterov: bool, decay: float, streaming: bool) -> Any:
    """The arguments that turn the library's rule into the published PyTorch code's."""
    weight_decay = optax.add_decayed_weights(decay)
    inner = optax.trace(momentum, nesterov) if momentum else optax.identity()
    return entropic(
        optax.chain(weight_decay, optax.sgd(0.6, momentum or None, nesterov)),
        inner_steps=4,
        inner_learning_rate=0.1,
        scope=0.2,
        noise_scale=np.sqrt(2) * 0.05,
        averaging=0.25,
        inner_transform=optax.chain(weight_decay, inner),
        noise="rademacher",
        streaming=streaming,
        key=KEY,
    )


def published_run(
    data: Any, momentum: float, nesterov: bool, decay: float, **quirks: bool
) -> list[OuterStep]:
    """The batch of the call at x is the last of `data`. The published noise has the other sign."""
    flipped = [
        [jax.tree.map(np.negative, xi) for xi in update] for update in noise_of("rademacher")
    ]
    return reference.published_code(
        start(),
        gradient_on(data),
        flipped,
        updates=UPDATES,
        inner_steps=4,
        learning_rate=0.6,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=decay,
        g0=0.2,
        eps=0.05,
        **quirks,
    )


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay", "mode"),
    [
        (0.0, False, 0.0, "grads=None"),
        (0.0, False, 0.05, "streaming"),
        (0.8, False, 0.05, "grads given"),
        (0.8, True, 0.05, "streaming"),
    ],
    ids=["no momentum", "weight decay", "plain", "nesterov"],
)
def test_the_published_codes_rule(momentum: float, nesterov: bool, decay: float, mode: str) -> None:
    """Momentum without its two quirks. Where there is none, neither shows."""
    data = make_data(5)
    quirks = {"seeded_buffer": False, "leaking_buffer": False} if momentum else {}
    history = published_run(data, momentum, nesterov, decay, **quirks)
    tx = published_setting(momentum, nesterov, decay, mode == "streaming")
    run(mode, tx, batch_of(data, slice(None), slice(4)), history)


@pytest.mark.usefixtures("double_precision")
def test_the_published_code_with_its_seeded_momentum_buffer() -> None:
    """With Nesterov momentum that is all of it: the seed is put into the state by hand."""
    data = make_data(5)
    history = published_run(data, 0.8, True, 0.05)
    tx = published_setting(0.8, True, 0.05, streaming=False)
    seed = as_jax(gradient(start(), batch_of(data, 0, -1)))

    def init(params: Any) -> Any:
        state = tx.init(params)
        base_state = jax.tree.map(
            lambda node: optax.TraceState(seed) if isinstance(node, optax.TraceState) else node,
            state.base_state,
            is_leaf=lambda node: isinstance(node, optax.TraceState),
        )
        return state._replace(base_state=base_state)

    seeded = optax.GradientTransformationExtraArgs(init, tx.update)
    run("grads=None", seeded, batch_of(data, slice(None), slice(4)), history)


# Half precision.


def twenty_steps(
    dtype: Any, start: float, length: float, streaming: bool, accumulator_dtype: Any = None
) -> tuple[Any, Any]:
    """Parameters and state after one update of 20 equal Langevin steps downwards."""
    tx = entropic(
        optax.sgd(1.0),
        inner_steps=20,
        inner_learning_rate=length,
        scope=0.0,
        noise_scale=0.0,
        averaging=jnp.float32(1),  # of which, unlike of the number 1, the state keeps x′ and μ
        streaming=streaming,
        accumulator_dtype=accumulator_dtype,
    )
    grad_fn = lambda params, step: jnp.ones_like(params)  # noqa: E731

    @jax.jit
    def update(state: Any, params: Any) -> Any:
        more = {} if streaming else {"grad_fn": grad_fn}
        updates, state = tx.update(grad_fn(params, 0), state, params, **more)
        assert updates.dtype == dtype
        return optax.apply_updates(params, updates), state

    params = jnp.full(3, start, dtype)
    state = tx.init(params)
    for _ in range(20 if streaming else 1):
        params, state = update(state, params)
    assert params.dtype == dtype
    assert state.count == 1
    return params, state


@pytest.mark.parametrize("streaming", [False, True], ids=["scan", "streaming"])
@pytest.mark.parametrize(
    ("dtype", "start", "length", "spacing"),
    [
        (jnp.bfloat16, 1.0, 1e-3, 2**-8),
        (jnp.float16, 1.0, 1e-4, 2**-11),
        (jnp.float16, 2e-5, 2e-8, 2**-24),
    ],
    ids=["bf16", "f16", "subnormal f16"],
)
def test_small_steps_of_half_precision_parameters_add_up(
    dtype: Any, start: float, length: float, spacing: float, streaming: bool
) -> None:
    """One step is less than half the spacing of numbers there, and alone would round away."""
    assert length < spacing / 2
    params, state = twenty_steps(dtype, start, length, streaming)
    start = float(jnp.asarray(start, dtype))
    end = np.asarray(params, np.float64)
    np.testing.assert_allclose(end, start - 20 * length, rtol=0, atol=0.55 * spacing)
    assert state.langevin_iterate.dtype == jnp.float32
    assert state.langevin_average.dtype == jnp.float32
    if not streaming:  # there x′ has gone back to x
        np.testing.assert_allclose(state.langevin_iterate, start - 20 * length, rtol=1e-6)


@pytest.mark.parametrize("streaming", [False, True], ids=["scan", "streaming"])
def test_a_narrow_accumulator_rounds_small_steps_away(streaming: bool) -> None:
    params, state = twenty_steps(jnp.bfloat16, 1.0, 1e-3, streaming, jnp.bfloat16)
    assert state.langevin_iterate.dtype == jnp.bfloat16
    assert state.langevin_average.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(params, np.float32), 1)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("streaming", [False, True], ids=["scan", "streaming"])
def test_a_wide_accumulator_keeps_small_steps_of_float32_parameters(streaming: bool) -> None:
    params, state = twenty_steps(jnp.float32, 1.0, 1e-8, streaming, jnp.float64)
    assert state.langevin_iterate.dtype == jnp.float64
    assert state.langevin_average.dtype == jnp.float64
    np.testing.assert_allclose(params, 1 - 2e-7, rtol=0, atol=4e-8)
    if not streaming:
        np.testing.assert_allclose(state.langevin_iterate, 1 - 2e-7, rtol=0, atol=1e-14)


def test_streaming_keeps_the_digits_of_an_accumulator_of_as_many_bits() -> None:
    """Steps that float16 has the digits for, and bfloat16 has not."""
    tx = entropic(
        optax.sgd(1.0), inner_steps=8, inner_learning_rate=1e-3, scope=0, noise_scale=0,
        averaging=1, accumulator_dtype=jnp.float16, streaming=True,
    )  # fmt: skip
    params, update = jnp.ones(2, jnp.bfloat16), jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(8):
        updates, state = update(jnp.ones(2), state, params)
        params = optax.apply_updates(params, updates)
    assert (params < 1).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
def test_streaming_keeps_the_digits_of_half_precision_parameters(dtype: Any) -> None:
    """The gradient sees x′ rounded. x′ itself goes from call to call in float32, as in a scan."""
    numbers: dict[str, Any] = {
        "inner_learning_rate": 0.05,
        "scope": 0.5,
        "noise_scale": 0.01,
        "averaging": jnp.float32(1),
        "noise": "rademacher",
    }
    grad_fn = jax.grad(lambda params, _: 0.5 * jnp.sum((params - 2) ** 2))
    params = jnp.linspace(0.5, 4, 8).astype(dtype)
    scan = entropic(optax.sgd(1.0), inner_steps=6, **numbers)
    update = jax.jit(lambda state, params: scan.update(None, state, params, grad_fn=grad_fn))
    _, scanned = update(scan.init(params), params)

    stream = entropic(optax.sgd(1.0), inner_steps=7, streaming=True, **numbers)
    update = jax.jit(lambda state, params: stream.update(grad_fn(params, 0), state, params))
    state = stream.init(params)
    for _ in range(6):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.langevin_iterate, scanned.langevin_iterate, rtol=0, atol=1e-6)
