"""Files between the stages give what was written, or a sentence that names the file and the stage to run again."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.damage import damage, json_values
from lobs_paper.files import load_tensors, read_object, save_tensors, write_json
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.stages.folders import Folders
from lobs_paper.stages.network_files import load_network, save_network

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MODEL = {"_target_": "lobs_paper.networks.lenet300.LeNet300", "hidden": [3, 2]}


def config(tmp_path):
    data = {"name": "mnist", "holdout": 0}
    paths = {"output": None, "runs": str(tmp_path / "runs"), "data": str(tmp_path / "data")}
    return {"name": "x", "seed": 0, "model": MODEL, "data": data, "folders": paths, "train": {"epochs": 1}}


@pytest.fixture
def trained(tmp_path):
    """The configuration, and the folder of a finished train stage."""
    torch.manual_seed(0)
    with Folders(config(tmp_path)).result("train", {"error": 1.5, "images": 60}) as folder:
        save_network(config(tmp_path), folder / "model.safetensors", LeNet300(hidden=(3, 2)))
        save_tensors(folder / "masks.safetensors", {"fc1": torch.tensor([True, False])})
    return config(tmp_path), folder


def read(given):
    """What a later stage reads of the result; None where it is refused in a sentence."""
    folders = Folders(given)
    try:
        path = folders.input("train", "model.safetensors")
        state = load_network(given, path, folders.command("train")).state_dict()
        masks = load_tensors(folders.input("train", "masks.safetensors"), folders.command("train"))
        return folders.metrics("train", "error"), {**state, **masks}
    except ValueError as error:
        assert given["folders"]["runs"] in str(error) and "\n" not in str(error)
        assert "run `lobs train experiment=x seed=0`" in str(error) or "the stage that wrote it" in str(error)
        return None


@quick
@given(spoil=damage(), name=st.sampled_from(["model.safetensors", "masks.safetensors", "metrics.json"]))
def test_a_damaged_result_is_what_it_was_or_a_sentence(trained, spoil, name):
    given, folder = trained
    expected, content = read(given), (folder / name).read_bytes()
    assert expected is not None
    (folder / name).write_bytes(spoil(content))
    found = read(given)
    (folder / name).write_bytes(content)
    if found is not None:
        assert found[0] == expected[0]
        assert all(torch.equal(found[1][key], value) for key, value in expected[1].items())


@quick
@given(value=json_values, key=st.sampled_from(["made_from", "digest", "checksum", "error"]))
def test_metrics_that_say_anything_else_are_a_sentence(trained, value, key):
    given, folder = trained
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, key: value}))
    found = read(given)
    write_json(folder / "metrics.json", metrics)
    # Without `made_from` it is a result of an earlier version, which is said.
    assert found is None or value == metrics[key] or (key == "made_from" and not isinstance(value, dict))


@quick
@given(junk=st.binary(max_size=60))
def test_json_of_any_bytes_is_an_object_or_a_sentence(tmp_path, junk):
    for content in (junk, b'{"a":' + junk, b"[" * 3000 + junk):
        (tmp_path / "some.json").write_bytes(content)
        try:
            assert isinstance(read_object(tmp_path / "some.json"), dict)
        except ValueError as error:
            assert str(tmp_path / "some.json") in str(error)
