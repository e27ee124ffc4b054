"""Encoded pictures: what comes out of the decoder, from bytes and from files."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.images import SETTINGS, encoded, write_folder
from lobs_paper.data.pictures import packed, pictures_of
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
    run({"data": {"name": "folder", "root": str(source)}, "paths": {"data": str(tmp_path)}})
    train = load_split(tmp_path, "folder", "train", **SETTINGS)
    with pytest.raises(
        ValueError, match=r"a/0.tif has grey levels that are no whole numbers: save it with 8 or 16 bits"
    ):
        train[[0]]
    with pytest.raises(ValueError, match=r"b/0.tiff has grey levels from 70000 to 70000, accepted are 0 to 65535"):
        train[[1]]
