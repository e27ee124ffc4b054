"""The files of folders and archives, read alike."""

from __future__ import annotations

import pytest

from helpers.images import write_folder, write_tar, write_zip
from lobs_paper.data import archives
from lobs_paper.data.archives import files_in

FILES = {"a.txt": b"one", "deep/er/b.bin": bytes(range(256)), "deep/empty": b""}


@pytest.mark.parametrize("write", [write_folder, write_tar, write_zip])
def test_names_and_contents_are_the_same_wherever_they_lie(tmp_path, write):
    root = write(tmp_path / "source", FILES)
    with files_in(str(root), "any", "something") as files:
        assert {name: read() for name, read in files.items()} == FILES
        assert files["a.txt"]() == b"one", "a file can be read again"


def test_folders_in_an_archive_are_no_files(tmp_path):
    import tarfile
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("folder/", b"")
        packed.writestr("folder/a", b"1")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(write_folder(tmp_path / "source", {"folder/a": b"1"}), arcname=".")
    for name in ("x.zip", "x.tar"):
        with files_in(str(tmp_path / name), "any", "something") as files:
            assert [read() for read in files.values()] == [b"1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere does not exist: data=shapes needs round ones"),
        ("text", "text is neither a folder nor a zip or tar archive: data=shapes needs round ones"),
    ],
)
def test_other_roots_are_refused_with_what_is_needed(tmp_path, name, message):
    (tmp_path / "text").write_text("no archive")
    with (
        pytest.raises(ValueError, match=rf"data.root=.*{message}"),
        files_in(str(tmp_path / name), "shapes", "round ones"),
    ):
        pass


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_an_archive_that_claims_far_more_than_it_has_is_refused_before_it_is_read(tmp_path, monkeypatch, name):
    write = write_zip if name == "x.zip" else write_tar
    monkeypatch.setattr(archives, "ALWAYS", 1000)
    monkeypatch.setattr(archives, "MOST_TIMES", 0.1)
    root = write(tmp_path / name, {f"{label}.png": bytes(50_000) for label in "ab"})
    if name == "x.tar":
        root.write_bytes(root.read_bytes()[:60_000])
    message = r"claims to hold more than .* GiB in \d+ bytes: unpack it and give the folder"
    with pytest.raises(ValueError, match=message), files_in(str(root), "any", "something"):
        pass
