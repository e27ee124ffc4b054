"""Sparse files: every bit comes back, the size is the one that a budget counts, and nothing else is read."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lobs
from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget, problem
from lobs.base.tensor_files import TensorFile, write_tensors
from lobs.export import sparse
from lobs.export.sparse import FORMAT, decode, encode, file_costs, read_sparse
from lobs.export.sparse_layout import layout_bytes, sparse_bytes

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64]
DTYPES += [torch.int64, torch.int8, torch.uint16, torch.bool]


def same_bits(one, other):
    as_bytes = [tensor.contiguous().flatten().view(torch.uint8) if tensor.dim() else tensor for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*as_bytes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 37), (3, 5, 3, 3), (300, 450)], ids=str)
def test_every_layout_gives_every_bit_back_in_the_fewest_bytes(dtype, share, shape):
    torch.manual_seed(0)
    tensor = torch.where(torch.rand(shape) < share, torch.randint(1, 2, shape), 0).to(dtype)
    kept = int(tensor.contiguous().flatten().view(torch.uint8).view(-1, dtype.itemsize).any(dim=1).sum())
    layout, parts = encode(tensor)
    assert same_bits(decode(layout, parts, list(shape)), tensor)
    sizes = layout_bytes(torch.tensor(kept), tensor.numel(), dtype.itemsize)
    assert sum(part.numel() * part.itemsize for part in parts.values()) == sizes[layout] == min(sizes.values())


def test_all_four_layouts_are_used():
    flat = torch.zeros(100_000)
    used = []
    for kept in (100, 5_000, 40_000, 99_000):
        flat[:kept] = 1.0
        used.append(encode(flat[torch.randperm(100_000)].view(100, 1000))[0])
    assert used == ["positions", "blocks", "bitmask", "dense"]


def test_negative_zeros_nans_and_infinities_come_back_bit_by_bit():
    tensor = torch.zeros(40, 50)
    tensor[3, :4] = torch.tensor([-0.0, float("nan"), float("-inf"), 1e-45])
    tensor[4, 0] = torch.tensor(0x7FC12345, dtype=torch.int32).view(torch.float32)  # a NaN that carries a number
    layout, parts = encode(tensor)
    assert layout != "dense"
    back = decode(layout, parts, [40, 50])
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


class Everything(nn.Module):
    """Parameters, buffers, dtypes, a convolution in channels_last and two names for one tensor."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(70, 80).half()
        self.tied = self.linear
        self.register_buffer("table", torch.arange(12).view(3, 4) % 2)
        self.register_buffer("empty", torch.zeros(0, 4))
        for weight in (self.conv.weight, self.linear.weight):
            weight.data[torch.rand(weight.shape) < 0.9] = 0.0


def test_a_network_comes_back_with_buffers_and_tied_tensors(tmp_path):
    torch.manual_seed(0)
    model = Everything()
    payload = lobs.save_sparse(model, tmp_path / "new" / "net.safetensors")
    torch.manual_seed(1)
    other = Everything()
    assert lobs.load_sparse(tmp_path / "new" / "net.safetensors", into=other) is other
    for (name, tensor), back in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert same_bits(tensor, back), name
    stored = load_file(tmp_path / "new" / "net.safetensors")
    assert payload == sum(tensor.numel() * tensor.itemsize for tensor in stored.values())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.safetensors"]
    before = (tmp_path / "new" / "net.safetensors").read_bytes()
    lobs.save_sparse(model, tmp_path / "new" / "net.safetensors")
    assert (tmp_path / "new" / "net.safetensors").read_bytes() == before


@pytest.mark.parametrize("size", [150_000, 40_000, 12_000])
def test_a_budget_of_bytes_is_what_the_file_takes(tmp_path, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 150), nn.ReLU(), nn.Linear(150, 10))
    batches = [torch.randn(300, 200)]
    result = lobs.prune(model, batches=batches, method="magnitude", size=size)
    file = tmp_path / "net.safetensors"
    payload = lobs.save_sparse(result.model, file)
    kept = {name: int(mask.sum()) for name, mask in result.masks.items()}
    modules = dict(result.model.named_modules())
    expected = 0
    for name, count in kept.items():
        module = modules[name.removesuffix(".weight")]
        expected += float(sparse_bytes(torch.tensor(count), module.weight.numel())) + 4 * len(module.bias)
    assert payload == expected
    # The file with its header is no larger than asked, and what is left over is little.
    assert file.stat().st_size <= size
    dense = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    assert file.stat().st_size > size - 250 or payload == dense


def test_a_budget_near_the_dense_size_is_met_although_the_first_removals_save_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 10))
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, [torch.randn(50, 20)]), "magnitude")
    dense = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    for missing in (0, 1, 4, 30, 60):
        task = problem(paths, Budget(size=dense - missing))
        for allocation in ("relative", "uniform"):
            counts = allocate(paths, Budget(size=dense - missing), allocation)
            assert task.cost(counts) <= dense - missing
            assert any(counts.values()) == (missing > 0)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2))
    model[0].weight.data[torch.rand(30, 40) < 0.9] = 0.0
    lobs.save_sparse(model, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_file_of_another_network_is_refused_and_nothing_changed(file):
    longer = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"another network than Sequential: it lacks 2.bias, 2.weight and has nothing"):
        lobs.load_sparse(file, into=longer)
    with pytest.raises(ValueError, match=r"it lacks nothing and has 1.bias, 1.weight besides"):
        lobs.load_sparse(file, into=longer[:1])
    narrow = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 3))
    before = narrow[0].weight.clone()
    with pytest.raises(ValueError, match=r"fit Sequential: '1.weight' is \(2, 30\) .*, not \(3, 30\) .*; '1.bias'"):
        lobs.load_sparse(file, into=narrow)
    assert torch.equal(narrow[0].weight, before)
    with pytest.raises(ValueError, match=r"'0.weight' is \(30, 40\) torch.float32, not \(30, 40\) torch.float64"):
        lobs.load_sparse(file, into=nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2)).double())


def test_a_missing_damaged_or_foreign_file_is_named(file, tmp_path):
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2))
    with pytest.raises(ValueError, match=r"there is no sparse file .*other"):
        lobs.load_sparse(tmp_path / "other", into=model)
    (tmp_path / "half").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="half is damaged or no sparse file"):
        lobs.load_sparse(tmp_path / "half", into=model)
    save_file(dict(model.state_dict()), tmp_path / "plain")
    with pytest.raises(ValueError, match="plain is no sparse file: its metadata have"):
        lobs.load_sparse(tmp_path / "plain", into=model)


def spoiled(file, name, value):
    """The file with one stored tensor replaced, or removed."""
    opened = TensorFile(file)
    stored = {**opened.tensors(), name: value}
    assert list(opened.metadata) == [FORMAT]
    kept = {key: tensor for key, tensor in stored.items() if tensor is not None}
    write_tensors(file, kept, kept.__getitem__, opened.metadata)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.weight#values", torch.ones(3)),
        ("0.weight#values", None),
        ("0.weight#offsets", torch.zeros(7, dtype=torch.uint8)),
        ("0.weight#counts", torch.zeros(2, dtype=torch.int32)),
        ("0.bias", torch.zeros(31)),
        ("stray", torch.zeros(3)),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(file, name, value):
    spoiled(file, name, value)
    with pytest.raises(ValueError, match=r"net.safetensors is damaged"):
        lobs.load_sparse(file, into=nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2)))


@pytest.mark.parametrize(
    ("layout", "parts", "message"),
    [
        ("bitmask", {"values": torch.ones(2), "bits": torch.tensor([3, 0, 0], dtype=torch.uint8)}, "3 bytes of bits"),
        ("bitmask", {"values": torch.ones(2), "bits": torch.tensor([3], dtype=torch.uint8)}, "1 bytes of bits"),
        (
            "bitmask",
            {"values": torch.ones(1), "bits": torch.tensor([0, 128], dtype=torch.uint8)},
            "1 places for 1",
        ),
        (
            "blocks",
            {"values": torch.ones(2), "counts": torch.tensor([2]), "offsets": torch.tensor([5, 5])},
            "or out of order",
        ),
        ("blocks", {"values": torch.ones(1), "counts": torch.tensor([1]), "offsets": torch.tensor([12])}, "1 places"),
        ("blocks", {"values": torch.ones(2), "counts": torch.tensor([-2]), "offsets": torch.ones(2)}, "counts of 1"),
    ],
)
def test_places_outside_or_out_of_order_are_refused(layout, parts, message):
    with pytest.raises(ValueError, match=message):
        decode(layout, parts, [3, 4])


@pytest.mark.parametrize("shape", [[2**20, 2**30], [40, -30], [40, 30.0], "no"])
def test_a_small_file_that_claims_much_takes_no_memory(tmp_path, shape, monkeypatch):
    parts = {"weight#values": torch.ones(1), "weight#positions": torch.zeros(1, dtype=torch.int32)}
    index = {FORMAT: json.dumps({"weight": {"layout": "positions", "shape": shape}})}
    write_tensors(tmp_path / "small", parts, parts.__getitem__, index)
    monkeypatch.setattr(torch, "zeros", None)
    with pytest.raises(ValueError, match=r"small (holds 4.19e\+06 GiB of dense tensors, of memory|is damaged)"):
        read_sparse(tmp_path / "small")
    with pytest.raises(ValueError, match=r"does not fit Linear: 'weight' is \(1048576, 1073741824\)|is damaged"):
        lobs.load_sparse(tmp_path / "small", into=nn.Linear(40, 30, bias=False))


def test_what_is_no_tensor_cannot_be_stored(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"note": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match=r"'0._extra_state' of Sequential is a dict, only tensors are stored"):
        lobs.save_sparse(nn.Sequential(Extra(2, 2)), tmp_path / "net")
    model = nn.Module()
    model.register_buffer("a#b", torch.zeros(2))
    with pytest.raises(ValueError, match="a name with '#'"):
        lobs.save_sparse(model, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_buffer_of_torchs_sparse_kind_is_refused_in_a_sentence(tmp_path):
    model = nn.Linear(3, 2)
    model.register_buffer("places", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="a sparse tensor"):
        lobs.save_sparse(model, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layout", "parts", "message"),
    [
        ("positions", {"values": torch.ones(1), "positions": torch.tensor([-1])}, "1 places for 1 of 12 weights"),
        ("positions", {"values": torch.ones(1), "positions": torch.tensor([12])}, "1 places for 1 of 12 weights"),
        ("positions", {"values": torch.ones(2), "positions": torch.tensor([5, 5])}, "2 places for 2 of 12 weights"),
        ("positions", {"values": torch.ones(2), "positions": torch.tensor([5, 4])}, "out of order"),
        ("positions", {"values": torch.ones(1), "positions": torch.tensor([4, 5])}, "2 places for 1 of 12 weights"),
        ("bitmask", {"values": torch.ones(1), "bits": torch.tensor([0, 16], dtype=torch.uint8)}, "1 places for 1"),
        ("bitmask", {"values": torch.ones(3), "bits": torch.tensor([3, 0], dtype=torch.uint8)}, "2 places for 3"),
        ("blocks", {"values": torch.ones(1), "counts": torch.tensor([1, 0]), "offsets": torch.ones(1)}, "of 2 blocks"),
        ("blocks", {"values": torch.ones(2), "counts": torch.tensor([1]), "offsets": torch.ones(1)}, "counts of 1 blo"),
        ("blocks", {"values": torch.ones(1), "counts": torch.tensor([2]), "offsets": torch.ones(2)}, "counts of 1 blo"),
        ("blocks", {"values": torch.ones(0), "counts": torch.ones(0), "offsets": torch.ones(0)}, "counts of 0 blocks"),
        ("dense", {"": torch.ones(4, 3)}, r"a dense tensor has shape \[4, 3\], not \[3, 4\]"),
    ],
)
def test_places_and_shapes_that_are_off_by_one_are_refused(layout, parts, message):
    with pytest.raises(ValueError, match=message):
        decode(layout, parts, [3, 4])


def test_the_first_and_the_last_place_are_inside():
    expected = torch.zeros(3, 4)
    expected[0, 0], expected[2, 3] = 1.0, 2.0
    values = torch.tensor([1.0, 2.0])
    for layout, parts in (
        ("positions", {"positions": torch.tensor([0, 11], dtype=torch.uint8)}),
        ("bitmask", {"bits": torch.tensor([1, 8], dtype=torch.uint8)}),
        ("blocks", {"counts": torch.tensor([2], dtype=torch.uint16), "offsets": torch.tensor([0, 11]).byte()}),
    ):
        assert torch.equal(decode(layout, {"values": values, **parts}, [3, 4]), expected)
    places = {"counts": torch.tensor([1, 2]).to(torch.uint16), "offsets": torch.tensor([255, 0, 1], dtype=torch.uint8)}
    found = decode("blocks", {"values": torch.tensor([1.0, 2.0, 3.0]), **places}, [2, 129])
    assert found.flatten().nonzero()[:, 0].tolist() == [255, 256, 257]


@pytest.mark.parametrize(
    "entry",
    [{"layout": "zip", "shape": [2, 2]}, {"shape": [2, 2]}, {"layout": "dense"}, "dense", 3, None]
    + [{"layout": "dense", "shape": shape} for shape in ([2, -2], [True, 4], [2, 2.0], 4, ["2"])],
    ids=str,
)
def test_an_index_that_describes_no_tensor_is_damage(tmp_path, entry):
    stored = {"weight": torch.ones(2, 2)}
    write_tensors(tmp_path / "net", stored, stored.__getitem__, {FORMAT: json.dumps({"weight": entry})})
    with pytest.raises(ValueError, match="net is damaged"):
        read_sparse(tmp_path / "net")


@pytest.mark.parametrize("shape", [[2, -1], [-1], [True], [2.0, 2]], ids=str)
def test_sizes_that_no_tensor_has_are_damage_whatever_the_network(tmp_path, shape):
    stored = {"weight": torch.ones(2, 2)}
    index = {FORMAT: json.dumps({"weight": {"layout": "dense", "shape": shape}})}
    write_tensors(tmp_path / "net", stored, stored.__getitem__, index)
    with pytest.raises(ValueError, match=r"net is damaged.*shapes that no tensor has"):
        lobs.load_sparse(tmp_path / "net", into=nn.Linear(2, 2, bias=False))


def test_dense_tensors_that_do_not_fit_into_memory_are_refused_and_those_that_just_do_are_read(tmp_path, monkeypatch):
    model = nn.Linear(64, 32, bias=False)
    with torch.no_grad():
        model.weight[:, 1:] = 0
    lobs.save_sparse(model, tmp_path / "net")
    monkeypatch.setattr(sparse, "available_bytes", lambda: 64 * 32 * 4)
    assert torch.equal(read_sparse(tmp_path / "net")["weight"], model.weight)
    monkeypatch.setattr(sparse, "available_bytes", lambda: 64 * 32 * 4 - 1)
    with pytest.raises(ValueError, match=r"net holds 7.63e-06 GiB of dense tensors, of memory 7.63e-06 GiB are avail"):
        read_sparse(tmp_path / "net")
    monkeypatch.setattr(sparse, "available_bytes", lambda: 2**12)
    with pytest.raises(ValueError, match=r"net holds 7.63e-06 GiB of dense tensors, of memory 3.81e-06 GiB are avail"):
        read_sparse(tmp_path / "net")


class Twice(nn.Module):
    """Two names for one memory where that is asked for, and two buffers without any."""

    def __init__(self, shared):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 5)
        self.register_buffer("none", torch.zeros(0, 3))
        self.register_buffer("nothing", torch.zeros(0, 2))
        if shared:
            self.second.weight = self.first.weight


def test_different_values_do_not_go_into_shared_memory(tmp_path):
    torch.manual_seed(0)
    apart, shared = Twice(shared=False), Twice(shared=True)
    lobs.save_sparse(apart, tmp_path / "apart")
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    with pytest.raises(ValueError, match=r"'first.weight' and 'second.weight' share their memory there, and the file"):
        lobs.load_sparse(tmp_path / "apart", into=shared)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared.state_dict().items())
    with torch.no_grad():
        apart.second.weight.copy_(apart.first.weight)
    lobs.save_sparse(apart, tmp_path / "alike")
    lobs.load_sparse(tmp_path / "alike", into=shared)
    for name, tensor in shared.state_dict().items():
        assert torch.equal(tensor, apart.state_dict()[name])
    assert shared.second.weight is shared.first.weight


def kept_alone(model, names, share):
    """The network with so many of some layers' weights left."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name in names:
            weight = modules[name].weight
            weight.copy_(torch.where(torch.rand(weight.shape) < share, weight, 0).to(weight.dtype))
    return {name: int((modules[name].weight != 0).sum()) for name in names}


def left_over(path, tensors):
    """Bytes of a file's header that longer numbers and names of types would take: all that is unknown before it."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__")
    digits = len(str(sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())))
    left = 0
    for key, entry in header.items():
        left += len("BF16") - len(entry["dtype"]) + sum(digits - len(str(offset)) for offset in entry["data_offsets"])
        if "#" in key:
            left += len(str(tensors[key.split("#")[0]].numel())) - len(str(entry["shape"][0]))
    return left


@pytest.mark.parametrize("share", [1.0, 0.6, 0.1, 0.01])
@pytest.mark.parametrize("names", [[], ["0"], ["2", "0"]], ids=str)
def test_a_file_is_as_large_as_its_costs_say_or_a_little_smaller(tmp_path, names, share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 40), nn.BatchNorm1d(40), nn.Linear(40, 30).double(), nn.Linear(30, 9).half())
    with torch.no_grad():
        model[3].weight[:, 2:] = 0.0  # small, though it is none of the layers
    costs = file_costs(model, names)
    assert costs.copies == dict.fromkeys(names, 1)
    assert costs.value_bytes == {name: {"0": 4, "2": 8}[name] for name in names}
    kept = kept_alone(model, names, share)
    weights = sum(
        float(sparse_bytes(torch.tensor(count), {"0": 2000, "2": 1200}[name], costs.value_bytes[name]))
        for name, count in kept.items()
    )
    lobs.save_sparse(model, tmp_path / "net")
    left = costs.fixed + weights - (tmp_path / "net").stat().st_size
    assert left >= 0
    if share == 0.1 or not names:  # in blocks, which have the longest names
        state = model.state_dict()
        # Brackets, quotes and spaces: three a tensor, and a few bytes around all of them.
        assert 0 <= left - left_over(tmp_path / "net", state) - 3 * len(state) <= 24


def test_a_weight_that_is_written_twice_costs_twice(tmp_path):
    torch.manual_seed(0)
    model = Twice(shared=True)
    costs = file_costs(model, ["first"])
    assert (costs.copies, costs.value_bytes) == ({"first": 2}, {"first": 4})
    task = problem(
        lobs.layer_paths(model.first, lobs.collect_statistics(model.first, [torch.randn(9, 6)]), "magnitude"),
        Budget(size=2000),
        replace(costs, copies={"": 2}, value_bytes={"": 4}),
    )
    assert task.cost({"": 0}) == 2 * 4 * 30 and task.bound == pytest.approx(2000 - costs.fixed)
    assert task.cost({"": 28}) == 2 * (2 * (1 + 4))


def test_a_part_of_a_weight_has_no_bytes_of_its_own():
    model = nn.TransformerEncoderLayer(8, 2, 8)
    assert file_costs(model, ["linear1"]).copies == {"linear1": 1}
    with pytest.raises(ValueError, match=r"layer 'self_attn.q_proj' is a part of .* exclude=\['self_attn.q_proj'\]"):
        file_costs(model, ["linear1", "self_attn.q_proj"])


def test_tensors_of_one_dimension_and_none_are_stored_as_they_are():
    for tensor in (torch.zeros(1000), torch.tensor(0.0), torch.zeros(0, 5), torch.zeros(5, 0)):
        layout, parts = encode(tensor)
        assert (layout, list(parts)) == ("dense", [""])
        assert torch.equal(parts[""], tensor) and (parts[""] is not tensor)
    assert encode(torch.zeros(100, 2))[0] == "positions"
