"""Made-up picture files that the tests of data sets share."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image


def encoded(seed, size=(40, 30), kind="PNG"):
    """A random picture as a file's bytes; the pixels of PNG come back exactly."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


SETTINGS = {"resize": 20, "size": 16, "mean": [0.5], "std": [0.25]}
