"""Checkpoints: bit for bit through kills, broken files and other numbers of devices."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from entropy_sgd_jax import entropic
from experiments.checkpoints import CheckpointError, Checkpoints, DiskError, manager
from experiments.io.errors import InputError

PROGRAM = pathlib.Path(__file__).with_name("killed_run.py")
STARTED: list[subprocess.Popen[str]] = []
CONFIGURATION = {"inner_steps": 5, "widths": (8, 4)}


def trees_are_identical(a: Any, b: Any) -> bool:
    def bits(leaf: jax.Array) -> bytes:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    same_types = jax.tree.map(jax.typeof, a) == jax.tree.map(jax.typeof, b)
    return same_types and [*map(bits, jax.tree.leaves(a))] == [*map(bits, jax.tree.leaves(b))]


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


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
    def run_out(path: pathlib.Path, text: str, **_: Any) -> None:
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


def test_exchanged_steps_do_not_come_back_in_silence(folder: pathlib.Path, tree: Any) -> None:
    (folder / "1").rename(folder / "3")
    (folder / "2").rename(folder / "1")
    (folder / "3").rename(folder / "2")
    with (
        Checkpoints(folder, CONFIGURATION) as checkpoints,
        pytest.warns(UserWarning, match=r"checkpoint 2 in .*\(.*it holds step 1\)"),
        pytest.warns(UserWarning, match=r"checkpoint 1 in .*\(.*it holds step 2\)"),
    ):
        assert checkpoints.restore(tree) is None


def sum_of_bytes(leaf: np.ndarray) -> int:
    """Each byte times an odd number of its own: the first axis runs fastest, the bytes slowest."""
    octets = leaf.reshape(*leaf.shape, 1).view(np.uint8).ravel(order="F").astype(np.uint64)
    return int((octets * (2 * np.arange(octets.size, dtype=np.uint64) + 1)).sum() % 2**32)


@pytest.mark.parametrize("whole", [True, False])
def test_a_checkpoint_without_its_step_is_read_with_one_warning(
    tmp_path: pathlib.Path, whole: bool
) -> None:
    """As they were written before the step was part of the checksums."""
    leaf = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    sums = np.array([sum_of_bytes(leaf) + (not whole)], np.uint32)
    manager = ocp.CheckpointManager(tmp_path, item_handlers=ocp.StandardCheckpointHandler())
    manager.save(7, args=ocp.args.StandardSave({"['w']": jnp.asarray(leaf), "checksums": sums}))
    manager.close()
    expected = "checkpoint 7 is of an earlier version" if whole else "checkpoint 7 in .* is broken"
    with (
        Checkpoints(tmp_path, CONFIGURATION) as checkpoints,
        pytest.warns(UserWarning, match=expected) as given,
    ):
        found = checkpoints.restore({"w": jnp.zeros((3, 5))})
    assert len(given) == 1
    if whole:
        assert found is not None
        assert found[0] == 7
        np.testing.assert_array_equal(found[1]["w"], leaf)
    else:
        assert found is None


def test_all_leaves_that_hold_numbers_come_back(tmp_path: pathlib.Path) -> None:
    numbers = np.random.default_rng(0)
    tree = {
        "no elements": jnp.zeros((0, 3)),
        "no elements in NumPy": np.zeros(0),
        "complex": jnp.asarray(numbers.normal(size=(2, 3)) + 1j, jnp.complex64),
        "int4": jnp.arange(-8, 8).astype(jnp.int4),
        "float8": jnp.arange(5.0).astype(jnp.float8_e4m3fn),
        "of one byte": jnp.arange(7, dtype=jnp.uint8).reshape(7, 1),
        "NumPy, 64 bits": numbers.normal(size=5),
        "NumPy, large ints": np.array([2**62 + 1, -3]),
        "NumPy, complex": numbers.normal(size=3) + 1j,
        "NumPy, read backwards": np.arange(5.0)[::-1],
        "NumPy, one number": np.float32(0.1),
        "NumPy, no axes": np.array(0.1),
        "int": 3,
        "float": 0.1,
        "bool": True,
    }
    like = jax.tree.map(lambda leaf: leaf * 0, tree) | {
        "bool": False,
        "NumPy, no axes": np.zeros(()),
    }
    with Checkpoints(tmp_path, CONFIGURATION) as checkpoints:
        checkpoints.save(1, tree)
        found = checkpoints.restore(like)
    assert found is not None
    for name, leaf in tree.items():
        assert type(found[1][name]) is type(leaf), name
        assert np.asarray(found[1][name]).dtype == np.asarray(leaf).dtype, name
        assert np.asarray(found[1][name]).tobytes() == np.asarray(leaf).tobytes(), name


def test_what_is_changed_after_save_is_written_as_it_was(tmp_path: pathlib.Path) -> None:
    leaf = np.zeros(1_000_000)
    with Checkpoints(tmp_path, CONFIGURATION) as checkpoints:
        checkpoints.save(1, leaf)
        leaf += 1
        found = checkpoints.restore(leaf)
    assert found is not None
    assert not found[1].any()


def listing(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_cannot_be_saved_is_named_and_leaves_nothing(folder: pathlib.Path, tree: Any) -> None:
    donated = jnp.ones(3)
    donated.delete()
    before = listing(folder)
    with Checkpoints(folder, CONFIGURATION) as checkpoints:
        for leaf, what in [
            (print, "builtin_function_or_method"),
            ("text", "str"),
            (np.array([None]), "object"),
            (jnp.zeros(3, jnp.uint4), "uint4"),
            (np.zeros(3, np.longdouble), "float128|longdouble|float64"),
            (2**80, "int"),
            (jax.ShapeDtypeStruct((3,), jnp.float32), "no values"),
            (donated, "donated or deleted"),
        ]:
            if what.endswith("float64") and np.longdouble == np.float64:
                continue
            with pytest.raises(CheckpointError, match=rf"the leaf \['layer'\]\[1\] .*({what})"):
                checkpoints.save(3, {"layer": [jnp.ones(2), leaf]})
        for step in (-1, 1.5, "3"):
            with pytest.raises(CheckpointError, match="`step` must be an int of at least 0; got"):
                checkpoints.save(step, tree)  # type: ignore[arg-type]
        assert listing(folder) == before
        checkpoints.save(3, tree)
    assert (folder / "3").is_dir()


def test_the_same_step_twice_is_refused_and_saving_goes_on(folder: pathlib.Path, tree: Any) -> None:
    with Checkpoints(folder, CONFIGURATION) as checkpoints:
        for step in (2, 3):
            if step == 3:
                checkpoints.save(3, tree)
            with pytest.raises(CheckpointError, match=rf"checkpoint {step} is in .* already\. .*"):
                checkpoints.save(step, tree)
        checkpoints.save(4, tree)
    assert {"3", "4"} < listing(folder)


@pytest.mark.parametrize(
    "content", [b"", b'{"inner_steps": 5', b"[1]", b"3", b"\xff\xfe{}", b"[" * 100_000, b"NaN"]
)
def test_a_damaged_configuration_is_refused_in_one_line(
    folder: pathlib.Path, content: bytes
) -> None:
    (folder / "configuration.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^\S+ is damaged\. Delete it if [^\n]*$"):
        Checkpoints(folder, CONFIGURATION)
    assert (folder / "configuration.json").read_bytes() == content


def test_what_stands_in_the_place_of_the_configuration_is_named(folder: pathlib.Path) -> None:
    (folder / "configuration.json").unlink()
    (folder / "configuration.json").mkdir()
    with pytest.raises(DiskError, match=r"cannot read \S+configuration.json: Is a directory\. "):
        Checkpoints(folder, CONFIGURATION)


@pytest.mark.parametrize(
    ("configuration", "keep"), [({"a": print}, 3), ({"a": 1}, 0), ({"a": 1}, 1.5), (3, 3)]
)
def test_bad_arguments_make_no_folder(
    tmp_path: pathlib.Path, configuration: Any, keep: Any
) -> None:
    with pytest.raises(CheckpointError, match=r"^`(keep|configuration)` must be .*; got"):
        Checkpoints(tmp_path / "a" / "b", configuration, keep)
    assert not listing(tmp_path)


def test_a_folder_that_cannot_be_written_is_not_left_behind(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(path: pathlib.Path, *_: Any, **__: Any) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    for method in ("write_text", "write_bytes"):
        monkeypatch.setattr(pathlib.Path, method, run_out)
    with pytest.raises(DiskError, match=r"cannot write .* No space left on device"):
        Checkpoints(tmp_path / "a" / "b", CONFIGURATION)
    assert not listing(tmp_path)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights that root has."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """One that everybody can get to."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        shutil.copytree(folder, pathlib.Path(place) / "run")
        yield pathlib.Path(place) / "run"


def test_a_read_only_folder_can_be_read(open_folder: pathlib.Path, tree: Any) -> None:
    for path in [open_folder, *open_folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = listing(open_folder)
    with as_nobody(), Checkpoints(open_folder, CONFIGURATION) as checkpoints:
        found = checkpoints.restore(tree)
        with pytest.raises(DiskError, match=r"cannot write to .*: it is read-only"):
            checkpoints.save(3, tree)
    assert found is not None
    assert found[0] == 2
    assert trees_are_identical(found[1], tree)
    assert listing(open_folder) == before


@pytest.mark.usefixtures("quiet_collection")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_may_not_be_read_is_not_taken_for_broken(open_folder: pathlib.Path, tree: Any) -> None:
    os.chmod(open_folder, 0o777)
    os.chmod(open_folder / "lock", 0o666)
    before = listing(open_folder)
    for path in (open_folder / "2").rglob("*"):
        if path.is_file():
            path.chmod(0)
    with (
        as_nobody(),
        Checkpoints(open_folder, CONFIGURATION) as checkpoints,
        pytest.raises(DiskError, match=r"^cannot read checkpoint 2 in \S+: Permission denied"),
    ):
        checkpoints.restore(tree)
    assert listing(open_folder) == before


@contextlib.contextmanager
def small_disk(place: pathlib.Path) -> Iterator[None]:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def small_files(place: pathlib.Path) -> Iterator[None]:
    """Errors from the system wherever more is written to one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("quiet_collection")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("limited", "what"),
    [(small_disk, "No space left on device"), (small_files, "File too large")],
)
def test_a_full_disk_is_told_in_one_line_and_can_be_mended(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str], limited: Any, what: str
) -> None:
    small, large = (np.random.default_rng(0).normal(size=n) for n in (5_000, 100_000))
    with limited(tmp_path):
        with Checkpoints(tmp_path, CONFIGURATION) as checkpoints:
            checkpoints.save(1, small)
            with pytest.raises(DiskError, match=rf"^cannot write a checkpoint to \S+: {what}\. "):
                checkpoints.save(2, large), checkpoints.close()  # it may take until then
            assert {path.name for path in tmp_path.glob("[12]*")} == {"1"}
        with Checkpoints(tmp_path, CONFIGURATION) as checkpoints:
            checkpoints.save(2, small + 1)
            found = checkpoints.restore(small)
    assert found is not None
    assert found[0] == 2
    np.testing.assert_array_equal(found[1], small + 1)
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_half_written_is_removed_though_a_thread_adds_to_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, calls = shutil.rmtree, []

    def busy(path: pathlib.Path, **options: Any) -> None:
        calls.append(path)
        remove(path, **options)
        if len(calls) < 3:
            path.mkdir()  # by the thread

    monkeypatch.setattr(shutil, "rmtree", busy)
    (tmp_path / "2.tmp").mkdir()
    manager._remove(tmp_path / "2.tmp")
    assert not (tmp_path / "2.tmp").exists()


def test_a_folder_belongs_to_one_run_at_a_time(folder: pathlib.Path, tree: Any) -> None:
    refused = r"^another run is using \S+: wait until it ends, stop it, or give another folder$"
    with Checkpoints(folder, CONFIGURATION):
        for _ in range(2):
            with pytest.raises(CheckpointError, match=refused):
                Checkpoints(folder, CONFIGURATION)
    with Checkpoints(folder, CONFIGURATION) as checkpoints:
        assert checkpoints.restore(tree) is not None


@pytest.mark.usefixtures("quiet_collection")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_of_the_program_is_not_hidden_by_one_of_the_disk(tmp_path: pathlib.Path) -> None:
    def save_and_fail() -> None:
        with Checkpoints(tmp_path, CONFIGURATION) as checkpoints:
            checkpoints.save(1, np.random.default_rng(0).normal(size=100_000))
            raise ZeroDivisionError

    with (
        small_files(tmp_path),
        pytest.warns(UserWarning, match="the last checkpoint is not written: File too large"),
        pytest.raises(ZeroDivisionError),
    ):
        save_and_fail()
    Checkpoints(tmp_path, CONFIGURATION).close()  # and the folder is free again


def run(
    folder: pathlib.Path, devices: int, steps: int, pause: float = 0, processes: int = 1
) -> list[subprocess.Popen[str]]:
    return start(PROGRAM, [str(steps), str(pause)], folder, devices, processes)


def start(
    program: pathlib.Path, arguments: list[str], folder: pathlib.Path, devices: int, processes: int
) -> list[subprocess.Popen[str]]:
    """As many processes, which share these devices."""
    settings = {
        "PYTHONPATH": str(PROGRAM.parents[2]),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices // processes}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    for rank in range(processes):
        place = [address, str(processes), str(rank)] if processes > 1 else []
        STARTED.append(
            subprocess.Popen(
                [sys.executable, program, folder, *arguments, *place],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | settings,
            )
        )
    return STARTED[-processes:]


def finish(processes: list[subprocess.Popen[str]]) -> tuple[int, str, float]:
    """The step from which they went on, the digest of all bits, the sum of parameters."""
    found = set()
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "broken" not in errors
        found |= set(re.findall(r"training (\d+)\n(?:.*\n)*ended (\w+) (\S+)\n", output))
    ((start, digest, total),) = found  # all processes hold the same
    return int(start), digest, float(total)


def newest(folder: pathlib.Path) -> int:
    return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)


def being_written(folder: pathlib.Path) -> bool:
    return any(folder.glob("*.orbax-checkpoint-tmp*"))


def wait_until(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert running.poll() is None, running.communicate()
    assert condition()


def survive(tmp_path: pathlib.Path, kills: int, processes: int = 1) -> None:
    """Kills each run some moments after it has written none to two checkpoints more.

    Every second time in the middle of writing one.
    """
    steps = 20 + 14 * kills
    _, expected, _ = finish(run(tmp_path / "uninterrupted", 4, steps, processes=processes))
    moments = random.Random(0)
    folder = tmp_path / "killed"
    cut = 0
    for kill in range(kills):
        running = run(folder, 4, steps, 0.05, processes)  # so that it cannot finish before
        assert running[0].stdout is not None
        while not (line := running[0].stdout.readline()).startswith("training"):
            assert line, running[0].communicate()
        enough = newest(folder) + 3 * moments.randint(0, 2)
        wait_until(lambda enough=enough: newest(folder) >= enough, running[0])
        if kill % 2 == 0:
            wait_until(lambda: being_written(folder), running[0])
        else:
            time.sleep(moments.uniform(0, 0.2))
        for process in moments.sample(running, processes):
            process.kill()
            time.sleep(moments.choice([0, 0.05]))
        for process in running:
            process.communicate()
            assert process.returncode == -signal.SIGKILL, f"finished after {kill} kills"
        cut += being_written(folder)
    start, digest, _ = finish(run(folder, 4, steps, processes=processes))
    assert 0 < start < steps
    assert digest == expected
    assert cut >= kills // 4, "hardly any was killed while it wrote"


def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path: pathlib.Path) -> None:
    survive(tmp_path, kills=3)


def test_two_killed_processes_end_bit_for_bit_like_uninterrupted_ones(
    tmp_path: pathlib.Path,
) -> None:
    survive(tmp_path, kills=2, processes=2)


def test_what_fails_in_one_process_fails_in_both_and_neither_waits(tmp_path: pathlib.Path) -> None:
    processes = start(PROGRAM.with_name("faulty_process.py"), [], tmp_path, 4, 2)
    first, second = (told(process) for process in processes)
    assert first == second
    assert first["none"] == {"step": 2, "warned": []}
    assert "cannot read checkpoint 2 in" in first["read"]["error"]
    assert "Input/output error" in first["read"]["error"]
    assert (tmp_path / "read" / "2").is_dir()
    assert first["restore"]["step"] == 1
    (warned,) = first["restore"]["warned"]
    assert "it is kept as broken_2" in warned
    assert {"1", "broken_2"} < {path.name for path in (tmp_path / "restore").iterdir()}
    assert "other settings: width 4 there, 5 given" in first["configuration"]["error"]
    assert "Give a folder that all processes share" in first["folder"]["error"]
    assert not (tmp_path / "elsewhere").exists()
    assert "cannot save the leaf ['f']" in first["save"]["error"]
    assert "File too large" in first["write"]["error"]
    assert not being_written(tmp_path / "write")


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {line.pop("name"): line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "processes"), [(25, 1), (12, 2)])
def test_a_run_survives_many_kills(tmp_path: pathlib.Path, kills: int, processes: int) -> None:
    survive(tmp_path, kills, processes)


def test_a_run_goes_on_with_another_number_of_devices(tmp_path: pathlib.Path) -> None:
    _, _, expected = finish(run(tmp_path / "four", 4, 60))
    finish(run(tmp_path / "changed", 4, 31))
    start, _, total = finish(run(tmp_path / "changed", 2, 60))
    assert start == 30
    assert total == pytest.approx(expected, rel=1e-5)
