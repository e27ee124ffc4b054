"""Files appear whole or not at all."""

import pytest
import torch
from safetensors.torch import save_file

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


def test_files_have_the_mode_of_any_new_file_whoever_writes_them(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "text") as partial:
        partial.write_text("x", encoding="utf-8")
    with replacing(tmp_path / "tensors") as partial:
        save_file({"a": torch.ones(2)}, partial)
    with replacing(tmp_path / "closed") as partial:
        partial.touch(0o600)
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1


def test_temporary_names_are_unique_and_a_failed_write_names_its_file(tmp_path):
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        first.touch()
        second.touch()
        assert first != second
    with pytest.raises(OSError, match="full") as found, replacing(tmp_path / "b"):
        raise OSError(28, "full")
    assert found.value.filename == str(tmp_path / "b")
