"""train.py from the command line to its files, on small made-up data in the real formats."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import arguments as command_line
from experiments import checkpoints, train, workloads
from experiments.data.cifar10 import RECORD
from experiments.data.images import MNIST_FILES
from experiments.harness import contestants, evaluation, logs
from experiments.harness.settings import (
    BATCH_NORM,
    DROPOUT,
    INNER,
    NETWORK,
    PARTS,
    SEQUENCES,
    Settings,
    override,
)
from experiments.io.errors import InputError, one_line_errors
from experiments.studies import solutions
from tests.experiments.test_images import idx_bytes

ROOT = pathlib.Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)
SMALL = {
    "digits": "--width 8 --examples 128 --batch-size 16",
    "mnistfc": "--width 8 --batch-size 8",
    "lenet": "--width 2 --batch-size 8",
    "allcnn": "--width 4 --batch-size 8",
    "ptb": "--width 8 --length 5 --batch-size 8",
    "ptb_small": "--width 8 --length 5 --batch-size 8",
    "char_lstm": "--width 8 --length 5 --batch-size 8",
    "char_gpt": "--width 8 --layers 1 --length 8 --batch-size 8",
}
SHORT = "--effective-epochs 10 --measurements 3"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with every data set in small: 40 images, a few hundred words and characters."""
    folder = tmp_path_factory.mktemp("data")
    labels = RANDOM.integers(0, 10, 40).astype(np.uint8)
    images = (RANDOM.integers(0, 60, (40, 28, 28)) + 19 * labels[:, None, None]).astype(np.uint8)
    for field, name in MNIST_FILES.items():
        array = images if field.endswith("inputs") else labels
        (folder / name).write_bytes(idx_bytes(array))
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"):
        (folder / f"{name}.bin").write_bytes(cifar_records(8))
    (folder / "test_batch.bin").write_bytes(cifar_records(8))
    line = "the cat sat on the mat and the dog ran after the cat\n"
    (folder / "ptb.train.txt").write_text(20 * line)
    (folder / "ptb.valid.txt").write_text(10 * line)
    (folder / "ptb.test.txt").write_text(12 * line)
    for name in ("warpeace_input.txt", "tinyshakespeare_input.txt"):
        (folder / name).write_text(100 * line)
    return folder


def cifar_records(count: int) -> bytes:
    records = RANDOM.integers(0, 256, (count, RECORD)).astype(np.uint8)
    records[:, 0] %= 10
    return records.tobytes()


def run(workload: str, optimizer: str, data: pathlib.Path, out: pathlib.Path, *more: str) -> list:
    """Trains, and returns the lines of the log."""
    arguments = [workload, "--optimizer", optimizer, "--out", str(out), *SMALL[workload].split()]
    arguments += ["--data-dir", str(data)] if workload != "digits" else []
    arguments += ["--inner-steps", "4"] if optimizer in INNER.owners else []
    train.main([*arguments, *SHORT.split(), *more])
    return [json.loads(line) for line in (out / logs.FILE).read_text().splitlines()]


def check(lines: list, out: pathlib.Path, seeds: int = 1) -> None:
    head, *points = lines
    assert head["versions"]["jax"]
    assert points[0]["gradient_evaluations"] == 0
    assert points[-1]["gradient_evaluations"] == head["configuration"]["gradient_evaluations"]
    for point in points:
        assert len(point["train_loss"]) == seeds
        assert None not in point["test_loss"] + point["test_error"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").iterdir())


# A network compiles in seconds, so that by default each network and each optimizer runs once.
USUAL = [(name, "entropy_sgd") for name in workloads.NAMES if name != "digits"]
USUAL += [("digits", name) for name in contestants.RECIPES]
PAIRS = [(name, optimizer) for name in workloads.NAMES for optimizer in contestants.RECIPES]
REST = [pair for pair in PAIRS if pair not in USUAL]


@pytest.mark.parametrize(("workload", "optimizer"), USUAL)
def test_trains_from_the_files_to_the_figure(workload, optimizer, data, tmp_path):
    check(run(workload, optimizer, data, tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "optimizer"), REST)
def test_every_pair_trains(workload, optimizer, data, tmp_path):
    check(run(workload, optimizer, data, tmp_path), tmp_path)


def test_text_is_judged_by_both_parts_at_once(data, tmp_path):
    (tmp_path / "a.txt").write_bytes(RANDOM.integers(97, 123, 4_000).astype(np.uint8).tobytes())
    flags = ["--text", str(tmp_path / "a.txt"), "--effective-epochs", "2"]
    both = run("char_lstm", "adam", data, tmp_path / "both", *flags)
    alone = run("char_lstm", "adam", data, tmp_path / "alone", *flags, "--validation")
    for one, other in zip(both[1:], alone[1:], strict=True):
        assert one["validation_loss"] == other["validation_loss"]
        assert one["test_loss"] != one["validation_loss"]
        assert "test_loss" not in other
    logged, from_alone = (logs.read(tmp_path / name)[1] for name in ("both", "alone"))
    assert logged[-1].validation_loss == both[-1]["validation_loss"] == from_alone[-1].test_loss
    assert from_alone[-1].validation_loss is None


def test_all_optimizers_may_spend_the_same_number_of_gradients(data):
    counts = {}
    for name in contestants.RECIPES:
        steps = ["--inner-steps", "20"] if name in INNER.owners else []
        run = train.prepare(train.parse_arguments(["digits", "--optimizer", name, *steps]))
        counts[name] = run.budget.gradient_evaluations
        assert run.budget.batches * run.budget.gradients_per_batch == run.budget.inner_steps
    # 100 epochs of 20 batches; three replicas of 20 steps make rounds of 60.
    assert counts.pop("parle") == 1980
    assert set(counts.values()) == {2000}


def test_training_lowers_the_loss(data, tmp_path):
    lines = run("mnistfc", "entropy_sgd", data, tmp_path, "--learning-rate", "1", "--seeds", "2")
    check(lines, tmp_path, seeds=2)
    assert np.mean(lines[-1]["train_loss"]) < 0.9 * np.mean(lines[1]["train_loss"])


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    "optimizer",
    [
        "entropy_sgd",
        pytest.param("sam", marks=pytest.mark.slow),
        pytest.param("parle", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    optimizer, data, tmp_path, monkeypatch, capsys
):
    more = ("--seeds", "2", "--dropout", "0.2")
    whole = run("mnistfc", optimizer, data, tmp_path / "whole", *more)
    assert f"Starts from the beginning, in {tmp_path / 'whole'}\n" in capsys.readouterr().out

    def die(self, step, tree):
        save(self, step, tree)
        raise Killed

    save = checkpoints.Checkpoints.save
    monkeypatch.setattr(checkpoints.Checkpoints, "save", die)
    with pytest.raises(Killed):
        run("mnistfc", optimizer, data, tmp_path / "parts", *more)
    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    # As if it had died after measuring and before saving: this line must not come twice.
    log = tmp_path / "parts" / logs.FILE
    log.write_text(log.read_text() + log.read_text().splitlines(keepends=True)[-1][:-20])
    capsys.readouterr()
    monkeypatch.setattr(logs, "versions", lambda: {"jax": "new"})
    parts = run("mnistfc", optimizer, data, tmp_path / "parts", *more)
    place, total = tmp_path / "parts" / "checkpoints", parts[-1]["gradient_evaluations"]
    done = f"{parts[2]['gradient_evaluations']} of {total} gradient evaluations"
    assert f"Goes on from {place / '1'}, after {done}\n" in capsys.readouterr().out
    assert len(whole) == len(parts) > 3
    for name in ("gradient_evaluations", "train_loss", "test_loss", "test_error"):
        assert [line[name] for line in whole[1:]] == [line[name] for line in parts[1:]]
    assert parts[0]["configuration"] == whole[0]["configuration"]
    resumed = {"gradient_evaluations": parts[2]["gradient_evaluations"], "versions": {"jax": "new"}}
    assert parts[0] == whole[0] | {"resumed": [resumed]}
    # A third time there is nothing left to do.
    assert run("mnistfc", optimizer, data, tmp_path / "parts", *more) == parts


def test_other_settings_do_not_continue_a_training(data, tmp_path):
    run("digits", "sgd", data, tmp_path)
    with pytest.raises(InputError, match="learning_rate"):
        run("digits", "sgd", data, tmp_path, "--learning-rate", "0.5")


def test_a_log_of_other_settings_is_not_overwritten(data, tmp_path):
    lines = run("digits", "sgd", data, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")  # as run.py does where a training is over
    with pytest.raises(InputError, match=r"of other settings: .*optimizer 'sgd' there, 'adam'"):
        run("digits", "adam", data, tmp_path)
    assert json.loads((tmp_path / logs.FILE).read_text().splitlines()[-1]) == lines[-1]
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_log_outlives_its_checkpoints(data, tmp_path, capsys):
    run("digits", "sgd", data, tmp_path)
    before = (tmp_path / logs.FILE).read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    run("digits", "sgd", data, tmp_path)
    assert (tmp_path / logs.FILE).read_bytes() == before
    assert (
        "It had ended, and its checkpoints are gone: shown from its log" in capsys.readouterr().out
    )


def test_what_was_measured_before_a_new_start_is_kept(data, tmp_path, capsys):
    lines = run("digits", "sgd", data, tmp_path)
    cut = "".join((tmp_path / logs.FILE).read_text().splitlines(keepends=True)[:-1])
    for number in (1, 2):
        (tmp_path / logs.FILE).write_text(cut)
        shutil.rmtree(tmp_path / "checkpoints")
        assert len(run("digits", "sgd", data, tmp_path)) == len(lines)
        assert (tmp_path / f"metrics-{number}.jsonl").read_text() == cut
        assert f"is kept in metrics-{number}.jsonl\n" in capsys.readouterr().out


def test_a_log_that_lacks_what_belongs_to_the_checkpoint_is_refused(data, tmp_path):
    run("digits", "sgd", data, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2")  # the last: it goes on from the first
    head, *lines = (tmp_path / logs.FILE).read_text().splitlines(keepends=True)
    for kept in ([], lines[:1], lines[1:]):
        (tmp_path / logs.FILE).write_text(head + "".join(kept))
        with pytest.raises(InputError, match="lacks measurements from before the checkpoint"):
            run("digits", "sgd", data, tmp_path)
        assert (tmp_path / logs.FILE).read_text() == head + "".join(kept)


@pytest.mark.parametrize("content", [b"[1]\n", b"\xff\n", b'{"a": 1}\n', b"3\n{}\n"])
def test_another_file_in_the_place_of_the_log_is_kept(content, data, tmp_path):
    (tmp_path / logs.FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"is no log of train\.py"):
        run("digits", "sgd", data, tmp_path)
    assert (tmp_path / logs.FILE).read_bytes() == content


def test_seeds_one_by_one_train_as_together(data, tmp_path):
    ends = [
        run("mnistfc", "entropy_sgd", data, tmp_path / flag, "--seeds", "2", flag)[-1]
        for flag in ("--one-by-one", "--no-one-by-one")
    ]
    np.testing.assert_allclose(ends[0]["test_loss"], ends[1]["test_loss"], rtol=1e-4)


@pytest.mark.parametrize(
    ("workload", "hidden"),
    [("mnistfc", "t10k-images-idx3-ubyte"), ("allcnn", "test_batch.bin"), ("ptb", "ptb.test.txt")],
)
def test_with_validation_the_test_set_is_not_read(workload, hidden, data, tmp_path):
    (tmp_path / "data").mkdir()
    for path in data.iterdir():
        if path.name != hidden:
            (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    options = [workload, "--data-dir", str(tmp_path / "data")]
    count = "120" if workload == "ptb" else "8"
    dataset = train.prepare(
        train.parse_arguments([*options, *SMALL[workload].split(), "--validation", count])
    ).dataset
    if workload != "ptb":
        assert len(dataset.train_labels) == 32
        assert len(dataset.test_labels) == 8
    with pytest.raises(InputError, match=hidden.split(".")[0]):
        train.prepare(train.parse_arguments([*options, *SMALL[workload].split()]))


def test_the_log_of_a_tuning_run_says_validation(data, tmp_path):
    *_, end = run("digits", "sgd", data, tmp_path, "--validation", "64")
    assert "validation_error" in end
    assert "test_error" not in end


def test_the_last_seed_that_there_is():
    last = ["digits", "--first-seed", str(2**31 - 1)]
    options = train.parse_arguments([*last, "--effective-epochs", "10", "--measurements", "1"])
    run = train.prepare(options)
    *_, measured = train.training.train(
        run.contestant, run.model, run.dataset, run.budget, 1, first_seed=options.first_seed
    )
    assert np.isfinite(measured.train_loss).all()


def test_label_noise_and_fewer_examples(data):
    arguments = ["mnistfc", "--data-dir", str(data), *SMALL["mnistfc"].split(), "--examples", "30"]
    plain = train.prepare(train.parse_arguments(arguments)).dataset
    noisy = train.prepare(train.parse_arguments([*arguments, "--label-noise", "0.5"])).dataset
    assert len(plain.train_labels) == len(noisy.train_labels) == 30
    assert 0 < (plain.train_labels != noisy.train_labels).sum() < 25
    np.testing.assert_array_equal(plain.test_labels, noisy.test_labels)
    whole = train.prepare(train.parse_arguments(arguments[:-2])).dataset
    np.testing.assert_array_equal(plain.train_inputs, whole.train_inputs[:30])


@pytest.mark.parametrize("optimizer", ["sgd", "parle"])
def test_pruned_networks_are_judged_but_not_trained(optimizer, tmp_path):
    """Against the same training, judged after NumPy removed nine tenths of the weights."""
    flags = ["digits", "--optimizer", optimizer, "--effective-epochs", "5", "--measurements", "1"]
    last, params = {}, {}
    for more in ([], ["--prune", "0.9"]):
        run = train.prepare(train.parse_arguments([*flags, *more]))
        params[len(more)], last[len(more)] = solutions.train_to_the_end(
            run.contestant, run.model, run.dataset, run.budget, 1
        )
    kernels = [np.array(w[0]) for w in jax.tree.leaves(params[0]) if w.ndim > 2]
    least = np.sort(np.abs(np.concatenate([w.ravel() for w in kernels])))[round(0.9 * 8832)]
    pruned = jax.tree.map(
        lambda w: np.where((w.ndim > 2) & (np.abs(w) < least), 0, w)[0], jax.device_get(params[0])
    )
    measured = evaluation.measure(run.model, pruned, run.dataset)
    for name, value in measured.items():
        np.testing.assert_allclose(getattr(last[2], name), value, rtol=1e-5)
    assert last[2].test_error > last[0].test_error
    assert sum((np.asarray(w) != 0).sum() for w in jax.tree.leaves(params[2]) if w.ndim > 2) == 883


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nothing", "'nothing'"),
        ("mnistfc", "needs --data-dir"),
        ("mnistfc --data-dir nowhere", "there is no folder nowhere"),
        ("mnistfc --data-dir .", "no train-images-idx3-ubyte"),
        ("allcnn --data-dir .", "no cifar-10-binary.tar.gz"),
        ("ptb --data-dir .", "no ptb.train.txt"),
        ("char_lstm --data-dir .", "no warpeace_input.txt"),
        ("char_gpt --text nowhere.txt", "no nowhere.txt"),
        ("digits --optimizer magic", "'magic'"),
        ("digits --learning-rate nan", "'nan' given"),
        ("digits --learning-rate -1", "--learning-rate"),
        ("digits --momentum 1", "from 0 to below 1"),
        ("digits --averaging 2", "averaging"),
        ("digits --prune 1", "--prune"),
        ("digits --examples 2000", "--examples 2000"),
        ("digits --validation 2000", "--validation 2000 leaves nothing"),
        ("digits --batch-size 2000", "--batch-size 2000 is above"),
        ("digits --seeds 0", "--seeds"),
        ("digits --first-seed 3000000000", "--seeds 1: seeds below 2,147,483,648 expected"),
        ("digits --first-seed 2147483647 --seeds 2", "2147483647 --seeds 2: seeds below"),
        ("digits --optimizer sgd --schedule constant --warmup 0.5", "--warmup needs --schedule"),
        (
            "digits --optimizer snoo --schedule constant --inner-schedule constant --warmup 0.5",
            "--warmup needs --schedule cosine or --inner-schedule cosine",
        ),
        ("digits --dropout -1", "'-1' given, a finite number of at least 0"),
        ("digits --width -1", "a whole number of at least 0"),
        ("digits --drop-at 0.5 --schedule cosine", "--drop-at and --drop-by need --schedule step"),
        ("digits --schedule step", "--schedule step needs --drop-at"),
        ("digits --sampling streams", "--sampling streams: the network of digits has no state"),
        ("digits --decay-after-momentum", "--decay-after-momentum needs --weight-decay"),
        ("digits --optimizer sgd --as-published", "--as-published does nothing"),
        ("digits --optimizer parle --as-published", "--as-published does nothing"),
        ("ptb --context 5", "--context needs --sampling passes or replacement"),
        ("ptb --optimizer parle --coupling 5", "--coupling needs --noise-scale"),
        ("mnistfc --warmup 0.1", "--warmup needs --schedule cosine"),
        ("digits --effective-epochs 1 --inner-steps 1000", "allowed are 500, half a round, to"),
        ("digits --effective-epochs 1e300", "gradient evaluations; allowed are"),
        ("char_gpt --text {text} --width 100", "--width 100: up to 32, or a multiple"),
        ("char_gpt --text {text} --context 999999999", "--context 999999999: too much"),
        (f"char_gpt --text {'a' * 5000}", "File name too long"),
        ("digits --out /dev/null/x", "--out"),
        ("digits --rho 0.1", "--rho does nothing for digits with entropy_sgd: it is a flag of sam"),
        ("digits --optimizer sgd --no-reset-inner-state", "--reset-inner-state does nothing"),
        ("digits --optimizer adam --inner-steps 5", "--inner-steps does nothing"),
        ("digits --dropout 0.1", "--dropout does nothing"),
        ("digits --data-dir .", "--data-dir does nothing"),
        ("digits --download", "--download does nothing"),
        ("ptb --text some.txt", "it is a flag of char_lstm, char_gpt"),
        ("mnistfc --download ptb", "--download ptb: these are not the files of mnistfc"),
        ("minstfc", "(did you mean mnistfc?)"),
        ("digits --optimizer sdg", "(did you mean sgd?)"),
        ("digits --schedule cosin", "(did you mean cosine?)"),
        ("digits --momentun=0.5", "(did you mean --momentum?)"),
        ("digits --seed 3", "unrecognized arguments: --seed 3 (did you mean --seeds?)"),
        ("digits --lr 0.5", "(did you mean --learning-rate?)"),
        ("digits --epochs 5", "(did you mean --effective-epochs?)"),
        ("digits --zzz 5", "unrecognized arguments: --zzz 5; --help"),
    ],
)
def test_a_mistake_gives_one_line_before_anything_compiles(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.txt").write_text("to be or not to be, " * 1000)
    with pytest.raises(SystemExit) as stopped, one_line_errors("train.py"):
        train.main(arguments.format(text="some.txt").split())
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("train.py: error: ")
    assert message in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["some.txt"]


class Reads:
    """Settings that remember which of them were asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.names = settings, set()

    def __getattr__(self, name: str):
        self.names.add(name)
        return getattr(self.settings, name)


@pytest.mark.parametrize("optimizer", contestants.RECIPES)
def test_the_flags_of_an_optimizer_are_what_it_reads(optimizer):
    reads = Reads(Settings(drop_at=(0.5,), schedule="step", inner_schedule="cosine"))
    contestants.prepare(optimizer, reads, 10_000, 5)
    if optimizer not in INNER.owners:  # then the only schedule is another one here
        reads.settings = Settings(schedule="cosine")
        contestants.prepare(optimizer, reads, 10_000, 5)
    reads.settings = Settings(schedule="power")
    contestants.prepare(optimizer, reads, 10_000, 5)
    of_networks = (NETWORK, BATCH_NORM, DROPOUT, SEQUENCES)
    settings = {name: part for name, part in PARTS.items() if hasattr(Settings, name)}
    assert reads.names == {
        name
        for name, part in settings.items()
        if part not in of_networks and part.is_of("", optimizer)
    }


@pytest.mark.parametrize("workload", workloads.NAMES)
def test_the_flags_of_a_workload_are_what_it_reads(workload, data, monkeypatch):
    monkeypatch.setattr(
        "experiments.workloads.allcnn.whiten", lambda dataset: dataset
    )  # it takes long
    reads, task = Reads(Settings(width=8, layers=1, length=5)), workloads.get(workload)
    text = "warpeace_input.txt"
    dataset, classes = task.load(workloads.Request(str(data), text, None, reads))
    jax.eval_shape(task.make_model(reads, dataset, classes).init, jax.random.key(0))
    assert reads.names == {
        name
        for name, part in PARTS.items()
        if part in (NETWORK, BATCH_NORM, DROPOUT, SEQUENCES) and part.is_of(workload, "")
    }


@pytest.mark.parametrize("optimizer", contestants.RECIPES)
def test_the_settings_in_use_are_shown_as_flags_that_ask_for_them(optimizer):
    for workload in workloads.NAMES:
        usual = workloads.get(workload).settings[optimizer]
        shown = command_line.in_use(usual, workload, optimizer)
        options = train.parse_arguments([workload, "--optimizer", optimizer, *shown.split()])
        again = override(Settings(), options)
        assert command_line.in_use(again, workload, optimizer) == shown
        names = {flag.split()[0] for flag in f" {shown}".split(" --")[1:]}
        assert ("rho" in names) == (optimizer == "sam")
        assert ("scope" in names) == optimizer.startswith(("entropy", "parle"))


def help_of(arguments: str, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        train.main([*arguments.split(), "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_shows_what_applies_with_its_defaults(capsys):
    sam = help_of("mnistfc --optimizer sam", capsys)
    assert "SAM:\n  --rho NUMBER          radius (default 0.01)\n" in sam
    assert "--data-dir FOLDER" in sam
    assert not {"--scope", "--inner-steps", "--b1", "--text", "--layers"} & {*sam.split()}
    assert "--data-dir" not in help_of("digits", capsys)
    fewer = "images are scaled, and those of allcnn whitened, by the statistics of all"
    assert fewer in " ".join(help_of("allcnn", capsys).split())
    everything = help_of("", capsys)
    assert "SAM (sam):\n  --rho NUMBER          radius (default 0.01 or 0.05)\n" in everything
    assert {command_line.as_flag(name) for name in PARTS} <= {
        word.strip(",") for word in everything.split()
    }
    assert " X " not in everything


def test_where_nothing_can_be_locked_one_line_says_so():
    """As on Windows, which has no fcntl."""
    code = "import sys, jax; sys.modules['fcntl'] = None; from experiments import train"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "train.py: error: experiments.checkpoints needs Linux or macOS: it locks by fcntl\n"
    )


def test_the_command_itself(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "experiments.train", "digits", "--out", "out"]
    command += ["--inner-steps", "4"]
    done = subprocess.run(
        [*command, *SMALL["digits"].split(), *SHORT.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (
        "Settings: --effective-epochs 10 --batch-size 16 --sampling passes --width 8 "
        in done.stdout
    )
    assert "Entropy-SGD" in done.stdout
    assert "out" in done.stdout
