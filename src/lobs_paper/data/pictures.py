"""Pictures that stay encoded (JPEG, PNG) until a batch asks for them.

A split of pictures is stored in one of two ways: *packed*, the files' bytes one after the other (what comes out of an
archive), or *listed*, their names under a folder that stays where it is (ImageNet is 150 GB). All become RGB with 8
bits: grey levels of 16 bits are divided by 257 and rounded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lobs_paper.data.augmentation import random_box

if TYPE_CHECKING:
    from PIL.Image import Image

# Decoded centre crops are kept for the next pass as long as all of them together stay below this.
KEEP_BYTES = 2**30


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures, or some of them.

    Attributes:
        files: the packed bytes of each, or the path of each.
        places: which of the files these are.
        resize: the short side after resizing; None: as the file has it.
        size: the side of the centre crop, or of the network's input.
        scale: share of a picture's area that a random crop has, least and most.
        kept: decoded centre crops by place, shared by all parts of a split.
    """

    files: Packed | Listed
    places: Tensor
    resize: int | None
    size: int
    scale: tuple[float, float]
    kept: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor | slice | list[int]) -> Pictures:
        """Some of the pictures, still encoded."""
        return Pictures(self.files, self.places[index], self.resize, self.size, self.scale, self.kept)

    def pixels(self) -> Tensor:
        """The centre crops, uint8 ``[k, 3, size, size]``: short side resized to `resize`, bilinear."""
        fits = len(self.files) * 3 * self.size**2 <= KEEP_BYTES

        def centre(place: int) -> Tensor:
            if place in self.kept:
                return self.kept[place]
            pixels = _tensor(self._centre(self.files.open(place)))
            if fits:
                self.kept[place] = pixels
            return pixels

        return self._each(centre, self.places.tolist())

    def crops(self, chances: Tensor) -> Tensor:
        """Random crops of random sizes, some flipped: uint8 ``[k, 3, size, size]``.

        Args:
            chances: between 0 and 1, ``[k, CHANCES]``.

        Returns:
            The images.
        """

        def crop(place: int, numbers: list[float]) -> Tensor:
            from PIL.Image import Resampling, Transpose

            picture = self.files.open(place)
            box = random_box(*picture.size, self.scale, numbers)
            picture = picture.resize((self.size, self.size), Resampling.BILINEAR, box=box)
            return _tensor(picture.transpose(Transpose.FLIP_LEFT_RIGHT) if numbers[2] < 0.5 else picture)

        return self._each(crop, self.places.tolist(), chances.tolist())

    def _centre(self, picture: Image) -> Image:
        from torchvision.transforms import functional

        if self.resize is not None:
            picture = functional.resize(picture, [self.resize])
        return functional.center_crop(picture, [self.size])

    @staticmethod
    def _each(decode: object, *arguments: Sequence) -> Tensor:
        # Decoding happens outside Python's lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return torch.stack(list(pool.map(decode, *arguments)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Packed:
    """Files one after the other: ``data`` uint8, file i from ``offsets[i]`` to ``offsets[i + 1]``."""

    data: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def open(self, place: int) -> Image:
        """A decoded picture."""
        start, stop = self.offsets[place : place + 2].tolist()
        return decoded(self.data[start:stop].numpy().tobytes(), f"picture {place}")


@dataclass(frozen=True)
class Listed:
    """Files under a folder, by their names relative to it."""

    folder: Path
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, place: int) -> Image:
        """A decoded picture.

        Returns:
            It, in RGB.

        Raises:
            ValueError: the file is gone or is not a picture.
        """
        path = self.folder / self.names[place]
        try:
            data = path.read_bytes()
        except OSError as error:
            cause = error.strerror
            raise ValueError(f"{path} cannot be read ({cause}): run `lobs fetch` with data.root again") from None
        return decoded(data, str(path))


def packed(files: Iterable[bytes]) -> dict[str, Tensor]:
    """Files as the tensors of a packed split, labels left out."""
    contents = list(files)
    offsets = np.cumsum([0, *map(len, contents)])
    return {
        "data": torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8),
        "offsets": torch.from_numpy(offsets),
    }


def listed(names: Iterable[str]) -> dict[str, Tensor]:
    """Names as the tensors of a listed split, labels left out; a ValueError where one has several lines."""
    chosen = list(names)
    for name in chosen:
        if "\n" in name:
            raise ValueError(f"{name!r} is not accepted as a picture's name: rename it, it has a line break")
    return {"names": torch.frombuffer(bytearray("\n".join(chosen).encode()), dtype=torch.uint8)}


def pictures_of(
    tensors: Mapping[str, Tensor],
    source: Path,
    remedy: str,
    resize: int | None = None,
    size: int | None = None,
    crop_scale: Sequence[float] = (0.35, 1.0),
) -> Pictures:
    """The pictures of a stored split.

    Args:
        tensors: what `packed` or `listed` made.
        source: of listed pictures, the file that notes their folder.
        remedy: what to do when that file is missing.
        resize: see `Pictures`.
        size: see `Pictures`.
        crop_scale: see `Pictures`.

    Returns:
        The pictures.

    Raises:
        ValueError: no size is given, or nobody knows the folder any more.
    """
    if size is None:
        raise ValueError("data.size=null is not accepted for pictures: the side of the network's input in pixels")
    files: Packed | Listed
    if "names" in tensors:
        if not source.exists():
            raise ValueError(f"{source} does not exist: {remedy} data.root=<folder of the pictures>` again")
        folder = Path(json.loads(source.read_text(encoding="utf-8"))["root"])
        files = Listed(folder, tensors["names"].numpy().tobytes().decode().split("\n"))
    else:
        files = Packed(tensors["data"], tensors["offsets"])
    return Pictures(files, torch.arange(len(files)), resize, size, (crop_scale[0], crop_scale[1]))


def decoded(data: bytes, name: str) -> Image:
    """A picture.

    Args:
        data: of its file.
        name: of the file, for the message.

    Returns:
        It, in RGB with 8 bits.

    Raises:
        ValueError: it cannot be read.
    """
    import PIL.Image

    try:
        picture = PIL.Image.open(io.BytesIO(data))
        picture.load()
        if picture.mode[0] not in "IF":
            return picture.convert("RGB")
    except Exception as error:  # Pillow raises whatever its decoders do: SyntaxError, struct.error, its own
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} is not a picture that can be read ({cause}): remove it or get it again") from None
    return _eight_bits(picture, name).convert("RGB")


def _eight_bits(picture: Image, name: str) -> Image:
    """Grey levels 0 to 65535 as 0 to 255; Pillow would take everything above 255 for white."""
    import PIL.Image

    if picture.mode == "F":
        raise ValueError(f"{name} has grey levels that are no whole numbers: save it with 8 or 16 bits")
    levels = np.asarray(picture).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(
            f"{name} has grey levels from {levels.min()} to {levels.max()}, accepted are 0 to 65535: save it with 8 or "
            "16 bits"
        )
    return PIL.Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def _tensor(picture: Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
