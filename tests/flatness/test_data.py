"""How data, parameters and arguments come in: batches of both kinds, jit, shards, errors."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_sgd_jax import flatness
from tests.flatness.cases import network, plain

NET = network(5, np.float32)
LOSS = plain(NET.loss)


def product(batches: Any, **kwargs: Any) -> Any:
    return flatness.hessian_vector_product(LOSS, NET.params, NET.params, batches, **kwargs)


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-6), a, b)


class Pair(NamedTuple):
    images: Any
    labels: Any


class Loader:
    """Iterable again and again, like a DataLoader."""

    def __iter__(self) -> Any:
        return iter(NET.ragged)


WHOLE = product([NET.whole])


@pytest.mark.parametrize(
    "batches",
    [NET.batches, Pair(*NET.batches), NET.ragged, Loader(), jax.tree.map(np.asarray, NET.ragged)],
    ids=["tuple", "namedtuple", "list", "loader", "numpy"],
)
def test_every_kind_of_batches_gives_the_mean_over_the_data(batches: Any) -> None:
    close(product(batches), WHOLE)


def test_padded_batches_with_their_real_sizes() -> None:
    images, labels = (np.zeros((3, 20, *leaf.shape[1:]), leaf.dtype) for leaf in NET.whole)
    real = np.zeros((3, 20), bool)
    for i, (some_images, some_labels) in enumerate(NET.ragged):
        size = len(some_labels)
        images[i, :size], labels[i, :size], real[i, :size] = some_images, some_labels, True

    def loss(params: Any, batch: Any) -> Any:
        images, labels, real = batch
        one = jax.vmap(lambda image, label: LOSS(params, (image[None], label[None])))
        return jnp.where(real, one(images, labels), 0).sum() / real.sum()

    padded = (images, labels, real)
    for batches in (padded, [tuple(leaf[i] for leaf in padded) for i in range(3)]):
        got = flatness.hessian_vector_product(
            loss, NET.params, NET.params, batches, batch_size=lambda batch: batch[2].sum()
        )
        close(got, WHOLE)


def test_a_batch_of_padding_alone_weighs_nothing() -> None:
    def loss(params: Any, batch: Any) -> Any:
        return jnp.sum(batch["real"] * (params * batch["x"]) ** 2) / jnp.sum(batch["real"])

    batches = {"x": jnp.full((2, 4), 3.0), "real": jnp.array([[1, 1, 1, 0], [0, 0, 0, 0]])}
    for data in (batches, [jax.tree.map(lambda leaf, i=i: leaf[i], batches) for i in range(2)]):
        got = flatness.hessian_vector_product(
            loss, jnp.array(1.0), jnp.array(1.0), data, batch_size=lambda batch: batch["real"].sum()
        )
        assert got == 18


def test_a_key_in_the_batch_is_not_its_size() -> None:
    """Nine ones and a ten: the mean of x² is 10.9."""
    batches = [
        {"dropout_key": jax.random.key(0), "x": jnp.ones(9)},
        {"dropout_key": jax.random.key(1), "x": jnp.array([10.0])},
    ]
    got = flatness.hessian_vector_product(
        lambda params, batch: jnp.mean((params * batch["x"]) ** 2),
        *(jnp.array(1.0), jnp.array(1.0), batches),
    )
    np.testing.assert_allclose(got, 2 * 10.9, rtol=1e-6)


ALL = {
    "exact_spectrum": lambda p, b: flatness.exact_spectrum(LOSS, p, b),
    "top_eigenvalues": lambda p, b: flatness.top_eigenvalues(LOSS, p, b, 2),
    "hessian_trace": lambda p, b: flatness.hessian_trace(LOSS, p, b, num_probes=6),
    "hutchinson": lambda p, b: flatness.hessian_trace(
        LOSS, p, b, num_probes=3, method="hutchinson"
    ),
    "spectral_density": lambda p, b: flatness.spectral_density(
        LOSS, p, b, num_probes=2, num_steps=5
    ).density(jnp.linspace(-0.1, 0.3, 5), 0.1),
    "local_energy": lambda p, b: flatness.local_energy(LOSS, p, b, 0.1, num_samples=3),
    "local_entropy": lambda p, b: flatness.local_entropy(LOSS, p, b, 3.0, num_steps=4),
    "sharpness": lambda p, b: flatness.sharpness(LOSS, p, b, 0.1),
}


@pytest.mark.parametrize("name", ALL)
def test_ragged_batches_agree_with_stacked_ones_under_jit(name: str) -> None:
    function = ALL[name]
    expected = jax.jit(function)(NET.params, NET.batches)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        function(NET.params, NET.ragged),
        expected,
    )


def test_memory_does_not_grow_with_the_batches() -> None:
    def temporary(count: int) -> int:
        batches = jax.tree.map(
            lambda leaf: jnp.tile(leaf, (count, *[1] * (leaf.ndim - 1))), NET.batches
        )
        compiled = jax.jit(ALL["hessian_trace"]).lower(NET.params, batches).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(1), temporary(50)
    assert many < few + 4 * 8 * 50  # but for an array of one number per batch


def test_iterators_are_refused_where_they_would_be_spent() -> None:
    close(product(iter(NET.ragged)), WHOLE)
    close(product(batch for batch in NET.ragged), WHOLE)
    for name in ALL.keys() - {"hessian_vector_product"}:
        with pytest.raises(
            ValueError, match=r"`batches` must be .* an iterator, generator, .* list"
        ):
            ALL[name](NET.params, (batch for batch in NET.ragged))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: product([]), "`batches` must hold at least one batch"),
        (lambda: product(None), r"`batches` must be arrays .* \[None\] for a loss"),
        (lambda: product(3), r"`batches` must be arrays|`batches` must be stacked"),
        (lambda: product(tuple(NET.ragged)), r"`batches` must be arrays with one leading axis"),
        (lambda: product(jnp.zeros((0, 3))), r"`batches` must be arrays with one leading axis"),
        (
            lambda: flatness.hessian_vector_product(LOSS, NET.params, jnp.ones(3), NET.batches),
            "`vector` must be a tree with the structure",
        ),
        (lambda: flatness.hessian_trace(LOSS, {}, NET.batches), "`params` must hold at least one"),
        (
            lambda: flatness.hessian_trace(LOSS, {"a": jnp.arange(3)}, NET.batches),
            r"`params\['a'\]` must have a real floating dtype; got int32",
        ),
        (
            lambda: flatness.top_eigenvalues(LOSS, NET.params, NET.batches, 41),
            r"`k` must be a static integer in \[1, 40\]; got 41",
        ),
        (
            lambda: flatness.top_eigenvalues(LOSS, NET.params, NET.batches, 2.0),
            r"`k` must be a static integer .* got 2\.0",
        ),
        (
            lambda: flatness.top_eigenvalues(LOSS, NET.params, NET.batches, True),
            r"`k` must be a static integer .* got True",
        ),
        (
            lambda: flatness.hessian_trace(LOSS, NET.params, NET.batches, num_probes=0),
            r"`num_probes` must be an integer >= 1; got 0\. Error bars",
        ),
        (
            lambda: flatness.hessian_trace(LOSS, NET.params, NET.batches, method="hutch++"),
            r"`method` must be 'xtrace' or 'hutchinson'; got 'hutch\+\+'",
        ),
        (
            lambda: flatness.local_energy(LOSS, NET.params, NET.batches, -0.1),
            r"`strength` must be .* in \[0, inf\); got -0\.1",
        ),
        (
            lambda: flatness.local_energy(LOSS, NET.params, NET.batches, "much"),
            r"`strength` must be .* in \[0, inf\); got 'much'",
        ),
        (
            lambda: flatness.local_entropy(LOSS, NET.params, NET.batches, 0.0),
            r"`scope` must be .* in \(0, inf\); got 0\.0",
        ),
        (
            lambda: flatness.sharpness(LOSS, NET.params, NET.batches, float("nan")),
            r"`radius` must be .* got nan",
        ),
        (
            lambda: flatness.sharpness(LOSS, NET.params, NET.batches, jnp.ones(3)),
            r"`radius` must be a number in \(0, inf\); got Array",
        ),
        (
            lambda: flatness.local_entropy(
                LOSS, NET.params, NET.batches, 1.0, inverse_temperature=jnp.ones(2)
            ),
            r"`inverse_temperature` must be a number in \(0, inf\); got Array",
        ),
        (
            lambda: jax.jit(lambda r: flatness.sharpness(LOSS, NET.params, NET.batches, r))(
                jnp.ones(2)
            ),
            r"`radius` must be a number in \(0, inf\); got",
        ),
        (
            lambda: flatness.hessian_trace(LOSS, NET.params, NET.batches, key="seed"),
            "`key` must be an integer",
        ),
        (
            lambda: jax.jit(lambda p: flatness.top_eigenvalues(LOSS, p, NET.ragged, 2))(NET.params),
            r"`batches` must be stacked under jax\.jit",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_number_may_be_traced_and_a_parameter_a_number() -> None:
    def energy(strength: Any) -> Any:
        loss = lambda params, batch: (params["x"] - batch[0]) ** 2  # noqa: E731
        return flatness.local_energy(loss, {"x": 3.0}, jnp.ones((1, 1)), strength).value

    np.testing.assert_allclose(jax.jit(energy)(0.1), energy(0.1), rtol=1e-5)
    assert energy(0.0) == 0.0 < energy(0.1)


def test_keys_of_every_kind_and_reproducible() -> None:
    def trace(key: Any) -> Any:
        return flatness.hessian_trace(LOSS, NET.params, NET.batches, num_probes=2, key=key).value

    first = trace(3)
    assert all(trace(key) == first for key in (jax.random.key(3), jax.random.PRNGKey(3)))
    assert trace(4) != first


def test_half_precision_parameters() -> None:
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), NET.params)
    top = flatness.top_eigenvalues(LOSS, half, NET.batches, 1)
    assert top.dtype == jnp.float32
    np.testing.assert_allclose(top, ALL["top_eigenvalues"](NET.params, NET.batches)[:1], rtol=0.1)
    same = flatness.hessian_vector_product(LOSS, half, half, NET.batches)
    assert {leaf.dtype for leaf in jax.tree.leaves(same)} == {jnp.dtype(jnp.bfloat16)}


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_matplotlib_is_imported_for_plots_only() -> None:
    run_python(
        "import sys, entropy_sgd_jax\n"
        "assert 'entropy_sgd_jax.flatness' not in sys.modules\n"
        "from entropy_sgd_jax import flatness\n"
        "assert not {'matplotlib', 'rich'} & set(sys.modules)\n"
        "flatness.plots.spectrum\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("matplotlib", "flatness.plots"),
        ("rich", "flatness.exact_spectrum(lambda x, _: x @ x, jnp.ones(2), [0], progress=True)"),
    ],
)
def test_a_missing_extra_is_named(package: str, use: str) -> None:
    run_python(
        "import sys, jax.numpy as jnp\n"
        "from entropy_sgd_jax import flatness\n"
        f"sys.modules[{package!r}] = None\n"  # as if it were not installed
        "try:\n"
        f"    {use}\n"
        "except ModuleNotFoundError as error:\n"
        f"    assert '{package}' in str(error) and '[plots]' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('no error')\n"
    )


SHARDED = """
import os
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np
# Programs that wait for each other's devices starve where cores are fewer than devices.
jax.config.update("jax_cpu_enable_async_dispatch", False)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from entropy_sgd_jax import flatness

mesh = Mesh(np.array(jax.devices()), ("d",))
rng = np.random.default_rng(0)
params = {"a": rng.normal(size=(6, 512)), "b": rng.normal(size=(512, 2)) / 20}
params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
batches = jnp.asarray(rng.normal(size=(4, 16, 6)), jnp.float32)
split = {"a": NamedSharding(mesh, P(None, "d")), "b": NamedSharding(mesh, P("d"))}
sharded = jax.device_put(params, split)

def loss(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["a"]) @ params["b"]) ** 2)

for data in (batches, list(batches)):
    product = flatness.hessian_vector_product(loss, sharded, sharded, data)
    assert jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), product, split) == {
        "a": True, "b": True}

@jax.jit
def trace(params, batches):
    return flatness.hessian_trace(loss, params, batches, num_probes=16)

whole, parts = (trace.lower(p, batches).compile() for p in (params, sharded))
sizes = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
assert sizes[1] < 0.5 * sizes[0] and "all-gather(" not in parts.as_text(), sizes
np.testing.assert_allclose(parts(sharded, batches), whole(params, batches), rtol=1e-3)

@jax.jit
def top(params, batches):
    return flatness.top_eigenvalues(loss, params, batches, 3, return_eigenvectors=True)

on_one, on_all = (top.lower(where, batches).compile() for where in (params, sharded))
values, vectors = on_all(sharded, batches)
np.testing.assert_allclose(values, on_one(params, batches)[0], rtol=1e-4)
assert vectors["a"].addressable_shards[0].data.shape == (3, 6, 128)
memory = [program.memory_analysis().temp_size_in_bytes for program in (on_one, on_all)]
assert memory[1] < memory[0] / 2, memory  # the basis is split too

rules, expected = (
    flatness.spectral_density(loss, where, list(batches), num_probes=1, num_steps=4)
    for where in (sharded, params)
)
np.testing.assert_allclose(rules.nodes[0, -1], expected.nodes[0, -1], rtol=1e-3)
"""


def test_sharded_parameters_stay_sharded() -> None:
    run_python(SHARDED)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_weight_that_is_no_number_is_refused(stacked: bool) -> None:
    """A mask itself instead of its sum: of a list it would weight what happens to fit."""
    mask = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    batches = {"mask": mask} if stacked else [{"mask": row} for row in mask]
    with pytest.raises(ValueError, match=r"`batch_size\(batch\)` must be one number.*\(2,\)"):
        flatness.hessian_trace(
            lambda params, batch: jnp.sum(params**2) * batch["mask"].sum(), jnp.ones(2), batches,
            batch_size=lambda batch: batch["mask"],
        )  # fmt: skip
