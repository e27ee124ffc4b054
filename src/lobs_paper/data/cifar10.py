"""CIFAR-10: torchvision's download, the same archive or folder at hand, or a re-encoding of it as JPEG files.

Of the published batches (pickles) nothing is unpickled before its MD5 is known to be the published one.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from lobs_paper.data.archives import Reader, files_in
from lobs_paper.data.pictures import decoded
from lobs_paper.data.splits import Fetched
from lobs_paper.data.unpickling import ArrayUnpickler

# MD5 of the archive's batches, as published with the data set (torchvision's list).
CHECKSUMS = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ACCEPTED = (
    "cifar-10-python.tar.gz as published, its unpacked folder cifar-10-batches-py, or a zip archive or folder of "
    "train/<class>/<name>.jpg and test/<class>/<name>.jpg"
)

LOSSY = (".jpg", ".jpeg")


def fetch(name: str = "cifar10", root: str | None = None) -> Fetched:
    """Read CIFAR-10.

    Args:
        name: of the data set.
        root: an archive or a folder; None downloads the published archive.

    Returns:
        uint8 images ``[n, 3, 32, 32]``, uint8 labels ``[n]``; 50,000 and 10,000 of them. Pictures are ordered by their
        files' names and then by class, so that every stretch of them holds all classes.

    Raises:
        ValueError: the download fails, or the root holds something else.
    """
    if root is None:
        with tempfile.TemporaryDirectory(prefix="lobs-cifar10-") as folder:
            return _fetch(_download(Path(folder), name), name)
    return _fetch(root, name)


def _fetch(root: str, name: str) -> Fetched:
    """The splits in a folder's or an archive's files, whatever folder they lie in."""
    with files_in(root, name, ACCEPTED) as files:
        by_name = {PurePosixPath(file).name: read for file, read in files.items()}
        if all(batch in by_name for batches in CHECKSUMS.values() for batch in batches):
            splits = {
                split: _joined([_batch(batch, by_name[batch](), md5) for batch, md5 in batches.items()])
                for split, batches in CHECKSUMS.items()
            }
            return Fetched("CIFAR-10", splits)
        pictures = {file: read for file, read in files.items() if file.lower().endswith((*LOSSY, ".png"))}
        splits = {split: _pictures(pictures, split) for split in CHECKSUMS}
    if any(not len(tensors["labels"]) for tensors in splits.values()):
        raise ValueError(f"data.root={root} does not hold CIFAR-10: data={name} needs {ACCEPTED}")
    lossy = any(file.lower().endswith(LOSSY) for file in pictures)
    return Fetched("CIFAR-10 (JPEG)" if lossy else "CIFAR-10", splits)


def _batch(name: str, data: bytes, expected: str) -> dict[str, Tensor]:
    """One published batch: rows of 3,072 bytes, channel by channel, and a list of labels."""
    actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise ValueError(f"{name} has MD5 {actual}, expected {expected}: this is not CIFAR-10 as published")
    try:
        batch = ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        images, labels = np.array(batch["data"], np.uint8).reshape(-1, 3, 32, 32), np.array(batch["labels"], np.uint8)
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
        raise ValueError(f"{name} cannot be read as a batch of CIFAR-10: {error}") from None
    return {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}


def _pictures(files: dict[str, Reader], split: str) -> dict[str, Tensor]:
    paths = {file: PurePosixPath(file) for file in files}
    chosen = [file for file, path in paths.items() if path.parts[-3:-2] == (split,) and path.parent.name in CLASSES]
    chosen.sort(key=lambda file: (paths[file].name, paths[file].parent.name))
    images = torch.empty(len(chosen), 3, 32, 32, dtype=torch.uint8)
    for place, file in enumerate(chosen):
        pixels = np.array(decoded(files[file](), file))
        if pixels.shape != (32, 32, 3):
            raise ValueError(f"{file} has {pixels.shape[1]}x{pixels.shape[0]} pixels, expected 32x32: no CIFAR-10")
        images[place] = torch.from_numpy(pixels).permute(2, 0, 1)
    labels = [CLASSES.index(paths[file].parent.name) for file in chosen]
    return {"images": images, "labels": torch.tensor(labels, dtype=torch.uint8)}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _download(folder: Path, name: str) -> str:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    try:
        download_url(CIFAR10.url, str(folder), CIFAR10.filename, CIFAR10.tgz_md5)
    except (OSError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} cannot be downloaded ({cause}): get it elsewhere and give data.root=<path>, {ACCEPTED}"
        ) from None
    return str(folder / CIFAR10.filename)
