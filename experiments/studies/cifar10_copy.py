"""Turns a lossy copy of CIFAR-10, one AVIF mosaic for each batch, into the official binary files.

    python -m experiments.studies.cifar10_copy COPY OUT

COPY has `data_batch_1.avif`, `data_batch_1_labels.npy` and so on. Results on them must be labelled
"CIFAR-10, lossy copy". Needs Pillow 11.3 or newer.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
from PIL import Image

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def records(folder: pathlib.Path, name: str) -> bytes:
    """A mosaic of 100 × 100 images, as 10,000 labels and images with channels first."""
    mosaic = np.asarray(Image.open(folder / f"{name}.avif").convert("RGB"))
    images = mosaic.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(10_000, -1)
    labels = np.load(folder / f"{name}_labels.npy", allow_pickle=False)
    return np.concatenate([labels[:, None], images], axis=1).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("copy", type=pathlib.Path, help="folder of the mosaics and their labels")
    parser.add_argument("out", type=pathlib.Path, help="folder for the binary files")
    folders = parser.parse_args()
    folders.out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folders.out / f"{name}.bin").write_bytes(records(folders.copy, name))


if __name__ == "__main__":
    main()
