"""Notes come back as they were written, or count as missing."""

import pytest

from lobs.base.notes import read_note, write_note


def test_a_note_comes_back(tmp_path):
    note = {"counts": {"0": 3, "2": 0}, "share": 1 / 3, "note": None, "names": ["\u00e9", "b"]}
    write_note(tmp_path / "new" / "note.json", note)
    assert read_note(tmp_path / "new" / "note.json") == note
    assert read_note(tmp_path / "none.json") is None


def test_every_flipped_bit_makes_it_a_missing_one(tmp_path):
    path = tmp_path / "note.json"
    write_note(path, {"counts": {"0": 3}})
    content = path.read_bytes()
    for place in range(8 * len(content)):
        spoiled = bytearray(content)
        spoiled[place // 8] ^= 1 << place % 8
        path.write_bytes(spoiled)
        if spoiled.isspace() or bytes(spoiled).split() == content.split():
            continue  # white space for white space
        with pytest.warns(UserWarning, match=r"note.json is damaged: it is computed again \(.*\)"):
            assert read_note(path) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{}", b'{"counts": {}}', b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_note_counts_as_missing(tmp_path, content):
    (tmp_path / "note.json").write_bytes(content)
    with pytest.warns(UserWarning, match="note.json is damaged"):
        assert read_note(tmp_path / "note.json") is None
