"""Data sets in memory: stored once as safetensors, read as uint8, handed out in batches of floats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images and labels that belong together.

    Attributes:
        images: uint8 ``[n, height, width]`` or ``[n, channels, height, width]``.
        labels: int64 ``[n]``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice | list[int]) -> tuple[Tensor, Tensor]:
        """A batch: float inputs ``[k, channels, height, width]`` between 0 and 1, labels ``[k]``."""
        images = self.images[index]
        if images.dim() == 3:
            images = images[:, None]
        return images.float() / 255, self.labels[index]

    def part(self, start: int, stop: int | None = None) -> Split:
        """The images from ``start`` to ``stop``."""
        return Split(self.images[start:stop], self.labels[start:stop])

    def batches(self, size: int) -> Batches:
        """All images in their order, ``size`` at a time."""
        return Batches(self, size)


@dataclass(frozen=True)
class Batches:
    """The batches of a split; can be gone through any number of times."""

    split: Split
    size: int
    first: int = 0
    step: int = 1

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """From the first batch on."""
        for start in self._starts():
            yield self.split[start : start + self.size]

    def share(self, first: int, step: int) -> Batches:
        """Every ``step``-th of these batches, beginning with number ``first``: one process's part of the work."""
        return replace(self, first=self.first + first * self.step, step=self.step * step)

    def _starts(self) -> range:
        return range(self.first * self.size, len(self.split), self.step * self.size)


def split_file(root: str | Path, name: str, split: str) -> Path:
    """Where a split is stored."""
    return Path(root) / name / f"{split}.safetensors"


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """MD5 over the bytes of images and labels: stored with them, compared whenever they are read."""
    digest = hashlib.md5(usedforsecurity=False)
    for tensor in (images, labels):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def load_split(root: str | Path, name: str, split: str) -> Split:
    """Read a stored split and compare it with its checksum.

    Args:
        root: the folder of all data sets.
        name: the data set.
        split: ``train`` or ``test``.

    Returns:
        The split, on the CPU.

    Raises:
        ValueError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = split_file(root, name, split)
    remedy = f"run `lobs fetch data={name}`"
    if not path.exists():
        raise ValueError(f"{path} does not exist yet: {remedy} first")
    try:
        with safe_open(path, framework="pt") as file:
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
            expected = (file.metadata() or {}).get("md5")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and {remedy}") from None
    actual = fingerprint(images, labels)
    if actual != expected:
        raise ValueError(f"{path} has MD5 {actual}, expected {expected}: delete it and {remedy}")
    return Split(images, labels.long())


def load_training_data(root: str | Path, name: str, validation: int = 0) -> tuple[Split, Split]:
    """The images to learn from and the images to measure on.

    The official test set is never re-split. To choose hyperparameters, ask for a validation part: the last images
    of the training set then take the test set's place and are not learned from.

    Args:
        root: the folder of all data sets.
        name: the data set.
        validation: how many training images to measure on instead of the test set; 0 for none.

    Returns:
        Training split, measured split.

    Raises:
        ValueError: no training image would be left.
    """
    train = load_split(root, name, "train")
    if not validation:
        return train, load_split(root, name, "test")
    if validation >= len(train):
        raise ValueError(f"data.validation={validation}: {name} has only {len(train)} training images")
    return train.part(0, len(train) - validation), train.part(len(train) - validation)
