"""Every method on every kind of layer: the error that is reported is the one that the layer's outputs show."""

import warnings

import pytest
import torch
from torch import nn

import lobs
from helpers.networks import net
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import unit_outputs


def attending():
    return net(lambda self, x: self.attend(x, x, x)[0].flatten(1), attend=nn.MultiheadAttention(6, 2, batch_first=True))


def remembering(kind):
    return net(lambda self, x: self.memory(x)[0].flatten(1), memory=kind(6, 4, batch_first=True))


def chain(layer):
    """With a layer behind it, since the last one's units are not removed."""
    return lambda: nn.Sequential(layer(), nn.Flatten(), nn.LazyLinear(3))


KINDS = {
    "Linear": (chain(lambda: nn.Linear(6, 5)), (6,)),
    "Linear on tokens": (chain(lambda: nn.Linear(6, 5)), (4, 6)),
    "Conv1d": (chain(lambda: nn.Conv1d(4, 4, 3, groups=2)), (4, 7)),
    "Conv2d": (chain(lambda: nn.Conv2d(2, 4, 3, padding=1)), (2, 5, 5)),
    "Conv3d": (chain(lambda: nn.Conv3d(2, 4, 2)), (2, 3, 3, 3)),
    "ConvTranspose1d": (chain(lambda: nn.ConvTranspose1d(4, 4, 3, stride=2, groups=2)), (4, 5)),
    "ConvTranspose2d": (chain(lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1)), (2, 4, 4)),
    "ConvTranspose3d": (chain(lambda: nn.ConvTranspose3d(2, 4, 2, stride=(1, 2, 1))), (2, 3, 2, 3)),
    "MultiheadAttention": (attending, (3, 6)),
    "LSTM": (lambda: remembering(nn.LSTM), (3, 6)),
    "GRU": (lambda: remembering(nn.GRU), (3, 6)),
}
REFUSED = {
    ("obd", "MultiheadAttention"): "BackPACK",
    ("obd", "LSTM"): "BackPACK",
    ("obd", "GRU"): "BackPACK",
    ("apoz", "MultiheadAttention"): "whole units can only be removed from a chain",
    ("apoz", "LSTM"): "whole units can only be removed from a chain",
    ("apoz", "GRU"): "whole units can only be removed from a chain",
}


def seen(model, inputs):
    """What every layer is given and gives, ``[samples, out]``, in the dense network."""
    calls = {}
    layers = lobs.layers.prunable_layers(model)
    handles = [
        layer.register_forward_hook(
            lambda module, args, output, name=name: calls.setdefault(name, []).append((args[0], output))
        )
        for name, layer in layers.items()
    ]
    with evaluation_mode(model), torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", list(lobs.methods()))
def test_the_error_of_every_method_on_every_kind(method, kind):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    model, inputs = make().eval(), torch.randn(40, *shape)
    model(inputs)
    model, inputs = model.double(), inputs.double()
    targets = torch.randint(model(inputs).shape[1], (40,))
    options = {"loss": "cross_entropy"} if method == "obd" else {}
    keep = 30 if method == "net_trim" else 0

    def prune():
        statistics = lobs.collect_statistics(model, [(inputs, targets)], keep_samples=keep, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lobs.prune(model, statistics, method, density=0.5)

    if (method, kind) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[method, kind]):
            prune()
        return
    result = prune()
    dense, pruned = (lobs.layers.prunable_layers(network) for network in (model, result.model))
    calls = seen(model, inputs)
    for record in result.layers:
        name = record.name
        alive, mask = pruned[name].weight != 0, result.masks[name]
        assert not (alive & ~mask).any()
        assert method == "net_trim" or torch.equal(alive, mask)  # whose program may set a kept weight to zero
        differences = [unit_outputs(dense[name], pruned[name].forward(given) - output) for given, output in calls[name]]
        error = torch.cat(differences).square().sum(1).mean()
        torch.testing.assert_close(torch.tensor(record.error).double(), error, rtol=1e-6, atol=1e-9)
