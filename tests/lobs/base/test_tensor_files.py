"""Files of tensors: readable by safetensors itself, the same bytes every time, written one tensor at a time."""

import json
import pickle
import random
import resource
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lobs.base.tensor_files import (
    CHECKSUMS,
    DTYPES,
    TensorFile,
    layer_file,
    read_part,
    tensors_of_format,
    write_tensors,
)


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
    for found in (load_file(path), read_part(path).tensors()):
        assert found.keys() == values.keys()
        for key, value in values.items():
            assert found[key].dtype == value.dtype and torch.equal(found[key], value)
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    assert metadata.pop(CHECKSUMS) and metadata == {"note": note} == TensorFile(path).metadata
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
    assert [float(value[0]) for _, value in sorted(read_part(tmp_path / "some").tensors().items())] == list(range(9))


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
    assert torch.equal(read_part(path).tensor("a"), torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_damaged_files_count_as_none(tmp_path):
    assert read_part(tmp_path / "missing") is None
    for content in (b"", b"junk", b"\xff" * 40):
        (tmp_path / "bad").write_bytes(content)
        with pytest.warns(UserWarning, match=r"bad is damaged or no finished part \(.*\): it is computed again"):
            assert read_part(tmp_path / "bad") is None


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
    refused("is damaged or no kind of file")
    write_tensors(path, values, values.__getitem__, {"other": "x"})
    refused(r"is no kind of file: its metadata have \['other'\], not 'kind-2'")
    write_tensors(path, values, values.__getitem__, {"kind-3": "x"})
    refused("is a kind of file of another version: 'kind-3', and 'kind-2' is what can be read")
    write_tensors(path, values, values.__getitem__, {"kind-2": "text"})
    file, text = tensors_of_format(path, "kind-2", "kind of file")
    assert text == "text"
    assert torch.equal(file.tensor("a"), values["a"])


@pytest.fixture
def written(tmp_path):
    """A file of two tensors, and what it holds."""
    values = {"a": torch.arange(6.0).view(2, 3), "mask": torch.tensor([True, False, True])}
    write_tensors(tmp_path / "some", values, values.__getitem__, {"note": "12"})
    return tmp_path / "some", values


def spoiled(content, bits):
    """Bytes with so many of their bits flipped."""
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


NOTICED = "some is damaged|some was written by another version of lobs"


def test_every_flipped_bit_is_noticed_wherever_it_is(written):
    path, _ = written
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        path.write_bytes(spoiled(content, [bit]))
        with pytest.raises(ValueError, match=NOTICED):
            TensorFile(path, note=False).tensors()


def test_two_flipped_bits_are_noticed_where_one_hides_the_checksums(written):
    path, _ = written
    content = path.read_bytes()
    start = 8 * content.find(CHECKSUMS.encode())
    draws = random.Random(0)
    for _ in range(3000):
        one = draws.randrange(start, start + 8 * len(CHECKSUMS))
        other = draws.choice([bit for bit in range(8 * len(content)) if bit != one])
        path.write_bytes(spoiled(content, [one, other]))
        with pytest.raises(ValueError, match=NOTICED):
            TensorFile(path, note=False).tensors()


def test_a_checksum_that_begins_with_a_space_is_one(written):
    path, _ = written
    content = path.read_bytes()
    place = content.find(CHECKSUMS.encode()) + len(CHECKSUMS) + 3
    path.write_bytes(content[:place] + b" " + content[place + 1 :])
    with pytest.raises(ValueError, match="some is damaged"):
        TensorFile(path)


@pytest.mark.parametrize("key", ["format", "jobs-file-1", "blob-file-1", "lobs-file", "lobs-profile-1"])
def test_files_from_elsewhere_have_whatever_keys_they_like(tmp_path, key):
    save_file({"a": torch.arange(3)}, tmp_path / "theirs", metadata={key: "pt"})
    assert TensorFile(tmp_path / "theirs", note=False).metadata == {key: "pt"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2, dtype=torch.complex128), "'a' is of torch.complex128, which such a file cannot hold"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "'a' is of torch.qint8"),
        (torch.zeros(2, device="meta"), r"'a' has no values \(it is on the meta device\)"),
        (torch.eye(2).to_sparse(), "'a' is a sparse tensor"),
    ],
)
def test_tensors_that_no_file_holds_are_refused(tmp_path, value, said):
    with pytest.raises(ValueError, match=said):
        write_tensors(tmp_path / "some", ["a"], lambda _: value, {})
    assert not list(tmp_path.iterdir())


def test_views_that_conjugate_or_negate_are_written_as_what_they_show(tmp_path):
    values = torch.complex(torch.arange(3.0), torch.ones(3))
    shown = {"a": values.conj(), "b": values.conj().imag}
    write_tensors(tmp_path / "some", shown, shown.__getitem__, {})
    assert all(torch.equal(value, shown[key]) for key, value in TensorFile(tmp_path / "some").tensors().items())


def test_a_file_stays_the_one_that_was_opened(written):
    path, values = written
    file = TensorFile(path)
    other = {key: torch.ones_like(value) for key, value in values.items()}
    write_tensors(path, other, other.__getitem__, {})
    assert torch.equal(file.tensor("a"), values["a"])
    assert file.metadata == {"note": "12"}
    assert file.digest != TensorFile(path).digest


def test_another_process_opens_the_same_file_or_none(written):
    path, values = written
    file = TensorFile(path)
    copy = pickle.loads(pickle.dumps(file))
    assert torch.equal(copy.tensor("a"), values["a"])
    write_tensors(path, values, values.__getitem__, {})
    with pytest.raises(ValueError, match="some is another file than it was"):
        pickle.loads(pickle.dumps(file))


def test_a_full_disk_leaves_the_file_from_before(written):
    path, _ = written
    before = path.read_bytes()
    larger = {"a": torch.zeros(750)}
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_tensors(path, larger, larger.__getitem__, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_of_an_earlier_version_is_read_with_one_note(tmp_path):
    path, values = tmp_path / "old", {"a": torch.arange(3)}
    save_file(values, path, metadata={"note": "12"})
    with pytest.warns(UserWarning, match="old is of an earlier version of lobs and has no checksums") as noted:
        for _ in range(3):
            assert torch.equal(TensorFile(path).tensor("a"), values["a"])
    assert len(noted) == 1
    with pytest.warns(UserWarning, match="it has no checksums.*: it is computed again"):
        assert read_part(path) is None
    digest = TensorFile(path).digest
    save_file({"a": torch.arange(3) + 1}, path, metadata={"note": "12"})
    assert TensorFile(path).digest != digest


def test_a_file_of_a_later_version_is_refused(written):
    path, _ = written
    path.write_bytes(path.read_bytes().replace(CHECKSUMS.encode(), b"lobs-file-2"))
    with pytest.raises(ValueError, match=r"another version of lobs \(lobs-file-2, lobs-file-1 can be read\)"):
        TensorFile(path)


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}, "its tensors are not its"),
        ({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}, "8 bytes for shape"),
        ({"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}, "shape"),
        ({"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}, "KeyError 'F99'"),
        ({"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "its tensors are not its"),
        ([], "TypeError"),
    ],
)
def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path, entry, cause):
    text = json.dumps({"a": entry}).encode()
    (tmp_path / "claims").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match=f"claims is damaged .*{cause}.*: make it again"):
        TensorFile(tmp_path / "claims").tensors()
