"""Checkpoints: bit for bit through kills, broken files and other numbers of devices."""

from __future__ import annotations

import errno
import gc
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_sgd_jax import entropic
from experiments.harness.checkpoints import Checkpoints
from experiments.io.errors import InputError

PROGRAM = pathlib.Path(__file__).with_name("killed_run.py")
CONFIGURATION = {"inner_steps": 5, "widths": (8, 4)}


def trees_are_identical(a: Any, b: Any) -> bool:
    def bits(leaf: jax.Array) -> bytes:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    same_types = jax.tree.map(jax.typeof, a) == jax.tree.map(jax.typeof, b)
    return same_types and [*map(bits, jax.tree.leaves(a))] == [*map(bits, jax.tree.leaves(b))]


@pytest.fixture(scope="module")
def tree() -> Any:
    """Parameters and state of every kind of leaf."""
    params = {"w": jnp.linspace(-1, 1, 999), "b": [jnp.float32(0.1), jnp.ones(3, jnp.bfloat16)]}
    tx = entropic(
        optax.adamw(1e-3),
        inner_transform=optax.add_noise(0.1, 0.5, key=1),
        streaming=True,
        diagnostics=True,
        key=jax.random.key(3, impl="rbg"),
    )
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    return optax.apply_updates(params, updates), state, {"flags": jnp.array([True, False])}


@pytest.fixture
def folder(tmp_path: pathlib.Path, tree: Any) -> pathlib.Path:
    """Of two checkpoints, 1 and 2; only the second is `tree`."""
    other = jax.tree.map(
        lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 0 * leaf, tree[:2]
    )
    with Checkpoints(tmp_path / "run", CONFIGURATION) as checkpoints:
        checkpoints.save(1, (*other, tree[2]))
        checkpoints.save(2, tree)
    return tmp_path / "run"


def test_every_kind_of_leaf_comes_back_bit_for_bit(folder: pathlib.Path, tree: Any) -> None:
    with Checkpoints(folder, CONFIGURATION) as checkpoints:
        found = checkpoints.restore(tree)
    assert found is not None
    step, restored = found
    assert step == 2
    assert trees_are_identical(restored, tree)


def test_an_empty_folder_has_nothing_to_restore(tmp_path: pathlib.Path, tree: Any) -> None:
    with Checkpoints(tmp_path / "new", CONFIGURATION) as checkpoints:
        assert checkpoints.restore(tree) is None


def test_the_last_few_are_kept(tmp_path: pathlib.Path, tree: Any) -> None:
    with Checkpoints(tmp_path, CONFIGURATION, keep=2) as checkpoints:
        for step in range(5):
            checkpoints.save(step, tree)
    assert {path.name for path in tmp_path.iterdir() if path.name.isdecimal()} == {"3", "4"}


def flip_a_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut_in_half(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def quiet_collection() -> Iterator[None]:
    """What Orbax had under way when a file turned out to be broken complains when collected."""
    yield
    time.sleep(0.2)
    gc.collect()


@pytest.mark.usefixtures("quiet_collection")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("spoil", [flip_a_bit, cut_in_half, pathlib.Path.unlink])
def test_whatever_file_is_spoilt_no_wrong_bit_comes_back(
    folder: pathlib.Path, tree: Any, tmp_path: pathlib.Path, spoil: Callable[[pathlib.Path], None]
) -> None:
    """Either the file does not matter, or a warning is given and the checkpoint before is used."""
    skipped = 0
    files = [path.relative_to(folder) for path in (folder / "2").rglob("*") if path.is_file()]
    for number, file in enumerate(files):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        spoil(copy / file)
        with (
            warnings.catch_warnings(record=True) as given,
            Checkpoints(copy, CONFIGURATION) as checkpoints,
        ):
            warnings.simplefilter("always")
            found = checkpoints.restore(tree)
        assert found is not None
        warned = any("checkpoint 2 in" in str(warning.message) for warning in given)
        assert found[0] == (1 if warned else 2)
        assert trees_are_identical(found[1], tree) == (not warned), file
        skipped += warned
    assert skipped >= 4


def test_a_full_disk_at_the_start_leaves_nothing_in_the_way(
    tmp_path: pathlib.Path, tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(path: pathlib.Path, text: str) -> None:
        path.write_bytes(text.encode()[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "write_text", run_out)
        with pytest.raises(OSError, match="No space left"):
            Checkpoints(tmp_path, CONFIGURATION)
    with Checkpoints(tmp_path, CONFIGURATION) as checkpoints:
        checkpoints.save(1, tree)
    with pytest.raises(InputError, match="inner_steps 5 there, 6 given"):
        Checkpoints(tmp_path, {**CONFIGURATION, "inner_steps": 6})


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make the folder"):
        Checkpoints(tmp_path / "file", CONFIGURATION)


@pytest.mark.usefixtures("quiet_collection")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_checkpoint_is_kept_aside_and_the_run_goes_on(
    folder: pathlib.Path, tree: Any
) -> None:
    largest = max((folder / "2").rglob("*"), key=lambda path: path.stat().st_size)
    flip_a_bit(largest)
    with Checkpoints(folder, CONFIGURATION) as checkpoints:
        with pytest.warns(UserWarning, match="checkpoint 2 in .* is broken .* kept as broken_2"):
            found = checkpoints.restore(tree)
        assert found is not None
        assert found[0] == 1
        checkpoints.save(2, tree)
    assert (folder / "broken_2").is_dir()
    flip_a_bit(max((folder / "2").rglob("*"), key=lambda path: path.stat().st_size))
    with Checkpoints(folder, CONFIGURATION) as checkpoints:
        with pytest.warns(UserWarning, match="kept as broken_2_2"):
            checkpoints.restore(tree)
        checkpoints.save(2, tree)
    with Checkpoints(folder, CONFIGURATION) as checkpoints:
        found = checkpoints.restore(tree)
    assert found is not None
    assert found[0] == 2
    assert trees_are_identical(found[1], tree)


def test_other_settings_are_named(folder: pathlib.Path) -> None:
    expected = r"other settings: inner_steps 5 there, 6 given\. .* another folder"
    with pytest.raises(InputError, match=expected):
        Checkpoints(folder, CONFIGURATION | {"inner_steps": 6})


def test_another_tree_is_named(folder: pathlib.Path, tree: Any) -> None:
    params, state, flags = tree
    params = params | {"w": jnp.zeros((9, 111))}
    with (
        Checkpoints(folder, CONFIGURATION) as checkpoints,
        pytest.raises(InputError, match=r"\['w'\] is float32\[999\] there, float32\[9, 111\] here"),
    ):
        checkpoints.restore((params, state, flags))
    assert (folder / "2").is_dir()


def run(folder: pathlib.Path, devices: int, steps: int, pause: float = 0) -> subprocess.Popen[str]:
    settings = {
        "PYTHONPATH": str(PROGRAM.parents[2]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, PROGRAM, folder, str(steps), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, float]:
    """The step from which it went on, the digest of all bits, the sum of parameters."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "broken" not in errors
    first, last = output.splitlines()
    digest, total = last.split()
    return int(first.split()[1]), digest, float(total)


def newest(folder: pathlib.Path) -> int:
    return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)


def survive(tmp_path: pathlib.Path, kills: int) -> None:
    """Kills each run some moments after it has written none to two checkpoints more."""
    steps = 20 + 14 * kills
    _, expected, _ = finish(run(tmp_path / "uninterrupted", 4, steps))
    moments = random.Random(0)
    folder = tmp_path / "killed"
    for kill in range(kills):
        process = run(folder, 4, steps, pause=0.05)  # so that it cannot finish before
        assert process.stdout is not None
        assert process.stdout.readline().startswith("training"), process.communicate()
        enough = newest(folder) + 3 * moments.randint(0, 2)
        while newest(folder) < enough and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        assert process.poll() is None, f"finished after {kill} kills"
        process.kill()
        process.communicate()
    start, digest, _ = finish(run(folder, 4, steps))
    assert 0 < start < steps
    assert digest == expected


def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path: pathlib.Path) -> None:
    survive(tmp_path, kills=3)


@pytest.mark.slow
def test_a_run_survives_twenty_five_kills(tmp_path: pathlib.Path) -> None:
    survive(tmp_path, kills=25)


def test_a_run_goes_on_with_another_number_of_devices(tmp_path: pathlib.Path) -> None:
    _, _, expected = finish(run(tmp_path / "four", 4, 60))
    finish(run(tmp_path / "changed", 4, 31))
    start, _, total = finish(run(tmp_path / "changed", 2, 60))
    assert start == 30
    assert total == pytest.approx(expected, rel=1e-5)
