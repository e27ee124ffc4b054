"""The files of folders and archives, read alike."""

from __future__ import annotations

import tarfile
import zipfile

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
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("folder/", b"")
        packed.writestr("folder/a", b"1")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(write_folder(tmp_path / "source", {"folder/a": b"1"}), arcname=".")
    for name in ("x.zip", "x.tar"):
        with files_in(str(tmp_path / name), "any", "something") as files:
            assert [read() for read in files.values()] == [b"1"]


def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path):
    root = write_folder(tmp_path / "root", {"a/1.png": b"1"})
    write_folder(tmp_path / "else", {"b/2.png": b"2", "3.png": b"3"})
    (root / "b").symlink_to(tmp_path / "else/b", target_is_directory=True)
    (root / "split").symlink_to(tmp_path / "else", target_is_directory=True)
    (root / "a/4.png").symlink_to(tmp_path / "else/3.png")
    (root / "a/up").symlink_to(root, target_is_directory=True)
    with files_in(str(root), "any", "something") as files:
        found = {name: read() for name, read in files.items()}
    assert found == {"a/1.png": b"1", "a/4.png": b"3", "b/2.png": b"2", "split/b/2.png": b"2", "split/3.png": b"3"}


def test_a_link_to_nothing_is_refused(tmp_path):
    root = write_folder(tmp_path / "root", {"a/1.png": b"1"})
    (root / "a/2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"2.png is a link to a file that is not there"), files_in(str(root), "x", "y"):
        pass


def linked_zip(path):
    with zipfile.ZipFile(path, "w") as packed:
        item = zipfile.ZipInfo("b")
        item.external_attr = 0o120777 << 16
        packed.writestr(item, "../a")
        packed.writestr("a/1.png", b"1")


def linked_tar(path):
    with tarfile.open(path, "w") as archive:
        item = tarfile.TarInfo("b")
        item.type, item.linkname = tarfile.SYMTYPE, "a"
        archive.addfile(item)


@pytest.mark.parametrize("write", [linked_zip, linked_tar])
def test_links_in_an_archive_are_refused(tmp_path, write):
    write(tmp_path / "x")
    with pytest.raises(ValueError, match="b is a link: pack the files"), files_in(str(tmp_path / "x"), "any", "y"):
        pass


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_an_archive_that_is_cut_anywhere_is_refused(tmp_path, write):
    contents = {f"{n}.bin": bytes((n * k) % 251 for k in range(700)) for n in range(3)}
    whole = write(tmp_path / "whole", contents).read_bytes()
    for length in range(1, len(whole) - 20, 97):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut is"), files_in(str(tmp_path / "cut"), "any", "y") as files:
            assert {name: read() for name, read in files.items()} == contents


def test_a_tar_without_compression_is_known_to_be_cut_between_two_files(tmp_path):
    with tarfile.open(tmp_path / "whole", "w") as archive:
        archive.add(write_folder(tmp_path / "source", {"a": b"1", "b": b"2"}), arcname=".")
    for length in (1024, 1536, 2048):
        (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:length])
        with pytest.raises(ValueError, match="cut is"), files_in(str(tmp_path / "cut"), "any", "y"):
            pass


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_damaged_bytes_are_an_error_that_names_the_archive_or_change_nothing(tmp_path, write):
    contents = {f"{n}.bin": bytes((n * k) % 251 for k in range(700)) for n in range(2)}
    whole = bytearray(write(tmp_path / "whole", contents).read_bytes())
    for place in range(0, len(whole), 41):
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x55
        (tmp_path / "spoilt").write_bytes(spoilt)
        try:
            with files_in(str(tmp_path / "spoilt"), "any", "y") as files:
                _ = {name: read() for name, read in files.items()}
        except ValueError as error:
            assert "spoilt" in str(error)


def test_an_encrypted_file_is_named(tmp_path):
    whole = bytearray(write_zip(tmp_path / "x.zip", {"a.png": b"1" * 20}).read_bytes())
    whole[6] |= 1  # the flag in the file's own header, and in the list of all files
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(whole)
    with (
        pytest.raises(ValueError, match=r"x.zip: a.png cannot be read, .* encrypted"),
        files_in(str(tmp_path / "x.zip"), "any", "y") as files,
    ):
        files["a.png"]()


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
