"""Networks whose batches and outputs are of every kind, from their batches to the pruned network."""

import copy
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import lobs
from lobs.allocation.output_distance import OutputDistance
from lobs.calibration.output_fisher import output_sensitivity

A, B = torch.randn(96, 6), torch.randn(96, 5)
IMAGES = torch.randn(64, 3, 8, 8)


class Two(nn.Module):
    """Two inputs, the second of which says what of the first counts."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 12), nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, a, b):
        return self.head(torch.relu(self.left(a) + self.right(b)))


class Keywords(Two):
    def forward(self, *, a, b):
        return super().forward(a, b)


class Masked(Two):
    """The mask may be left out."""

    def forward(self, a, b, mask=None):
        return super().forward(a if mask is None else a * mask[:, None], b)


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Wrapped(Two):
    def forward(self, a, b):
        return Output(super().forward(a, b), a)


class Segmentation(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        return {"out": self.head(hidden), "aux": hidden}


@dataclass
class Graph:
    """Moves as one piece."""

    nodes: torch.Tensor
    device: torch.device | None = None

    def to(self, device):
        return Graph(self.nodes.to(device), device)


def split(*tensors):
    return zip(*(tensor.split(24) for tensor in tensors), strict=True)


def pairs():
    return [((a, b), torch.zeros(24)) for a, b in split(A, B)]


def lists():
    return [[[a, b], torch.zeros(24)] for a, b in split(A, B)]


def mappings(**more):
    return [{"a": a, "b": b, **more} for a, b in split(A, B)]


def graphs():
    return [Graph(torch.cat([a, b], 1)) for a, b in zip(A.split(8), B.split(8), strict=True)]


def of_graph(model, batch):
    assert batch.device is not None  # it was moved to the network's device
    return model(batch.nodes[:, :6], batch.nodes[:, 6:])


KINDS = {
    "two inputs": (Two, pairs, {}),
    "two inputs in a list": (Two, lists, {}),
    "by name": (Two, mappings, {}),
    "by name, UserDict": (Two, lambda: list(map(UserDict, mappings())), {}),
    "keywords only": (Keywords, mappings, {}),
    "without the mask": (Masked, pairs, {}),
    "with a mask": (Masked, lambda: mappings(mask=torch.ones(24)), {}),
    "dataclass": (Wrapped, pairs, {"output": "logits"}),
    "index": (nn.Sequential(nn.Linear(6, 8), nn.LSTM(8, 4)), lambda: A.split(24), {"output": 0}),
    "call": (Two, lambda: list(split(A, B)), {"call": lambda model, batch: model(*batch)}),
    "object": (Two, graphs, {"call": of_graph}),
    "segmentation": (Segmentation, lambda: IMAGES.split(16), {"output": "out"}),
    "all outputs": (Segmentation, lambda: IMAGES.split(16), {}),
}


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    network, batches, keywords = KINDS[request.param]
    return (network() if isinstance(network, type) else network), batches(), keywords


def test_pruned_in_sequence(kind):
    model, batches, keywords = kind
    result = lobs.prune(model, method="exact_obs", density=0.4, sequential=True, batches=batches, **keywords)
    assert result.density == pytest.approx(0.4, abs=0.02)


@pytest.mark.filterwarnings("ignore:.*gave way", "ignore:.*were not pruned")
def test_pruned_as_well_as_we_know(kind):
    model, batches, keywords = kind
    result = lobs.prune(model, batches=batches, density=0.3, refit=50, **keywords)
    assert result.density == pytest.approx(0.3, abs=0.02)
    assert not [note for note in result.notes if "not refitted" in note or "unseen" in note]
    assert result.refit.after <= result.refit.before
    assert lobs.correct(model, result.model, batches, "bias", **keywords) == "bias"


def test_two_inputs_give_what_one_of_both_does():
    class One(Two):
        def forward(self, x):
            return super().forward(x[:, :6], x[:, 6:])

    torch.manual_seed(0)
    two = Two()
    one = One()
    one.load_state_dict(two.state_dict())
    calls = [(one, torch.cat([A, B], 1).split(24)), (two, pairs())]
    found = [lobs.prune(model, batches=batches, density=0.3, refit=20) for model, batches in calls]
    for ours, theirs in zip(*(result.model.state_dict().values() for result in found), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_what_output_names_is_measured():
    model = Segmentation()
    batches = IMAGES.split(16)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.body.weight[0] = 0
        dense, pruned = (network(IMAGES)["out"].double() for network in (model, other))
    expected = (pruned - dense).square().sum() / (dense - dense.mean(0)).square().sum()
    measure = OutputDistance(model, batches, output="out")
    assert measure.of_network(other) == pytest.approx(float(expected), rel=1e-4)
    assert not output_sensitivity(model, batches, output=lambda outputs: outputs["aux"], layers=["body"]).keys() - {
        "body"
    }
    with pytest.raises(ValueError, match=r"layer 'head': no gradient reaches it"):
        output_sensitivity(model, batches, output="aux")
    with pytest.raises(ValueError, match=r"output='logits' is no part .* a dict of 'out', 'aux'"):
        lobs.collect_statistics(model, batches, output="logits")


def detector():
    """A detection network with fresh weights: a small backbone of one map, three classes."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    backbone.out_channels = 8
    anchors = AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),))
    model = RetinaNet(backbone, 3, anchor_generator=anchors, min_size=32, max_size=48, score_thresh=0.5)
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()  # its own fresh weights answer all pictures alike
    return model


def pictures(batches=8):
    generator = torch.Generator().manual_seed(1)
    sizes = [(3, 32, 40), (3, 36, 32)]
    return [([torch.rand(size, generator=generator) for size in sizes * 3], [{}] * 6) for _ in range(batches)]


def heads(model, batch):
    """What the network computes before it chooses boxes."""
    images, _ = model.transform(batch[0])
    return model.head([model.backbone(images.tensors)])


def test_a_detection_network_takes_lists_of_pictures():
    model = detector()
    statistics = lobs.collect_statistics(model, pictures())
    assert statistics["backbone.0"].inputs == 48
    result = lobs.prune(model, statistics, "magnitude", density=0.5)
    assert result.density == pytest.approx(0.5, abs=0.01)


def test_boxes_are_not_compared_but_what_they_are_chosen_from_is():
    model = detector()
    with pytest.raises(
        ValueError, match=r"number depends on the data cannot be compared: name a part .* output=.*call="
    ):
        lobs.prune(model, batches=pictures(), density=0.3)
    result = lobs.prune(
        model, method="exact_obs", density=0.4, sequential=True, batches=pictures(), call=heads, output="cls_logits"
    )
    assert result.density == pytest.approx(0.4, abs=0.02)
    result = lobs.prune(model, batches=pictures(), density=0.3, call=heads, refit=10)
    assert result.refit.after <= result.refit.before


def test_a_bare_pair_is_an_input_and_a_target():
    with pytest.raises(ValueError, match=r"missing 1 .*'b'; several inputs are given as \(\(a, b\), target\)"):
        lobs.prune(Two(), batches=list(split(A, B)), density=0.3)


def test_a_folder_belongs_to_one_call_and_one_output(tmp_path):
    def call(**keywords):
        given = {"batches": IMAGES.split(16), "folder": tmp_path, **keywords}
        lobs.prune(model, method="exact_obs", density=0.5, sequential=True, **given)

    model = Segmentation()
    call(call=lambda model, batch: model(batch))
    call(call=lambda model, batch: model(batch))
    for other in ({"call": lambda model, batch: model(2 * batch)}, {"output": "out"}):
        with pytest.raises(ValueError, match=r"holds parts of another call: .*batches.* differ"):
            call(**other)
