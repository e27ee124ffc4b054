"""Networks to go through front to back, and what every layer of them should become: all samples at once."""

import torch
from torch import nn

from lobs.calibration.layerwise import LayerwisePasses
from lobs.schedule.sequential import paired_statistics


class Residual(nn.Module):
    """Branches, a layer called twice, a ReLU that overwrites its input, a batch norm, a bias-free convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.inside = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.short = nn.Conv2d(2, 4, 1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x):
        short = self.short(x)
        y = self.relu(self.stem(x))
        y = self.norm(self.inside(y)) + short
        y = self.relu(self.shared(self.relu(self.shared(self.relu(y)))))
        return self.head(y.flatten(1))


def mlp(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 7, bias=False), nn.ReLU(), nn.Linear(7, 4)]
    return nn.Sequential(*layers).to(dtype)


def residual():
    torch.manual_seed(0)
    model = Residual().double()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model


NETWORKS = {"mlp": (mlp, (300, 8)), "residual": (residual, (60, 2, 6, 6))}


def pairs(dense, pruned, name, batches, base, keep):
    """`paired_statistics` of one layer alone."""
    walks = [LayerwisePasses(model, {name: model.get_submodule(name)}, batches) for model in (dense, pruned)]
    with walks[0], walks[1]:
        sizes = [len(batch) for batch in batches]
        return paired_statistics(*walks, pruned.get_submodule(name), name, sizes, base, keep)


def brute_force(dense, pruned, name, inputs):
    """X ``[n, d]`` of the pruned network and Z ``[n, out]`` of the dense one, from plain forward passes."""
    found = {}
    for key, model in (("pruned", pruned), ("dense", dense)):
        rows = []

        def hook(module, args, output, rows=rows):
            rows.append((args[0].clone(), output.clone()))

        handle = model.get_submodule(name).register_forward_hook(hook)
        with torch.no_grad():
            model.eval()(inputs)
        handle.remove()
        found[key] = rows
    module = dense.get_submodule(name)
    x, z = [], []
    for (given, _), (_, wanted) in zip(found["pruned"], found["dense"], strict=True):
        if isinstance(module, nn.Conv2d):
            given = nn.functional.unfold(given, module.kernel_size, 1, module.padding, module.stride).movedim(1, 2)
            wanted = wanted.flatten(2).movedim(1, 2)
        x.append(given.reshape(-1, given.shape[-1]))
        z.append(wanted.reshape(-1, wanted.shape[-1]))
    x, z = torch.cat(x), torch.cat(z)
    if module.bias is not None:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    return x, z


def plain_solution(x, z, weight, mask, damping):
    """Row by row the least of ||X w - z||^2 / n + lambda ||w - W||^2 on the mask, by lstsq."""
    system = torch.cat([x / len(x) ** 0.5, damping**0.5 * torch.eye(x.shape[1], dtype=x.dtype)])
    result = torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        target = torch.cat([z[:, row] / len(x) ** 0.5, damping**0.5 * weight[row]])
        result[row, kept] = torch.linalg.lstsq(system[:, kept], target[:, None], driver="gelsd").solution[:, 0]
    return result


def full_mask(mask, bias):
    mask = mask.flatten(1)
    return torch.cat([mask, torch.ones_like(mask[:, :1])], 1) if bias else mask
