"""Sparse files: every bit comes back, the size is the one that a budget counts, and nothing else is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lobs
from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget, problem
from lobs.base.tensor_files import TensorFile, write_tensors
from lobs.export.sparse import FORMAT, decode, encode, read_sparse
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
