"""Lightning's training of a pruned network, and pruning as its first step."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lobs
from lobs.layers import prunable_layers

pl = pytest.importorskip("pytorch_lightning")
from lobs.integrations.lightning import KeepMasks, PruneCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*lightning.*")
torch.manual_seed(0)
X, Y = torch.randn(96, 12), torch.randint(3, (96,))


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01, weight_decay=0.1)


def fit(module, callback, tmp_path, steps=6, **options):
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, DataLoader(TensorDataset(X, Y), 32, shuffle=True), **options)
    return trainer


@pytest.mark.parametrize("network", ["", "net"])
@pytest.mark.parametrize("given", ["result", "masks", "zeros"])
def test_masks_are_kept(tmp_path, network, given):
    module = Module()
    pruned = module.get_submodule(network)
    result = lobs.prune(pruned, batches=list(X.split(32)), method="magnitude", density=0.3, in_place=True)
    before = module.net[0].weight.detach().clone()
    masks = {"result": result, "masks": result.masks, "zeros": None}[given]
    fit(module, KeepMasks(masks, network), tmp_path)
    for name, layer in prunable_layers(pruned).items():
        assert not layer.weight[~result.masks[name]].any()
    assert not torch.equal(module.net[0].weight, before)


@pytest.mark.parametrize("network", ["", "net"])
@pytest.mark.parametrize("batches", [None, list(X.split(24))])
def test_pruned_at_the_start_and_kept_after_a_checkpoint(tmp_path, network, batches):
    module = Module()
    callback = PruneCallback(batches, network=network, density=0.3, method="exact_obs", sequential=True)
    trainer = fit(module, callback, tmp_path)
    layers = prunable_layers(module.get_submodule(network))
    assert callback.result.model is module.get_submodule(network) and callback.result.density == pytest.approx(0.3, 0.1)
    assert module.training
    assert all(torch.equal(layer.weight != 0, callback.result.masks[name]) for name, layer in layers.items())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    resumed, again = Module(), PruneCallback(batches, network=network, density=0.1)
    fit(resumed, again, tmp_path, steps=9, ckpt_path=tmp_path / "some.ckpt", weights_only=False)
    assert again.result is None
    for name, layer in prunable_layers(resumed.get_submodule(network)).items():
        assert torch.equal(layer.weight != 0, callback.result.masks[name])


def test_without_lightning_it_says_what_to_install():
    hidden = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None; import lobs.repair.masks; "
    )
    ran = subprocess.run(
        [sys.executable, "-c", hidden + "import lobs.integrations.lightning"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        "ImportError: lobs.integrations.lightning needs Lightning: install lightning or pytorch-lightning" in ran.stderr
    )
