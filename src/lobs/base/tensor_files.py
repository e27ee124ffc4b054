"""safetensors files written tensor by tensor, so that no more than one of them has to be in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from lobs.base.atomic import replacing
from lobs.base.warning import warn

OF = "of"
# Of a file's name without its endings: file systems take 255 bytes.
LONGEST = 200
DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
}


def write_tensors(
    path: Path, keys: Iterable[str], tensor: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file under a temporary name and rename it; the same tensors give the same bytes.

    Args:
        path: the file; its folder is made.
        keys: of all tensors.
        tensor: gives a tensor by its key; called twice for each.
        metadata: texts to store beside them.
    """
    described = {}
    for key in keys:
        value = tensor(key)
        described[key] = (value.dtype, list(value.shape), value.numel() * value.element_size())
        del value
    # Wide types first, so that all of them start at a multiple of their width.
    order = sorted(described, key=lambda key: -described[key][0].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for key in order:
        dtype, shape, size = described[key]
        header[key] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            values = tensor(key).detach().cpu().contiguous().flatten()
            values.view(torch.uint8).numpy().tofile(file)


def read_tensors(path: Path, of: str | None = None) -> dict[str, Tensor] | None:
    """The tensors of a finished part; None where there is none, or where it is damaged or another's, which is said.

    Args:
        path: the file.
        of: what the part has under `OF` in its metadata, a digest of what it was made from; None: not compared.

    Returns:
        The tensors by name.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if of is not None and (file.metadata() or {}).get(OF, of) != of:  # older parts have none
                warn(f"{path} holds what was made from another layer: it is computed again")
                return None
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        warn(f"{path} is damaged ({error}): it is computed again")
        return None


def tensors_of_format(path: str | Path, name: str, kind: str) -> tuple[dict[str, Tensor], str]:
    """Read a file whose metadata name its format and version.

    Args:
        path: the file.
        name: of the format, with its version at the end (``"lobs-sparse-1"``): the key in the metadata.
        kind: of file, in words.

    Returns:
        The tensors by name, on the CPU, and the text under the key.

    Raises:
        ValueError: the file is missing, damaged, of another kind or another version.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"there is no {kind} {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from None
    if name not in metadata:
        family = name.rpartition("-")[0]
        other = next((key for key in metadata if key.startswith(family)), None)
        if other is not None:
            raise ValueError(f"{path} is a {kind} of another version: {other!r}, and {name!r} is what can be read")
        raise ValueError(f"{path} is no {kind}: its metadata have {list(metadata)}, not {name!r}")
    return stored, metadata[name]


def layer_file(folder: Path, name: str) -> Path:
    """Where a folder of one file per layer keeps a layer, whatever characters its name holds and however many."""
    short = quote(name, safe="")
    if len(short) > LONGEST:
        short = f"{short[: LONGEST - 33]}-{sha256(name.encode()).hexdigest()[:32]}"
    return folder / f"{short}.safetensors"
