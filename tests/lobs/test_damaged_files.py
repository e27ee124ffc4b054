"""Every reader of the library's files either gives what was written or says in a sentence that it cannot."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from helpers.damage import damage, json_values
from lobs.base.tensor_files import TensorFile, read_part, write_tensors
from lobs.export.sparse import read_sparse

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def pruned():
    model = network()
    model[0].weight.data[torch.rand(5, 6) < 0.7] = 0.0
    return model


def statistics_of(path):
    return {
        f"{name}/{key}": value
        for name, layer in lobs.Statistics.load(path).items()
        for key, value in vars(layer).items()
        if isinstance(value, torch.Tensor)
    }


WRITERS = {
    "statistics": lambda path: lobs.collect_statistics(network(), [torch.ones(4, 6)]).save(path),
    "sparse": lambda path: lobs.save_sparse(pruned(), path),
    "sparse, alone": lambda path: lobs.save_sparse(pruned(), path),
    "compact": lambda path: lobs.save_compact(network(), path),
    "any": lambda path: write_tensors(path, state := network().state_dict(), state.__getitem__, {"note": "x"}),
}
READERS = {
    "statistics": statistics_of,
    "sparse": lambda path: lobs.load_sparse(path, into=network()).state_dict(),
    "sparse, alone": read_sparse,
    "compact": lambda path: lobs.load_compact(path, into=network()).state_dict(),
    "any": lambda path: TensorFile(path).tensors(),
}


@pytest.fixture(scope="module", params=sorted(READERS))
def written(request, tmp_path_factory):
    """A file's path, its bytes, what reads it and what that gives."""
    path = tmp_path_factory.mktemp("files") / "some.safetensors"
    WRITERS[request.param](path)
    return path, path.read_bytes(), READERS[request.param], READERS[request.param](path)


def read_or_refused(read, path):
    """What a reader gives; None where it refuses the file in one sentence that names it."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        try:
            found = read(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            return None
    return None if noted else found


@quick
@given(spoil=damage())
def test_damaged_bytes_give_what_was_written_or_a_sentence(written, spoil):
    path, content, read, expected = written
    path.write_bytes(spoil(content))
    found = read_or_refused(read, path)
    if found is not None:
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@quick
@given(data=st.data())
def test_crafted_files_give_something_or_a_sentence(written, data):
    """With checksums as they should be: texts that say something else, tensors of other shapes and types."""
    path, content, read, _ = written
    path.write_bytes(content)
    original = TensorFile(path)
    metadata, tensors = copy.deepcopy(original.metadata), original.tensors()
    if data.draw(st.booleans(), "texts"):
        key = data.draw(st.sampled_from(sorted(metadata)))
        known = json.loads(metadata[key]) if metadata[key][:1] in "[{" else {}
        for _ in range(data.draw(st.integers(1, 2))):
            place = known
            while isinstance(place, dict) and place:
                inner = data.draw(st.sampled_from(sorted(place)))
                if isinstance(place[inner], dict) and place[inner] and data.draw(st.booleans()):
                    place = place[inner]
                else:
                    place[inner] = data.draw(json_values)
                    break
        metadata[key] = data.draw(st.sampled_from([json.dumps(known), "", "{", "[" * 5000]))
    else:
        key = data.draw(st.sampled_from(sorted(tensors)))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        dtype = data.draw(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.uint8, torch.bfloat16]))
        tensors[key] = torch.ones(shape).to(dtype)
        if data.draw(st.booleans()):
            del tensors[key]
    write_tensors(path, tensors, tensors.__getitem__, metadata)
    read_or_refused(read, path)


@quick
@given(junk=st.binary(max_size=200))
def test_any_other_bytes_are_a_sentence(tmp_path, junk):
    for start in (b"", (len(junk) // 2).to_bytes(8, "little")):
        path = tmp_path / "junk"
        path.write_bytes(start + junk)
        for read in READERS.values():
            with pytest.raises(ValueError, match=r"junk is (damaged|no |another)|holds no layer statistics"):
                read(path)


def test_a_finished_part_is_whole_or_made_again(tmp_path):
    state = network().state_dict()
    write_tensors(tmp_path / "part", state, state.__getitem__, {})
    content = (tmp_path / "part").read_bytes()
    assert read_part(tmp_path / "part") is not None
    for place in range(0, len(content), 37):
        (tmp_path / "part").write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.warns(UserWarning, match="part is damaged or no finished part .*: it is computed again"):
            assert read_part(Path(tmp_path / "part")) is None


@pytest.mark.parametrize("allocation", ["relative", "measured"])
def test_damaged_parts_of_an_interrupted_call_are_computed_again(tmp_path, allocation):
    model, batches = network(), [torch.randn(40, 6)]
    options = {"method": "exact_obs", "density": 0.4, "allocation": allocation, "batches": batches}
    options |= {"sequential": True, "folder": tmp_path}
    expected = lobs.prune(model, **options).model.state_dict()
    parts = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "call.json"]
    assert len(parts) > 2
    for part in parts:
        content = part.read_bytes()
        part.write_bytes(content[: len(content) // 2] + b"\x07\x08" + content[len(content) // 2 + 2 :])
    with pytest.warns(UserWarning, match="is damaged.*: it is computed again"):
        found = lobs.prune(model, **options).model.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
