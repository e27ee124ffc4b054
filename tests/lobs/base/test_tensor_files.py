"""Files of tensors: readable by safetensors itself, the same bytes every time, written one tensor at a time."""

import json
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from lobs.base.tensor_files import DTYPES, layer_file, read_tensors, tensors_of_format, write_tensors


def drawn(dtype, shape, seed):
    """A tensor that does not lie contiguously where it has two axes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-100, 100, tuple(reversed(shape)), generator=generator).to(dtype)
    return values.permute([*reversed(range(len(shape)))])


tensors = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda key: key != "__metadata__"),
    st.builds(
        drawn,
        st.sampled_from(list(DTYPES)),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.integers(0, 99),
    ),
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(values=tensors, note=st.text(max_size=10))
def test_tensors_of_every_type_and_shape_come_back(tmp_path_factory, values, note):
    path = tmp_path_factory.mktemp("files") / "deep" / "some.safetensors"
    write_tensors(path, values, values.__getitem__, {"note": note})
    content = path.read_bytes()
    for found in (load_file(path), read_tensors(path)):
        assert found.keys() == values.keys()
        for key, value in values.items():
            assert found[key].dtype == value.dtype and torch.equal(found[key], value)
    with safe_open(path, "pt") as stored:
        assert stored.metadata() == {"note": note}
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    for key, entry in json.loads(content[8 : 8 + length]).items():
        assert key == "__metadata__" or entry["data_offsets"][0] % values[key].dtype.itemsize == 0
    write_tensors(path, values, values.__getitem__, {"note": note})
    assert path.read_bytes() == content


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive, most = [], 0

    def tensor(key):
        nonlocal most
        value = torch.full((100,), float(key))
        alive.append(weakref.ref(value))
        most = max(most, sum(reference() is not None for reference in alive))
        return value

    write_tensors(tmp_path / "some", map(str, range(9)), tensor, {})
    assert most <= 2, "the one that is written and the one that is made"
    assert len(alive) == 2 * 9
    assert [float(value[0]) for _, value in sorted(read_tensors(tmp_path / "some").items())] == list(range(9))


def test_a_failure_leaves_the_file_from_before(tmp_path):
    path = tmp_path / "some.safetensors"
    write_tensors(path, ["a"], lambda key: torch.ones(2), {})
    asked = []

    def fails_at_last(key):
        asked.append(key)
        if len(asked) == 4:
            raise MemoryError
        return torch.zeros(2)

    with pytest.raises(MemoryError):
        write_tensors(path, ["a", "b"], fails_at_last, {})
    assert torch.equal(read_tensors(path)["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_damaged_files_count_as_none(tmp_path):
    assert read_tensors(tmp_path / "missing") is None
    for content in (b"", b"junk", b"\xff" * 40):
        (tmp_path / "bad").write_bytes(content)
        with pytest.warns(UserWarning, match=r"bad is damaged \(.*\): it is computed again"):
            assert read_tensors(tmp_path / "bad") is None


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=2, max_size=2, unique=True))
def test_every_name_has_a_file_of_its_own_in_the_folder_itself(tmp_path_factory, names):
    folder = tmp_path_factory.getbasetemp()
    files = [layer_file(folder, name) for name in names]
    assert files[0] != files[1]
    assert all(file.resolve().parent == folder.resolve() and file.name.endswith(".safetensors") for file in files)


def test_a_file_names_its_format_and_version(tmp_path):
    path, values = tmp_path / "some.safetensors", {"a": torch.arange(3)}

    def refused(words):
        with pytest.raises(ValueError, match=words):
            tensors_of_format(path, "kind-2", "kind of file")

    refused("there is no kind of file .*some")
    path.write_bytes(b"no tensors")
    refused("is damaged or no safetensors file")
    write_tensors(path, values, values.__getitem__, {"other": "x"})
    refused(r"is no kind of file: its metadata have \['other'\], not 'kind-2'")
    write_tensors(path, values, values.__getitem__, {"kind-3": "x"})
    refused("is a kind of file of another version: 'kind-3', and 'kind-2' is what can be read")
    write_tensors(path, values, values.__getitem__, {"kind-2": "text"})
    tensors, text = tensors_of_format(path, "kind-2", "kind of file")
    assert text == "text"
    assert torch.equal(tensors["a"], values["a"])
