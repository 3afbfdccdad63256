"""CIFAR-10, texts and downloads on small files in the published formats, sound and broken."""

import errno
import functools
import gc
import hashlib
import http.server
import io
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import tracemalloc

import numpy as np
import pytest

from experiments.data import cifar10, download, text
from experiments.data.cifar10 import RECORD, SHAPE, TEST, TRAIN, load_cifar10
from experiments.data.images import read_mnist
from experiments.io.dataset import Dataset
from experiments.io.errors import InputError
from experiments.studies import tune

RANDOM = np.random.default_rng(0)
PIXELS = {name: RANDOM.integers(0, 256, (4, RECORD - 1)).astype(np.uint8) for name in TRAIN + TEST}
LABELS = {name: RANDOM.integers(0, 10, 4).astype(np.uint8) for name in TRAIN + TEST}


def binary(name: str) -> bytes:
    return np.concatenate([LABELS[name][:, None], PIXELS[name]], 1).tobytes()


def python(name: str, protocol: int = 2) -> bytes:
    batch = {b"data": PIXELS[name], b"labels": LABELS[name].tolist(), b"batch_label": b"batch"}
    return pickle.dumps(batch, protocol)


KINDS = {"bin": (binary, ".bin", "binary"), "py": (python, "", "python")}


def members(kind: str, **replaced: bytes) -> dict[str, bytes]:
    make, ending, _ = KINDS[kind]
    return {
        f"cifar-10-batches-{kind}/{name}{ending}": replaced.get(name, make(name))
        for name in TRAIN + TEST
    }


def pack(folder: pathlib.Path, kind: str, files: dict[str, bytes]) -> pathlib.Path:
    path = folder / f"cifar-10-{KINDS[kind][2]}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def unpack(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def check(dataset: Dataset) -> None:
    assert dataset.train_inputs.shape == (20, 32, 32, 3)
    stored = np.concatenate([PIXELS[name] for name in TRAIN]).reshape(-1, *SHAPE)
    np.testing.assert_array_equal(dataset.train_inputs.transpose(0, 3, 1, 2), stored)
    np.testing.assert_array_equal(dataset.train_labels, np.concatenate([LABELS[n] for n in TRAIN]))
    np.testing.assert_array_equal(dataset.test_labels, LABELS["test_batch"])


@pytest.mark.parametrize("kind", KINDS)
def test_reads_the_archive_and_the_folder(kind, tmp_path):
    for name, write in (("packed", functools.partial(pack, kind=kind)), ("open", unpack)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, files=members(kind))
        check(load_cifar10(str(tmp_path / name)))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_reads_pickles_of_older_protocols(protocol):
    images, labels = cifar10.parse_python("x", python("test_batch", protocol))
    np.testing.assert_array_equal(images, PIXELS["test_batch"])
    np.testing.assert_array_equal(labels, LABELS["test_batch"])


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path):
    trace = tmp_path / "trace"
    for evil in (Evil(trace), {b"data": Evil(trace), b"labels": []}, [np.array([Evil(trace)])]):
        unpack(tmp_path, members("py", data_batch_1=pickle.dumps(evil)))
        with pytest.raises(InputError, match=r"refused|only bytes are read") as caught:
            load_cifar10(str(tmp_path))
        assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nndarray\n((L1000000000000LtR.",  # the class itself must not be called
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo of 2 ** 31 entries
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.",  # bytes of 2 ** 56
        pickle.dumps({b"data": np.zeros((2, RECORD - 1)), b"labels": [0, 1]}),
        pickle.dumps({b"data": PIXELS["test_batch"], b"labels": [0, 1, 2, "3"]}),
        pickle.dumps({b"data": PIXELS["test_batch"], b"labels": [0, 1, 2, 10**30]}),
        pickle.dumps({b"data": PIXELS["test_batch"], b"labels": [0, 1, 2]}),
        pickle.dumps({b"data": PIXELS["test_batch"], b"labels": [0, 1, 2, 10]}),
        pickle.dumps({b"data": PIXELS["test_batch"][:, 1:], b"labels": [0, 1, 2, 3]}),
        pickle.dumps({b"data": [1], b"labels": [1]}),
        pickle.dumps([]),
        python("test_batch")[:-100],
        b"",
    ],
)
def test_broken_pickles_are_refused_in_one_line(content):
    with pytest.raises(InputError, match=r"^x ") as caught:
        cifar10.parse_python("x", content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (binary("test_batch")[:-1], "truncated"),
        (b"", "0 bytes"),
        (b"\x0a" + binary("test_batch")[1:], "a label 10"),
    ],
)
def test_broken_binaries_are_refused(content, message, tmp_path):
    unpack(tmp_path, members("bin", data_batch_3=content))
    with pytest.raises(InputError, match=message):
        load_cifar10(str(tmp_path))


def test_paths_that_leave_the_folder_write_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    evil = {"../escaped": b"x", "/tmp/escaped-entropy": b"x"}
    pack(tmp_path / "data", "bin", {**evil, **members("bin")})
    check(load_cifar10(str(tmp_path / "data")))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert len(list((tmp_path / "data").iterdir())) == 1
    assert not pathlib.Path("/tmp/escaped-entropy").exists()


def test_a_link_in_the_place_of_a_batch_is_not_followed(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(InputError, match="holds no file"):
        load_cifar10(str(tmp_path))


def test_a_truncated_archive_is_refused(tmp_path):
    path = pack(tmp_path, "bin", members("bin"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="fetch the file again") as caught:
        load_cifar10(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_another_file_by_that_name_is_refused(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="cannot read"):
        load_cifar10(str(tmp_path))


def test_a_member_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path):
    entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    entry.size = 10**12
    path = tmp_path / "cifar-10-binary.tar"
    path.write_bytes(entry.tobuf())
    with pytest.raises(InputError, match=r"1,000,000,000,000 bytes"):
        load_cifar10(str(tmp_path))


def test_a_claim_takes_no_memory(tmp_path):
    """A pickled bytearray, and the long name of a member, of 1 GB each where there is nothing."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**9
    (tmp_path / "cifar-10-binary.tar").write_bytes(header.tobuf() + bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"^x is no batch"):
            cifar10.parse_python("x", b"\x80\x05\x96" + (10**9).to_bytes(8, "little") + b".")
        with pytest.raises(InputError, match=r"headers claim more than 262,144"):
            load_cifar10(str(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_flipped_byte_in_an_archive_is_found(tmp_path):
    path = pack(tmp_path, "bin", members("bin"))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum at the end
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"CRC check failed.*; fetch the file again"):
        load_cifar10(str(tmp_path))


def test_whitening_is_what_numpy_states():
    images = RANDOM.integers(0, 255, (60, 2, 2, 3)).astype(np.uint8)
    # A weak direction, of variance 5e-5: what is added to the variance would change it by 9 %.
    images[:, 0, 0, 1] = images[:, 0, 0, 0] + RANDOM.integers(0, 2, 60)
    dataset = Dataset(images[:50], np.zeros(50), images[50:], np.zeros(10))
    white = cifar10.whiten(dataset)

    x = images.reshape(60, -1).astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    train = x[:50]
    covariance = (train - train.mean(0)).T @ (train - train.mean(0)) / 50
    values, vectors = np.linalg.eigh(covariance)
    transform = vectors @ np.diag(1 / (np.sqrt(np.maximum(values, 0)) + 1e-5)) @ vectors.T
    expected = (x - train.mean(0)) @ transform
    # Contrast normalisation has taken one direction, the mean: only rounding is left along it.
    found = np.concatenate([white.train_inputs, white.test_inputs]).reshape(60, -1)
    assert np.abs(found.mean(1)).max() < 0.05
    centred = [x - x.mean(1, keepdims=True) for x in (found, expected)]
    np.testing.assert_allclose(*centred, atol=2e-2)
    # All directions but the one that contrast normalisation has taken have variance 1.
    own = np.linalg.eigvalsh(np.cov(white.train_inputs.reshape(50, -1), rowvar=False, bias=True))
    np.testing.assert_allclose(own[1:], 1, rtol=1e-2)
    assert white.train_inputs.shape == (50, 2, 2, 3)


def test_windows_predict_the_next_symbol_and_see_their_context():
    cut = text.windows(text.Text(np.arange(1, 12), np.arange(1, 8), 12), 5, 2, 3, 0)
    np.testing.assert_array_equal(cut.train_inputs[0], [0, 0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(cut.train_inputs[1], [4, 5, 6, 7, 8, 9, 10])
    np.testing.assert_array_equal(cut.train_labels, [[2, 3, 4, 5, 6], [7, 8, 9, 10, 11]])
    np.testing.assert_array_equal(cut.test_inputs, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(cut.test_labels, [[2, 3, 4], [5, 6, 7]])
    assert cut.validation_inputs is None
    both = text.windows(text.Text(np.arange(12), np.arange(4), 12, np.arange(4, 8)), 5, 2, 3, 0)
    np.testing.assert_array_equal(both.validation_inputs, [[4, 5, 6]])
    np.testing.assert_array_equal(both.validation_labels, [[5, 6, 7]])
    with pytest.raises(InputError, match="too few"):
        text.windows(text.Text(np.arange(5), np.arange(5), 5), 5, 0, 2, 0)


def test_characters_are_split_by_order_and_validation_does_not_touch_the_test(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(97, 117)) * 10)
    judged, held = (text.load_characters(str(tmp_path), "a.txt", n) for n in (0, 4))
    assert (len(judged.train), len(judged.test), judged.symbols) == (180, 10, 20)
    np.testing.assert_array_equal(held.train, judged.train)
    np.testing.assert_array_equal(held.test, [0, 1, 2, 3])
    np.testing.assert_array_equal(judged.test, np.arange(10, 20))
    np.testing.assert_array_equal(judged.validation, np.arange(10))
    assert held.validation is None


def test_ptb_ends_lines_and_refuses_unknown_words(tmp_path):
    (tmp_path / "ptb.train.txt").write_text(" b a \n a c \n")
    (tmp_path / "ptb.valid.txt").write_text("a\n")
    (tmp_path / "ptb.test.txt").write_text("c a\n")
    words = text.load_ptb(str(tmp_path))
    np.testing.assert_array_equal(words.train, [2, 1, 0, 1, 3, 0])
    np.testing.assert_array_equal(words.test, [3, 1, 0])
    np.testing.assert_array_equal(words.validation, [1, 0])
    held = text.load_ptb(str(tmp_path), text.ALL)
    np.testing.assert_array_equal(held.test, [1, 0])
    assert held.validation is None
    (tmp_path / "ptb.test.txt").write_text("z\n")
    with pytest.raises(InputError, match="a word 'z'"):
        text.load_ptb(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "0 bytes"),
        ("a.txt.gz", b"no gzip", "cannot read"),
        ("ptb.train.txt", b"\xff\xfe", "is no text"),
        ("ptb.train.txt", " ".join(map(str, range(10_001))).encode(), "different words"),
    ],
)
def test_broken_texts_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    load = text.load_ptb if name.startswith("ptb") else functools.partial(_characters, name="a.txt")
    with pytest.raises(InputError, match=message):
        load(str(tmp_path))


def _characters(folder: str, name: str) -> text.Text:
    return text.load_characters(folder, name)


def test_a_text_above_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LARGEST", 10)
    (tmp_path / "a.txt").write_bytes(11 * b"a")
    with pytest.raises(InputError, match="allowed are 1 to 10"):
        text.load_characters(str(tmp_path), "a.txt")


@pytest.fixture
def server(tmp_path):
    """A folder that is served over HTTP on this machine, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()
    gc.collect()  # pooch leaves the connection of a failed download open: let it warn here


leaves_connection = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_more_to_validate_by_than_there_is_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(200)))
    assert len(text.load_characters(str(tmp_path), "a.txt", 10).test) == 10
    assert len(text.load_characters(str(tmp_path), "a.txt", text.ALL).test) == 10
    with pytest.raises(InputError, match="--validation 11: there are 10"):
        text.load_characters(str(tmp_path), "a.txt", 11)


def test_whatever_the_locale_greek_letters_are_written(tmp_path):
    """As λ in a study's table."""
    code = "import pathlib, sys; from experiments.io.files import write_whole\n"
    code += "write_whole(pathlib.Path(sys.argv[1]), '\\u03bb')"
    ascii_only = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.md"], check=True, env=os.environ | ascii_only
    )
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "λ"


@leaves_connection
def test_download_fetches_once_and_checks_the_sum(server, tmp_path, monkeypatch):
    folder, address = server
    (folder / "a.txt").write_bytes(b"hello")
    good = download.Source("a.txt", f"{address}/a.txt", "md5:" + hashlib.md5(b"hello").hexdigest())
    monkeypatch.setitem(download.SOURCES, "ptb", [good])
    place = download.fetch("ptb", str(tmp_path / "data"))
    assert (pathlib.Path(place) / "a.txt").read_bytes() == b"hello"
    (folder / "a.txt").unlink()
    assert download.fetch("ptb", place) == place  # what is there is not fetched again


@leaves_connection
def test_download_touches_no_file_of_another_set(server, tmp_path, monkeypatch):
    """Fashion-MNIST's files have MNIST's names; of a plain and a packed one the plain is read."""
    folder, address = server
    (folder / "a.gz").write_bytes(b"hello")
    source = download.Source("a.gz", f"{address}/a.gz", f"md5:{hashlib.md5(b'hello').hexdigest()}")
    monkeypatch.setitem(download.SOURCES, "fashion-mnist", [source])
    for name, message in (("a.gz", "has another sum"), ("a", "would be read in place of a.gz")):
        place = tmp_path / name
        place.mkdir()
        (place / name).write_bytes(b"digits")
        with pytest.raises(InputError, match=message):
            download.fetch("fashion-mnist", str(place))
        assert [path.read_bytes() for path in place.iterdir()] == [b"digits"]


@leaves_connection
def test_download_by_itself_fills_the_folders_of_the_studies(server, tmp_path, monkeypatch, capsys):
    folder, address = server
    (folder / "a.txt").write_bytes(b"hello")
    source = download.Source(
        "a.txt", f"{address}/a.txt", f"md5:{hashlib.md5(b'hello').hexdigest()}"
    )
    for name in download.USUAL:
        monkeypatch.setitem(download.SOURCES, name, [source])
    monkeypatch.setattr("sys.argv", ["download", str(tmp_path / "data")])
    download.main()
    places = [tune.data_folder(tmp_path / "data", name) for name in ("lenet", "char_lstm", "ptb")]
    assert {*capsys.readouterr().out.split()} == {*places}
    assert all((pathlib.Path(place) / "a.txt").read_bytes() == b"hello" for place in places)


@leaves_connection
@pytest.mark.parametrize(("name", "checksum"), [("a.txt", "md5:" + 32 * "0"), ("b.txt", "md5:0")])
def test_download_of_another_file_or_none_is_refused(name, checksum, server, tmp_path, monkeypatch):
    folder, address = server
    (folder / "a.txt").write_bytes(b"hello")
    source = download.Source(name, f"{address}/{name}", checksum)
    monkeypatch.setitem(download.SOURCES, "ptb", [source])
    with pytest.raises(InputError, match="cannot fetch") as caught:
        download.fetch("ptb", str(tmp_path / "data"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / name).exists()


@leaves_connection
def test_a_refused_connection_is_told_in_a_few_words(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/a.txt"
    source = download.Source("a.txt", address, "md5:0")
    monkeypatch.setitem(download.SOURCES, "ptb", [source])
    with pytest.raises(InputError) as caught:
        download.fetch("ptb", str(tmp_path / "data"))
    reason = f"[Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}"
    assert str(caught.value) == (
        f"cannot fetch {address}: {reason}. Try again, or put a.txt into {tmp_path / 'data'} by "
        "hand"
    )
    assert not (tmp_path / "data").exists()
    gc.collect()


@pytest.mark.parametrize("name", ["nowhere", "file"])
@pytest.mark.parametrize(
    "load", [load_cifar10, read_mnist, text.load_ptb, functools.partial(_characters, name="a.txt")]
)
def test_a_folder_that_is_not_there_is_named(load, name, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=f"^there is no folder {tmp_path / name}$"):
        load(str(tmp_path / name))
