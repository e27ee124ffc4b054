"""Encoded pictures: what comes out of the decoder, from bytes and from files."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.images import SETTINGS, encoded, write_folder
from lobs_paper.data import pictures
from lobs_paper.data.pictures import listed, packed, pictures_of
from lobs_paper.data.splits import load_split
from lobs_paper.stages.fetch import run


def saved(pixels, kind):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def decoded(data):
    files = packed([data])
    return pictures_of(files, Path("none"), "", size=16, resize=None).pixels()[0]


@pytest.mark.parametrize(
    ("kind", "levels"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.dtype(">u2")), ("TIFF", np.int32)]
)
def test_a_ramp_of_16_bits_stays_a_ramp(kind, levels):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(levels)
    found = decoded(saved(ramp, kind))
    assert torch.equal(found, torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(3, 16, 16))
    assert decoded(saved(np.full((16, 16), 384, levels), kind)).unique().tolist() == [1]  # 384 / 257 = 1.494
    assert decoded(saved(np.full((16, 16), 386, levels), kind)).unique().tolist() == [2]


def test_grey_levels_that_nobody_can_place_are_refused_with_the_files_name(tmp_path):
    files = {
        "a/0.tif": saved(np.zeros((20, 20), np.float32), "TIFF"),
        "b/0.tiff": saved(np.full((20, 20), 70000, np.int32), "TIFF"),
        **{f"{label}/1.png": encoded(1) for label in "ab"},
    }
    source = write_folder(tmp_path / "source", files)
    run({"data": {"name": "folder", "root": str(source)}, "folders": {"data": str(tmp_path)}})
    train = load_split(tmp_path, "folder", "train", **SETTINGS)
    with pytest.raises(
        ValueError, match=r"a/0.tif has grey levels that are no whole numbers: save it with 8 or 16 bits"
    ):
        train[[0]]
    with pytest.raises(ValueError, match=r"b/0.tiff has grey levels from 70000 to 70000, accepted are 0 to 65535"):
        train[[1]]


def shown(files, **options):
    return pictures_of(packed(files), Path("none"), "", **{"size": 8, "resize": None, **options})


def test_packed_files_are_told_apart_and_parts_share_what_was_decoded():
    pixels = [np.full((8, 8, 3), level, np.uint8) for level in (10, 20, 30)]
    pictures = shown([saved(each, "PNG") for each in pixels])
    assert len(pictures) == 3
    assert pictures.pixels()[:, 0, 0, 0].tolist() == [10, 20, 30]
    part = pictures[[2, 0]]
    assert (len(part), part.kept is pictures.kept) == (2, True)
    pictures.kept[0] = torch.zeros(3, 8, 8, dtype=torch.uint8)  # a mark: it is not decoded again
    assert part.pixels()[:, 0, 0, 0].tolist() == [30, 0]


def test_what_would_not_fit_is_decoded_anew(monkeypatch):
    monkeypatch.setattr("lobs_paper.data.pictures.KEEP_BYTES", 3 * 8 * 8)
    files = [saved(np.full((8, 8, 3), level, np.uint8), "PNG") for level in (1, 2)]
    for count, kept in ((1, 1), (2, 0)):
        pictures = shown(files[:count])
        pictures.pixels()
        assert len(pictures.kept) == kept


def test_listed_files_are_read_from_the_folder_that_was_noted(tmp_path):
    names = ["a/ü.png", "b/1.png"]
    for level, name in enumerate(names):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(saved(np.full((8, 8, 3), level, np.uint8), "PNG"))
    source = tmp_path / "source.json"
    source.write_text(json.dumps({"root": str(tmp_path / "photos")}))
    pictures = pictures_of(listed(names), source, "run `x", size=8)
    assert pictures.pixels()[:, 0, 0, 0].tolist() == [0, 1]
    source.unlink()
    with pytest.raises(ValueError, match=r"source.json does not exist: run `x data.root=<folder of the pictures>`"):
        pictures_of(listed(names), source, "run `x", size=8)
    with pytest.raises(ValueError, match=r"data.size=null is not accepted"):
        pictures_of(listed(names), source, "run `x")


def test_a_crop_of_the_whole_picture_may_be_flipped():
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)[..., None].repeat(3, 2)
    pictures = shown([saved(ramp, "PNG")], crop_scale=(1.0, 1.0))
    plain, flipped = (pictures.crops(torch.tensor([[0.0, 0.0, flip, 1.0, 0.5]]))[0] for flip in (0.6, 0.4))
    assert torch.equal(plain[0], torch.arange(64, dtype=torch.uint8).reshape(8, 8))
    assert torch.equal(flipped, plain.flip(-1))


def test_broken_pictures_are_named_however_they_are_broken():
    whole = {kind: saved(np.arange(64, dtype=np.uint8).reshape(8, 8), kind) for kind in ("PNG", "TIFF", "BMP")}
    for kind, data in whole.items():
        for place in range(0, len(data), 7):
            spoilt = bytearray(data)
            spoilt[place] ^= 0xFF
            for content in (bytes(spoilt), data[:place]):
                try:
                    pictures.decoded(content, f"x.{kind}")
                except ValueError as error:
                    assert f"x.{kind} " in str(error)
