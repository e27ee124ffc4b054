"""Data sets: stored once as safetensors, handed out in batches of floats, in memory or decoded when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lobs_paper.data.augmentation import CHANCES, shifted_and_flipped
from lobs_paper.data.pictures import Pictures, pictures_of


@dataclass(frozen=True)
class Transform:
    """What happens to pixels between 0 and 1 on their way into a network.

    Attributes:
        mean: subtracted, per channel or one value for all; empty: nothing is.
        std: divided by afterwards, likewise.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """Inputs of images.

        Args:
            images: ``[k, (channels,) height, width]``, uint8 or, taken as they are, floats.

        Returns:
            Float ``[k, channels, height, width]``.

        Raises:
            ValueError: there are neither one value nor as many as channels.
        """
        if images.dim() == 3:
            images = images[:, None]
        inputs = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values and len(values) not in (1, images.shape[1]):
                raise ValueError(f"data.{key}={list(values)}: one number or {images.shape[1]}, one per channel")
        if self.mean:
            inputs = inputs - torch.tensor(self.mean)[:, None, None]
        return inputs / torch.tensor(self.std)[:, None, None] if self.std else inputs


@dataclass(frozen=True)
class Split:
    """Images and labels that belong together.

    Attributes:
        images: uint8 or float ``[n, height, width]`` or ``[n, channels, height, width]``; or encoded pictures.
        labels: int64 ``[n]``.
        transform: from pixels to inputs.
        views: how often every image counts: as it is, then ``views - 1`` times with random crops and flips that depend
            on its position alone.
        title: of the data set, as reports call it.
    """

    images: Tensor | Pictures
    labels: Tensor
    transform: Transform = Transform()
    views: int = 1
    title: str = ""

    def __len__(self) -> int:
        return len(self.labels) * self.views

    def __getitem__(self, index: Tensor | slice | list[int]) -> tuple[Tensor, Tensor]:
        """A batch: float inputs ``[k, channels, height, width]``, labels ``[k]``."""
        if self.views == 1:
            return self.transform(self._pixels(index)), self.labels[index]
        count = len(self.labels)
        places = torch.arange(len(self))[index]
        view, places = places // count, places % count
        generator = torch.Generator().manual_seed(0)
        chances = torch.rand(self.views, count, CHANCES, generator=generator)[view, places]
        parts = [
            self.augmented(places[chosen], chances[chosen]) if varied else self._plain()[places[chosen]]
            for varied, chosen in ((False, view == 0), (True, view > 0))
            if bool(chosen.any())
        ]
        # Views follow each other, so images as they are come before the varied ones within a batch in order.
        order = torch.cat([torch.nonzero(view == 0)[:, 0], torch.nonzero(view > 0)[:, 0]]).argsort()
        inputs, labels = (torch.cat(tensors)[order] for tensors in zip(*parts, strict=True))
        return inputs, labels

    @property
    def values(self) -> int:
        """Numbers in one image's input."""
        if isinstance(self.images, Pictures):
            return 3 * self.images.size**2
        return self.images[0].numel()

    def augmented(self, index: Tensor | slice | list[int], chances: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of varied images: crops and flips.

        Args:
            index: of the k images.
            chances: random numbers between 0 and 1, ``[k, CHANCES]``.

        Returns:
            Inputs and labels as ever.
        """
        images = self.images[index]
        varied = images.crops(chances) if isinstance(images, Pictures) else shifted_and_flipped(images, chances)
        return self.transform(varied), self.labels[index]

    def flipped(self, index: Tensor | slice | list[int], chances: Tensor) -> tuple[Tensor, Tensor]:
        """A batch of images of which some are flipped left to right; arguments as for `augmented`."""
        inputs, labels = self._plain()[index]
        return torch.where((chances[:, 2] < 0.5)[:, None, None, None], inputs.flip(-1), inputs), labels

    def part(self, start: int, stop: int | None = None) -> Split:
        """The images from ``start`` to ``stop``, each once."""
        return replace(self, images=self.images[start:stop], labels=self.labels[start:stop], views=1)

    def with_views(self, views: int) -> Split:
        """The same images, each counted several times."""
        return replace(self, views=views)

    def batches(self, size: int) -> Batches:
        """All images in their order, ``size`` at a time."""
        return Batches(self, size)

    def _plain(self) -> Split:
        return replace(self, views=1)

    def _pixels(self, index: Tensor | slice | list[int]) -> Tensor:
        images = self.images[index]
        return images.pixels() if isinstance(images, Pictures) else images


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
            yield self.split[start : min(start + self.size, len(self.split))]

    def share(self, first: int, step: int) -> Batches:
        """Every ``step``-th of these batches, beginning with number ``first``: one process's part of the work."""
        return replace(self, first=self.first + first * self.step, step=self.step * step)

    def _starts(self) -> range:
        return range(self.first * self.size, len(self.split), self.step * self.size)


@dataclass(frozen=True)
class Fetched:
    """What a data set's `fetch` finds.

    Attributes:
        title: of the data set, as reports call it.
        splits: the tensors of ``train`` and ``test`` by name: ``labels``, and either ``images`` or what
            `lobs_paper.data.pictures` reads. Images are uint8, of which 255 becomes 1, or floats, which stay as they
            are.
    """

    title: str
    splits: dict[str, dict[str, Tensor]]


def split_file(root: str | Path, name: str, split: str) -> Path:
    """Where a split is stored."""
    return Path(root) / name / f"{split}.safetensors"


def source_file(root: str | Path, name: str) -> Path:
    """Where it is noted what a data set was read from: beside its folder, for a path is no part of the data."""
    return Path(root) / f"{name}.source.json"


def fingerprint(*tensors: Tensor) -> str:
    """MD5 over the bytes of tensors, labels last: stored with them, compared whenever they are read."""
    digest = hashlib.md5(usedforsecurity=False)
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def split_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """`fingerprint` of a split's tensors, by name but labels last."""
    names = sorted(tensors, key=lambda name: (name == "labels", name))
    return fingerprint(*(tensors[name] for name in names))


def load_split(root: str | Path, name: str, split: str, **settings: Any) -> Split:
    """Read a stored split and compare it with its checksum.

    Args:
        root: the folder of all data sets.
        name: the data set.
        split: ``train`` or ``test``.
        settings: of group `data`: mean, std; for pictures also resize, size, crop_scale.

    Returns:
        The split, on the CPU.

    Raises:
        ValueError: a setting does not go with the data set.
    """
    tensors, title = load_tensors(root, name, split)
    transform = Transform(tuple(settings.pop("mean", ())), tuple(settings.pop("std", ())))
    labels = tensors.pop("labels").long()
    if "images" not in tensors:
        pictures = pictures_of(tensors, source_file(root, name), f"run `lobs fetch data={name}", **settings)
        return Split(pictures, labels, transform, title=title)
    images = tensors["images"]
    given = {key: value for key, value in settings.items() if value is not None and key != "crop_scale"}
    if given:
        key, value = next(iter(given.items()))
        raise ValueError(
            f"data.{key}={value} is not accepted for {name}, which is stored as pixels of "
            f"{images.shape[-1]}x{images.shape[-2]}: null"
        )
    return Split(images, labels, transform, title=title)


def load_tensors(root: str | Path, name: str, split: str) -> tuple[dict[str, Tensor], str]:
    """Read a stored split as it is and compare it with its checksum.

    Args:
        root: the folder of all data sets.
        name: the data set.
        split: ``train`` or ``test``.

    Returns:
        Its tensors and the data set's title.

    Raises:
        ValueError: the file is missing or damaged.
    """
    from lobs.base.tensor_files import TensorFile

    path = split_file(root, name, split)
    remedy = f"run `lobs fetch data={name}`"
    if not path.exists():
        raise ValueError(f"{path} does not exist yet: {remedy} first")
    file = TensorFile(path, "data set", f"delete it and {remedy}", note=False)  # the MD5 tells as much
    tensors, metadata = file.tensors(), file.metadata
    actual, expected = split_fingerprint(tensors), metadata.get("md5")
    if actual != expected:
        raise ValueError(f"{path} has MD5 {actual}, expected {expected}: delete it and {remedy}")
    return tensors, metadata.get("title", name)


def load_training_data(root: str | Path, name: str, holdout: int = 0, **settings: Any) -> tuple[Split, Split]:
    """The images to learn from and the images to measure on.

    The official test set is never re-split. To choose hyperparameters, ask for a validation part: the last images
    of the training set then take the test set's place and are not learned from.

    Args:
        root: the folder of all data sets.
        name: the data set.
        holdout: how many training images to measure on instead of the test set; 0 for none.
        settings: of group `data`, as for `load_split`.

    Returns:
        Training split, measured split.

    Raises:
        ValueError: no training image would be left.
    """
    train = load_split(root, name, "train", **settings)
    if not holdout:
        return train, load_split(root, name, "test", **settings)
    if holdout >= len(train):
        raise ValueError(f"data.holdout={holdout}: {name} has only {len(train)} training images")
    return train.part(0, len(train) - holdout), train.part(len(train) - holdout)
