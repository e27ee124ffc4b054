"""Files appear whole or not at all, and the same content gives the same bytes."""

from __future__ import annotations

import json

import pytest
import torch

from lobs_paper.files import load_tensors, read_json, read_object, save_tensors, tensor_file, write_csv, write_json


def test_json_keeps_the_order_of_its_keys(tmp_path):
    write_json(tmp_path / "a/b.json", {"z": 1, "a": [0.5, None]})
    text = (tmp_path / "a/b.json").read_text()
    assert text == '{\n  "z": 1,\n  "a": [\n    0.5,\n    null\n  ]\n}\n'


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, [{"a": 1}], ["a"])
    with pytest.raises(ValueError, match="'b'"):
        write_csv(path, [{"a": 2}, {"b": 3}], ["a"])
    assert path.read_text() == "a\n1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_metric_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_json(tmp_path / "m.json", {"error": float("nan")})
    assert not list(tmp_path.iterdir())


def test_tensors_come_back_and_their_bytes_do_not_depend_on_the_name(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3).T, "a": torch.tensor([True, False])}
    save_tensors(tmp_path / "x.safetensors", tensors)
    save_tensors(tmp_path / "y.safetensors", tensors)
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    back = load_tensors(tmp_path / "x.safetensors", "lobs x")
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_texts_beside_the_tensors_stand_in_the_order_of_their_names(tmp_path):
    texts = {name: f"{name} \u00e9 \\" for name in ("size", "age", "title", "md5", "source")}
    path = tmp_path / "x.safetensors"
    contents = set()
    for _ in range(5):
        save_tensors(path, {"a": torch.arange(6)}, texts)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert tensor_file(path, "lobs x").metadata == texts
    assert torch.equal(load_tensors(path, "lobs x")["a"], torch.arange(6))


def test_missing_and_damaged_files_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="run `lobs prune` first"):
        read_json(tmp_path / "none.json", "lobs prune")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678{}")
    with pytest.raises(ValueError, match=r"bad.safetensors is damaged .* run `lobs prune`"):
        load_tensors(tmp_path / "bad.safetensors", "lobs prune")


def test_json_is_read_back(tmp_path):
    write_json(tmp_path / "m.json", {"x": 1})
    assert read_json(tmp_path / "m.json", "") == json.loads((tmp_path / "m.json").read_text()) == {"x": 1}


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(ValueError, match=r"metrics\.json is a folder"):
        read_object(tmp_path / "metrics.json")
