"""Folders of pictures, one folder per class (torchvision's ImageFolder layout): ImageNet, a sample of it, anybody's.

With folders ``train`` and ``val`` (or ``test``) these are the splits. A flat set is halved: of all pictures in order
(class, name) the even-numbered ones calibrate, the others measure.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from lobs_paper.data.archives import files_in
from lobs_paper.data.pictures import listed, packed
from lobs_paper.data.splits import Fetched

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MEASURED = ("val", "validation", "test")
# An archive is copied, so that pictures can be read in any order; a larger one had better be unpacked.
LARGEST_ARCHIVE = 8 * 2**30


@dataclass(frozen=True)
class Kind:
    """A data set's title, its classes' names and number (None: any), and where it comes from."""

    title: str
    pattern: str
    classes: int | None
    remedy: str


_WNID = r"n\d{8}"
KINDS = {
    "imagenet": Kind(
        "ImageNet",
        _WNID,
        1000,
        "the ILSVRC 2012 pictures, as train/<wnid>/<name>.JPEG and val/<wnid>/<name>.JPEG; get them from their makers "
        "(registration needed)",
    ),
    "imagenet_sample": Kind(
        "ImageNet sample",
        _WNID,
        1000,
        "a folder or zip archive of ImageNet pictures, <wnid>/<name>.JPEG, some for each of the 1,000 classes (such as "
        "the public repository EliSchwartz/imagenet-sample-images, sorted into folders)",
    ),
    "folder": Kind(
        "", ".*", None, "a folder or archive with one folder of pictures per class, in train/ and val/ or flat"
    ),
}


def fetch(name: str, root: str | None = None) -> Fetched:
    """Read the list of a folder's pictures, or an archive's contents. Sorted class names give the labels.

    Args:
        name: a key of `KINDS`; any other is that of somebody's own pictures, as `folder` is.
        root: the folder, or a zip or tar archive.

    Returns:
        Listed pictures of a folder, packed ones of an archive; of the classes in turn, so that every stretch of them
        holds as many and as different classes as there can be.

    Raises:
        ValueError: no root is given, it does not exist, or it holds no such pictures.
    """
    kind = KINDS.get(name, KINDS["folder"])
    if root is None:
        raise ValueError(f"data={name} is not downloaded: give data.root=<path>, {kind.remedy}")
    path = Path(root)
    if path.is_file() and path.stat().st_size > LARGEST_ARCHIVE:
        raise ValueError(f"data.root={root} is larger than {LARGEST_ARCHIVE >> 30} GiB: unpack it and give the folder")
    with files_in(root, name, kind.remedy) as files:

        def store(chosen: list[str]) -> dict[str, Tensor]:
            return listed(chosen) if path.is_dir() else packed(files[file]() for file in chosen)

        return Fetched(
            kind.title or (path.resolve().name if path.is_dir() else path.stem), _splits(files, kind, root, store)
        )


def _splits(
    names: Iterable[str], kind: Kind, root: str, store: Callable[[list[str]], dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    classes = {
        name: path.parent.name
        for name in names
        if (path := PurePosixPath(name)).suffix.lower() in SUFFIXES and re.fullmatch(kind.pattern, path.parent.name)
    }
    numbers = {label: number for number, label in enumerate(sorted(set(classes.values())))}
    wanted = kind.classes or len(numbers)
    if len(numbers) != wanted or len(numbers) < 2:
        raise ValueError(
            f"data.root={root} holds {len(classes)} pictures of {len(numbers)} classes, expected "
            f"{kind.classes or 'two or more'} classes: it takes {kind.remedy}"
        )
    splits = {}
    for split, chosen in _halves(classes, root).items():
        ordered = _in_turn(chosen, classes)
        labels = torch.tensor([numbers[classes[name]] for name in ordered])
        splits[split] = {**store(ordered), "labels": labels}
    return splits


def _halves(classes: Mapping[str, str], root: str) -> dict[str, list[str]]:
    """The names of each split."""
    parts: dict[str, list[str]] = {"train": [], "test": [], "": []}
    for name in sorted(classes, key=lambda name: (classes[name], name)):
        above = PurePosixPath(name).parts[-3:-2]
        split = "train" if above == ("train",) else "test" if above and above[0] in MEASURED else ""
        parts[split].append(name)
    if parts["train"] and parts["test"]:
        return {"train": parts["train"], "test": parts["test"]}
    # Where only one of the two is there, it is halved like a flat set.
    flat = parts["train"] or parts["test"] or parts[""]
    if len(flat) < 2:
        raise ValueError(f"data.root={root} holds {len(flat)} picture: some are needed to calibrate, some to measure")
    return {"train": flat[::2], "test": flat[1::2]}


def _in_turn(names: list[str], classes: Mapping[str, str]) -> list[str]:
    """The first of every class, the second of every class, and so on; classes in an order that says nothing."""
    seen: Counter[str] = Counter()
    ranks = {}
    for name in names:
        ranks[name] = seen[classes[name]]
        seen[classes[name]] += 1
    # Sorted, the first classes of ImageNet would all be animals.
    shuffled = {label: hashlib.md5(label.encode(), usedforsecurity=False).digest() for label in seen}
    return sorted(names, key=lambda name: (ranks[name], shuffled[classes[name]]))
