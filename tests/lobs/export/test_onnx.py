"""ONNX files give the network's own outputs, at any batch size."""

import sys

import pytest
import torch
from torch import nn

import lobs
from lobs_paper.networks.lenet5 import LeNet5


class BatchNormNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU6(), nn.Dropout()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
        )


@pytest.mark.slow
@pytest.mark.parametrize("compacted", [False, True], ids=["pruned", "compacted"])
@pytest.mark.parametrize("build", [LeNet5, BatchNormNet])
def test_onnxruntime_computes_what_the_pruned_network_computes(tmp_path, build, compacted):
    import onnxruntime

    torch.manual_seed(0)
    model = build()
    images = torch.randn(64, 1, 28, 28)
    model(images)  # batch norm's statistics
    pruned = lobs.prune(model, batches=[images], method="magnitude", density=0.2).model
    pruned = lobs.compact(pruned, images[:2]).model if compacted else pruned
    flags = [module.training for module in pruned.modules()]
    path = lobs.export_onnx(pruned, images[:1], tmp_path / "new" / "net.onnx")
    assert [module.training for module in pruned.modules()] == flags
    assert [entry.name for entry in path.parent.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(path)
    pruned.eval()
    for count in (1, 5, 64):
        (found,) = session.run(None, {"input": images[:count].numpy()})
        with torch.no_grad():
            assert (torch.from_numpy(found) - pruned(images[:count])).abs().max() < 1e-5


@pytest.mark.slow
def test_several_inputs_keep_their_names(tmp_path):
    import onnxruntime

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(5, 6)

        def forward(self, x, y):
            return self.one(x) + self.two(y).relu()

    model, x, y = Two().eval(), torch.randn(7, 4), torch.randn(7, 5)
    for number, example in enumerate(({"y": y[:1], "x": x[:1]}, (x, y))):
        session = onnxruntime.InferenceSession(lobs.export_onnx(model, example, tmp_path / f"{number}.onnx"))
        (found,) = session.run(None, {"x": x.numpy(), "y": y.numpy()})
        with torch.no_grad():
            assert (torch.from_numpy(found) - model(x, y)).abs().max() < 1e-5


def test_without_onnx_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("lobs.export.onnx.find_spec", lambda name: None if name == "onnxscript" else sys)
    with pytest.raises(ValueError, match=r"ONNX export needs onnxscript: install lobs\[export\]"):
        lobs.export_onnx(LeNet5(), torch.zeros(1, 1, 28, 28), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_exported_is_named_and_leaves_no_file(tmp_path):
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) > 0 else x

    with pytest.raises(ValueError, match="Branching cannot be exported to ONNX"):
        lobs.export_onnx(Branching(3, 3), torch.randn(2, 3), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_attention_is_exported_as_it_is_and_not_in_parts(tmp_path, monkeypatch):
    seen = []

    def export(model, args, path, **_):
        seen.append(["forward" in vars(module) for module in model.modules()])
        path.write_bytes(b"")

    monkeypatch.setattr(torch.onnx, "export", export)
    model = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    lobs.export_onnx(model, torch.randn(2, 3, 8), tmp_path / "net.onnx")
    assert seen and not any(seen[0])


@pytest.fixture
def exported(monkeypatch):
    """What torch's exporter is given, in its place."""
    seen = {}

    def export(model, args, path, **options):
        seen.update(model=model, args=args, training=model.training, gradients=torch.is_grad_enabled(), **options)
        path.write_bytes(b"onnx")

    monkeypatch.setattr(torch.onnx, "export", export)
    return seen


class Called(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(5, 6)

    def forward(self, x, y=None, scale=None, double=False):
        return self.one(x) if y is None else self.one(x) + self.two(y)


def test_one_input_is_called_input_and_a_batch_of_one_is_doubled(tmp_path, exported):
    model, x = Called().train(), torch.randn(1, 4)
    assert lobs.export_onnx(model, x, tmp_path / "net.onnx") == tmp_path / "net.onnx"
    assert (tmp_path / "net.onnx").read_bytes() == b"onnx"
    assert (exported["input_names"], exported["output_names"]) == (["input"], ["output"])
    assert torch.equal(exported["args"][0], torch.cat([x, x]))
    assert exported["dynamic_shapes"][0].keys() == {0}
    assert exported["dynamo"] is True and exported["external_data"] is False
    assert not exported["training"] and not exported["gradients"] and model.training
    lobs.export_onnx(model, torch.randn(3, 4), str(tmp_path / "net.onnx"))
    assert exported["args"][0].shape == (3, 4)


def test_every_batch_is_free_and_what_is_no_batch_stays_as_it_is(tmp_path, exported):
    x, y, scale = torch.randn(1, 4), torch.randn(1, 5), torch.tensor(2.0)
    lobs.export_onnx(Called(), {"x": x, "scale": scale, "y": y, "double": True}, tmp_path / "net.onnx")
    assert exported["input_names"] == ["x", "y", "scale"]
    first, second, *others = exported["args"]
    assert (first.shape, second.shape) == ((2, 4), (2, 5))
    assert others == [scale, True]
    free = exported["dynamic_shapes"]
    assert free[0].keys() == free[1].keys() == {0} and free[0][0] is free[1][0]
    assert free[2:] == (None, None)


def test_what_is_no_network_or_no_example_is_refused_before_a_file_is_made(tmp_path, exported):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        lobs.export_onnx({}, torch.randn(2, 4), tmp_path / "net.onnx")
    with pytest.raises(TypeError):
        lobs.export_onnx(Called(), None, tmp_path / "net.onnx")
    assert not exported and not list(tmp_path.iterdir())


def test_both_packages_are_named_where_both_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("lobs.export.onnx.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ONNX export needs onnx and onnxscript: install lobs\[export\]"):
        lobs.export_onnx(LeNet5(), torch.zeros(1, 1, 28, 28), tmp_path / "net.onnx")
