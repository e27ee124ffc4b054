"""Networks between the stages: a file of weights, marked with what has to be known about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Metadata of a network's file: the training images held out (data.holdout) when it was trained.
HELD_OUT = "validation"
# And of a network that was not trained here: `lobs_paper.networks.pretrained.origin`.
ORIGIN = "origin"
# What is said of a network that training has spoilt; then the key.
DIVERGED = "training has diverged and nothing is written, try a smaller"


def save_network(
    config: Mapping[str, Any], path: Path, network: nn.Module, marks: Mapping[str, str] | None = None
) -> None:
    """Write a network's weights, marked with how many training images were held out from them, and further marks."""
    from lobs_paper.files import save_tensors

    save_tensors(path, network.state_dict(), {HELD_OUT: str(config["data"]["holdout"]), **(marks or {})})


def check_finite(network: nn.Module, what: str) -> None:
    """Check that a network computes at all.

    Args:
        network: trained or loaded.
        what: begins the message: whose numbers these are.

    Raises:
        ValueError: a weight is NaN or infinite, or a buffer NaN (a mask may be infinite).
    """
    import torch

    bad = {name: "NaN" for name, buffer in network.named_buffers() if bool(torch.isnan(buffer).any())}
    for name, weight in network.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            bad[name] = "NaN" if bool(torch.isnan(weight).any()) else "infinite"
    if bad:
        name = next(iter(bad))
        raise ValueError(f"{what}: {bad[name]} values in {name!r}{f' and {len(bad) - 1} more' * (len(bad) > 1)}")


def load_network(config: Mapping[str, Any], path: Path, made_by: str) -> nn.Module:
    """The experiment's network with the weights of a file.

    Args:
        config: of the stage.
        path: a state dict that `save_network` wrote.
        made_by: the command that writes it.

    Returns:
        The network, on the CPU.

    Raises:
        ValueError: the weights belong to another network, are no numbers, or have seen the images that are to be held
            out.
    """
    import torch

    from lobs_paper.files import tensor_file
    from lobs_paper.networks.build import build

    # Convolutions are up to four times as fast this way on a CPU.
    network = build(config["model"]).to(memory_format=torch.channels_last)
    file = tensor_file(path, made_by)
    try:
        network.load_state_dict(file.tensors())
    except RuntimeError:
        raise ValueError(f"{path} holds another network than model={config['model']}: run `{made_by}`") from None
    check_finite(network, f"{path} is no network that can be used, delete it and run `{made_by}`")
    held_out, asked = file.metadata.get(HELD_OUT), str(config["data"]["holdout"])
    if held_out != asked:
        raise ValueError(
            f"data.holdout={asked} was asked for, but {path} was trained with data.holdout={held_out}, so its "
            f"error there would mean nothing: run `{made_by} data.holdout={asked} folders.runs=...` and give the same "
            f"folders.runs here"
        )
    return network
