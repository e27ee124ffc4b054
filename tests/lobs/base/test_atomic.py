"""Files appear whole or not at all."""

import pytest

from lobs.base.atomic import replacing


def test_a_file_appears_at_the_blocks_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as partial:
        partial.write_text("whole", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("ha", encoding="utf-8")
        raise KeyboardInterrupt
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ["old"]
