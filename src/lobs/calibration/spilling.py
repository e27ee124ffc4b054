"""Where collected layers are put: into memory where all of them fit, else onto the disk, group by group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lobs.base.distributed import gathered
from lobs.base.fingerprint import digest
from lobs.base.memory import ceiling
from lobs.base.notes import read_note, write_note
from lobs.base.tensor_files import OF, TensorFile, layer_file, read_part
from lobs.calibration.statistics import LayerStatistics, Statistics, StoredLayer
from lobs.layers.coverage import Calls
from lobs.layers.matrix import groups_of, matrix_shape
from lobs.layers.view import Prunable

CALLS = "calls.json"


class SpilledStatistics:
    """The layers that are still to be collected, in groups, and those that are finished.

    Args:
        modules: the layers wanted, by name.
        memory: ceiling on the second moments of a group, see `lobs.collect_statistics`.
        folder: where finished layers go; what lies there already is finished.
        distributed: whether all processes do this together; each has a folder of its own.

    Attributes:
        of: a digest of the call that files in the folder belong to; None: of a temporary one, or not known yet.

    Raises:
        ValueError: the ceiling is not positive.
    """

    of: str | None = None

    def __init__(
        self, modules: Mapping[str, Prunable], memory: float | None, folder: Path | None, distributed: bool
    ) -> None:
        self._device = next((module.weight.device for module in modules.values()), torch.device("cpu"))
        self._sizes = {name: moment_bytes(module) for name, module in modules.items()}
        self._distributed = distributed
        room = ceiling(memory, self._device)
        self._room = min(gathered(room)) if distributed else room
        self._kept: dict[str, LayerStatistics] = {}
        self._whole: dict[str, str] = {}  # digests of the files that are known to be as they were written
        self._temporary: TemporaryDirectory | None = None
        if folder is not None:
            self._folder: Path | None = folder
        elif sum(self._sizes.values()) > self._room:
            self._temporary = TemporaryDirectory(prefix="lobs-")
            self._folder = Path(self._temporary.name)
        else:
            self._folder = None
        self._calls = self._read_calls()

    def next_group(self, batches: Iterable) -> list[str]:
        """The layers to collect in the next pass, as many as fit; none where all are finished.

        Args:
            batches: that will be iterated.

        Returns:
            Their names.

        Raises:
            ValueError: several passes are needed, and the batches are used up after one.
        """
        names = list(self._sizes) if self._order is None else self._order
        missing = [name for name in names if not self._finished(name)]
        if self._distributed:  # processes that were interrupted may have got to different layers
            wanted = {name for each in gathered(missing) for name in each}
            missing = [name for name in self._sizes if name in wanted] if wanted != set(missing) else missing
        group: list[str] = []
        room = self._room
        for name in missing:
            room -= self._sizes[name]
            if group and room < 0:
                break
            group.append(name)
        if len(group) < len(missing) and isinstance(batches, Iterator):
            needed = sum(self._sizes[name] for name in missing)
            raise ValueError(
                f"the second moments of {len(missing)} layers take {needed / 2**30:.3g} GiB, the ceiling is "
                f"{self._room / 2**30:.3g} GiB (memory=), so several passes over the batches are needed, and the "
                f"{type(batches).__name__} given is used up after one: give a list, a DataLoader or another iterable "
                f"that starts anew"
            )
        return group

    @property
    def several(self) -> bool:
        """Whether the batches may be read more than once, by this call or by one that goes on with it."""
        return self._folder is not None

    def put(self, layers: Mapping[str, LayerStatistics], calls: Calls) -> None:
        """Put finished layers away.

        Args:
            layers: of one group.
            calls: of all layers; those that are not in it are never called.
        """
        if self._calls is None:
            self._calls = calls
            if self._folder is not None:
                write_note(self._folder / CALLS, vars(calls))
        for name, layer in layers.items():
            if self._folder is None:
                self._kept[name] = layer
            else:
                Statistics({name: layer}).save(self._file(name), {OF: self._of(name) or ""})
                self._whole[name] = TensorFile(self._file(name)).digest

    def statistics(self) -> Statistics:
        """All layers in the order of their first call; those on the disk are read when they are asked for."""
        calls = self._calls or Calls()
        order = self._order or []
        if self._folder is None:
            return Statistics({name: self._kept[name] for name in order}, calls)
        stored = {name: StoredLayer(self._file(name), name, self._device, self._whole[name]) for name in order}
        return Statistics(stored, calls, keep=self._temporary)

    @property
    def _order(self) -> list[str] | None:
        """The layers wanted in the order of their first call, once that is known."""
        return None if self._calls is None else [name for name in self._calls.called if name in self._sizes]

    def _finished(self, name: str) -> bool:
        if name in self._kept or name in self._whole:
            return True
        if self._folder is None or self._calls is None or (part := read_part(self._file(name), self._of(name))) is None:
            return False
        self._whole[name] = part.digest
        return True

    def _of(self, name: str) -> str | None:
        """What a layer's file is made from: the call, and the layer, as files can change places."""
        return None if self.of is None else digest([name, self.of])

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return layer_file(self._folder, name)

    def _read_calls(self) -> Calls | None:
        """What an interrupted run saw called."""
        path = None if self._folder is None else self._folder / CALLS
        note = None if path is None else read_note(path)
        found = None if note is None else Calls(**note)
        if self._distributed and None in gathered(found):
            return None
        return found


def moment_bytes(module: Prunable) -> int:
    """Bytes of a layer's second moment, float64 ``[groups, d, d]``."""
    size = matrix_shape(module)[1] + (module.bias is not None)
    return 8 * groups_of(module) * size**2
