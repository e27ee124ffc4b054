"""Networks and batches that people bring, for the tests of what is pruned right and what is refused."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from lobs.layers.network import prunable_layers

torch.manual_seed(0)
X = torch.randn(256, 16)
Y = torch.randint(0, 4, (256,))


def mlp(out=4):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, out)).eval()


def conv():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)).eval()


class Net(nn.Module):
    """A network whose forward pass is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def net(forward, **modules):
    torch.manual_seed(1)
    return Net(forward, **modules).eval()


class Padded(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Cosine(nn.Linear):
    def forward(self, x):
        return functional.linear(functional.normalize(x), functional.normalize(self.weight), self.bias)


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


class Pairs(Dataset):
    def __len__(self):
        return 256

    def __getitem__(self, index):
        return X[index], Y[index]


class Fresh:
    """Other inputs on every reading: random augmentation."""

    def __iter__(self):
        return iter((X + 0.5 * torch.randn_like(X)).split(64))


def with_hook(model, kind):
    if kind == "output":
        model[0].register_forward_hook(lambda module, args, output: output + 1)
    else:
        model[0].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    return model


def tied(bias=False):
    model = net(lambda self, x: self.b(torch.relu(self.a(x))), a=nn.Linear(16, 16, bias), b=nn.Linear(16, 16, bias))
    model.b.weight = model.a.weight
    return model


def tied_by_data():
    model = net(lambda self, x: self.b(torch.relu(self.a(x))), a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    model.b.weight.data = model.a.weight.data
    return model


def embedding():
    tokens = nn.Embedding(16, 8)
    model = net(lambda self, x: self.head(self.embed(x.abs().long() % 16).mean(1)), embed=tokens, head=nn.Linear(8, 16))
    model.head.weight = tokens.weight
    return model


def compiled(how):
    model = mlp()
    if how == "in place":
        model[2].compile(backend="eager")
        return model
    return torch.compile(model, backend="eager")


def cached():
    model = mlp()
    model.memory = model(X).sum(0)  # a tensor with a graph
    return model


def no_grad_trunk():
    def run(self, x):
        with torch.no_grad():
            x = torch.relu(self.a(x))
        return self.b(x)

    return net(run, a=nn.Linear(16, 12), b=nn.Linear(12, 4))


def checkpointed(reentrant):
    from torch.utils.checkpoint import checkpoint

    def run(self, x):
        return self.b(checkpoint(lambda y: torch.relu(self.a(y)), x.clone().requires_grad_(), use_reentrant=reentrant))

    return net(run, a=nn.Linear(16, 12), b=nn.Linear(12, 4))


def experts(empty):
    def run(self, x):
        first = x[:, 0] < (99 if empty else 0)
        result = x.new_zeros(len(x), 4)
        result[first], result[~first] = self.a(x[first]), self.b(x[~first])
        return result

    return net(run, a=nn.Linear(16, 4), b=nn.Linear(16, 4))


def again_if_positive():
    def run(self, x):
        hidden = torch.relu(self.a(torch.relu(self.stem(x))))
        if bool((x > 0).all()):
            hidden = torch.relu(self.a(hidden))
        return self.b(hidden)

    return net(run, stem=nn.Linear(16, 16), a=nn.Linear(16, 16), b=nn.Linear(16, 4))


def in_inference_mode():
    with torch.inference_mode():
        return [batch + 0 for batch in X.split(64)]


class Undecided(nn.Module):
    """Its graph depends on its inputs' values, which no export follows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        return inputs * self.weight if float(inputs.sum()) > 0 else inputs


class Normalised(nn.Sequential):
    """Divides by a norm, whose derivative at zero is NaN where its value is not."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__(nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, outputs))

    def forward(self, x):
        hidden = self[0](x)
        return self[1](hidden / (hidden.square().sum(1, keepdim=True).sqrt() + 1e-6))


def pruned(network, density=0.2):
    """The network with random weights, of which random ones are zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in prunable_layers(network).values():
            layer.weight.copy_(torch.randn_like(layer.weight) * (torch.rand_like(layer.weight) < density))
    return network.eval()
