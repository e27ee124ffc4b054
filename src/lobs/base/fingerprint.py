"""Digests of what a call was given, and the note in its folder that ties finished parts to that call."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from lobs.base.arguments import check_folder
from lobs.base.atomic import replacing

CALL = "call.json"


def tensor_digest(tensor: Tensor) -> str:
    """A short digest of a tensor's dtype, shape and bytes."""
    plain = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    values = plain.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    data = values.view(torch.uint8).numpy().data if values.numel() else b""
    return f"{tensor.dtype}{tuple(tensor.shape)}{zlib.crc32(data):08x}"


def digest(parts: Iterable[object]) -> str:
    """One digest of many parts: tensors by their bytes, everything else by its text."""
    texts = (tensor_digest(part) if isinstance(part, Tensor) else str(part) for part in parts)
    return sha256("\n".join(texts).encode()).hexdigest()[:16]


def network_digest(model: nn.Module) -> str:
    """One digest of a network's modules, weights and buffers, wherever they lie.

    Args:
        model: its functions between the layers are no part of the state, so its own words (``repr``) count, too;
            counters (whole numbers, one each) and what is no tensor do not.

    Returns:
        16 hexadecimal digits.
    """
    words = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    state = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    kept = {key: value for key, value in state.items() if value.dim() or value.is_floating_point()}
    return digest([words, *(part for pair in kept.items() for part in pair)])


def claim_folder(folder: Path, call: Mapping[str, object]) -> None:
    """Note in a folder which call it belongs to, or refuse it where it belongs to another one.

    Args:
        folder: of finished parts; may not exist yet.
        call: what the call was given: texts and digests by what they are of.

    Raises:
        ValueError: the folder holds the parts of a call with something else, or of no known call.
    """
    texts = {key: str(value) for key, value in call.items()}
    note = folder / CALL
    if note.exists():
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            found = {"call": "an unreadable note"}
        other = [key for key in {**found, **texts} if found.get(key) != texts.get(key)]
        if other:
            key = other[0]
            values = f" ({_short(found.get(key))} there, {_short(texts.get(key))} now)"
            raise ValueError(
                f"folder={str(folder)!r} holds parts of another call: {', '.join(other)} differ{values}; give each "
                f"call a folder of its own, or empty this one"
            )
        return
    check_folder(folder)
    if any(folder.rglob("*.safetensors")) or any(folder.glob("*.json")):
        raise ValueError(
            f"folder={str(folder)!r} holds files and no {CALL} that says which call they belong to: give each call a "
            f"folder of its own, or empty this one"
        )
    with replacing(note) as unfinished:
        unfinished.write_text(json.dumps(texts, indent=1), encoding="utf-8")


def _short(text: str | None, most: int = 60) -> str:
    text = "nothing" if text is None else text
    return text if len(text) <= most else f"{text[:most]}..."
