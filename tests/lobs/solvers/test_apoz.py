"""ApoZ: units leave whole, and do not come back."""

import torch

import lobs


def test_apoz_keeps_removed_units_out_though_others_are_zero_everywhere_too():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    images = torch.rand(50, 6)
    with torch.no_grad():
        model[0].weight[5:] = 0  # removed in an earlier round
        model[0].bias[5:] = 0
        model[0].bias[0] = -100  # never active
    result = lobs.prune(model, lobs.collect_statistics(model, [images]), "apoz", density=0.6)
    kept = result.masks["0"].any(1)
    assert 3 <= int(kept.sum()) <= 5
    assert not kept[5:].any()
