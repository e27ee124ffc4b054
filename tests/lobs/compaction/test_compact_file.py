"""A compacted network comes back from its file into a fresh one, bit by bit; what does not fit is refused unchanged."""

import copy
import json

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import lobs
from helpers.compaction import ConvNet, Depthwise, Residual, kill
from lobs.compaction.compact_file import FORMAT
from lobs_paper.networks.lenet5 import LeNet5


class Gated(nn.Module):
    """A group norm, a scale, transposed convolutions, and a bias that compaction makes."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 12, 1), nn.GroupNorm(6, 12)
        self.up, self.scale = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.Parameter(torch.randn(8, 1, 1))
        self.two = nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x):
        return self.two(torch.sigmoid(self.scale * self.up(self.norm(self.one(x)))))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.block(x.flatten(2).mT))


def without_heads(model):
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            width = module.embed_dim
            module.in_proj_weight.data[2 * width : 2 * width + module.head_dim] = 0.0
    return model


def vision_transformer():
    return torchvision.models.VisionTransformer(16, 8, 2, 4, 24, 48, num_classes=5)


NETWORKS = {
    "batch norm": (ConvNet, (3, 16, 16)),
    "residual": (Residual, (3, 8, 8)),
    "depthwise": (Depthwise, (3, 9, 9)),
    "lenet5": (LeNet5, (1, 28, 28)),
    "gates": (Gated, (3, 4, 4)),
    "attention": (Attends, (12, 3, 3)),
    "vision transformer": (vision_transformer, (3, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_bit_by_bit(name, tmp_path):
    build, shape = NETWORKS[name]
    result = lobs.compact(without_heads(kill(build())), torch.randn(2, *shape))
    assert result.parameters_left < result.parameters
    stored = lobs.save_compact(result, tmp_path / "net.safetensors")
    expected = result.model.state_dict()
    assert stored == sum(entry.numel() * entry.itemsize for entry in expected.values())
    fresh = build().eval()
    loaded = lobs.load_compact(tmp_path / "net.safetensors", into=fresh)
    assert loaded is fresh
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], entry) for key, entry in expected.items())
    inputs = torch.randn(3, *shape)
    torch.testing.assert_close(loaded(inputs), result.model(inputs))
    assert str(loaded) == str(result.model)
    # Also from the network alone, and into what is compacted already.
    lobs.save_compact(result.model, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "net.safetensors").read_bytes()
    lobs.load_compact(tmp_path / "again.safetensors", into=loaded)


def test_modes_and_gradient_flags_are_those_of_the_fresh_network(tmp_path):
    lobs.save_compact(lobs.compact(kill(Residual()), torch.randn(2, 3, 8, 8)), tmp_path / "net.safetensors")
    fresh = Residual().train()
    fresh.stem.weight.requires_grad_(False)
    lobs.load_compact(tmp_path / "net.safetensors", into=fresh)
    assert fresh.stem.training
    assert not fresh.stem.weight.requires_grad
    assert fresh.one.weight.requires_grad


@pytest.fixture
def file(tmp_path):
    lobs.save_compact(lobs.compact(kill(Residual()), torch.randn(2, 3, 8, 8)), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def narrow():
    model = Residual()
    model.head = nn.Linear(8, 3)
    return model


def other_names():
    model = Residual()
    model.tail = nn.Linear(8, 3)
    return model


def buffered():
    model = Residual()
    model.register_buffer("steps", torch.zeros(3))
    return model


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (ConvNet, r"\(a compacted Residual\) does not fit ConvNet: '0' is nothing in the file and Conv2d in the"),
        (narrow, "out_features of 'head' is 4 in the file and 3 in the network"),
        (other_names, "'tail' is nothing in the file and Linear in the network"),
        (lambda: Residual().double(), r"'head.bias' is \(4,\) torch.float32, not \(4,\) torch.float64 or smaller"),
        (buffered, "the file lacks 'steps'"),
    ],
)
def test_another_network_is_refused_and_stays_as_it_is(build, words, file):
    model = build()
    before, text = copy.deepcopy(model.state_dict()), str(model)
    with pytest.raises(ValueError, match=words):
        lobs.load_compact(file, into=model)
    assert str(model) == text
    assert all(torch.equal(entry, before[key]) for key, entry in model.state_dict().items())


def rewrite(path, change):
    """Write a file anew with other metadata and tensors."""
    with safe_open(path, framework="pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118, not a dict
        index = json.loads(stored.metadata()[FORMAT])
    save_file(tensors, path, metadata=change(index, tensors))


def test_damaged_files_and_other_kinds_are_refused_in_a_sentence(file, tmp_path):
    whole = file.read_bytes()

    def refused(words):
        with pytest.raises(ValueError, match=words):
            lobs.load_compact(file, into=Residual())
        file.write_bytes(whole)

    with pytest.raises(ValueError, match="there is no compact file"):
        lobs.load_compact(tmp_path / "none", into=Residual())
    file.write_bytes(whole[:-10])
    refused("is damaged or no compact file")
    lobs.save_sparse(Residual(), file)
    refused("is no compact file: its metadata have")
    rewrite(file, lambda index, tensors: {"lobs-compact-9": json.dumps(index)})
    refused("is a compact file of another version: 'lobs-compact-9', and 'lobs-compact-1' is what can be read")
    rewrite(file, lambda index, tensors: {FORMAT: "[]"})
    refused(r"is damaged or no compact file \(TypeError")
    rewrite(file, lambda index, tensors: index["modules"]["one"].pop("groups") and {FORMAT: json.dumps(index)})
    refused("groups of 'one' is None in the file and 1 in the network")
    rewrite(file, lambda index, tensors: index["modules"]["one"].update(in_channels=1) or {FORMAT: json.dumps(index)})
    refused("'one' has a weight of shape .* and sizes")
    rewrite(file, lambda index, tensors: tensors.update(more=torch.ones(1)) or {FORMAT: json.dumps(index)})
    refused("'more' is in the file alone")


def test_tensors_that_share_memory_must_agree(tmp_path):
    class Tied(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            if tied:
                self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    lobs.save_compact(Tied(False), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"'one\.weight' shares its memory with another tensor in the network"):
        lobs.load_compact(tmp_path / "net.safetensors", into=Tied(True))
    model = Tied(True)
    lobs.save_compact(model, tmp_path / "tied.safetensors")
    loaded = lobs.load_compact(tmp_path / "tied.safetensors", into=Tied(True))
    assert loaded.two.weight is loaded.one.weight
    assert torch.equal(loaded.one.weight, model.one.weight)


def test_a_state_that_is_no_tensor_is_refused(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return 3

    with pytest.raises(ValueError, match="'_extra_state' of Counting is a int, only tensors are kept"):
        lobs.save_compact(Counting(2, 2), tmp_path / "net.safetensors")
