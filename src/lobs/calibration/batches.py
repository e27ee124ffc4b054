"""Calibration batches that are the same on every reading.

Pruning in sequence, corrections and measured allocations go through the batches several times, and pair what they saw
of one network with what they see of another. A loader that shuffles, a random augmentation or a generator function
gives other batches the next time. Here they are read once and kept where they fit; else every further reading is
compared with the first one, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lobs.base.fingerprint import digest
from lobs.base.memory import available_bytes
from lobs.base.network_inputs import Call, Output, takes_one
from lobs.base.trees import leaves
from lobs.calibration.calling import CalledBatch, Calling, called
from lobs.calibration.inputs import check_batches, input_count, inputs_depend, network_input

# Share of the machine's free memory that batches may take which are kept for further readings.
MEMORY_SHARE = 0.25
# One input of so many is held out where something is compared, of at least so many inputs and at most so many of them.
HELD_OUT, FEWEST, MOST_HELD_OUT = 6, 48, 5000


class CalibrationBatches:
    """The batches of one call: kept in memory while they fit, else read anew and compared.

    Args:
        batches: any iterable of batches.
        memory: bytes that kept batches may take; None: `MEMORY_SHARE` of what is free now. A list's or tuple's batches
            are in memory already and always kept.

    Raises:
        TypeError: ``batches`` is no iterable of batches.
    """

    def __init__(self, batches: Iterable, memory: float | None = None) -> None:
        check_batches(batches)
        self._batches = batches
        self._room = MEMORY_SHARE * available_bytes() if memory is None else memory
        self._kept: list | None = []
        self._complete = False
        self._rest: Iterator | None = None
        self._digests: list[str] = []
        self._counts: list[int] = []
        self._first: object = None
        if isinstance(batches, (list, tuple)):
            self._kept, self._complete = list(batches), True
            self._first = next(iter(batches), None)
            self._counts = [input_count(batch) for batch in batches]

    def __iter__(self) -> Iterator:
        """One reading.

        Yields:
            The batches, the same ones every time.

        Raises:
            ValueError: they are others this time.
        """
        position = 0
        while self._kept is not None:
            if position < len(self._kept):
                yield self._kept[position]
                position += 1
            elif self._complete:
                return
            else:
                self._keep_next()
        yield from self._stream(position)

    @property
    def kept(self) -> bool:
        """Whether all batches are in memory now: a further reading costs nothing."""
        return self._kept is not None and self._complete

    @property
    def whole(self) -> bool:
        """Whether the inputs of a batch belong together (`whole_where_dependent`)."""
        first = self.first()
        return first is not None and called(first).calling.whole

    def first(self) -> object:
        """The first batch, which is always kept; None where there is none."""
        return next(iter(self), None) if self._first is None else self._first

    def input_counts(self) -> list[int]:
        """How many inputs each batch holds; reads all of them where that is not known yet."""
        if not self._complete:
            for _ in self:
                pass
        return self._counts

    def part(self, start: int, stop: int) -> CalibrationBatches:
        """Some of the batches, as batches of their own.

        Args:
            start: number of the first.
            stop: and of the first that does not belong to them.

        Returns:
            These batches.
        """
        if self.kept:
            return CalibrationBatches((self._kept or [])[start:stop])
        return CalibrationBatches(_Slice(self, start, stop), memory=0)

    def first_images(self, images: int) -> CalibrationBatches:
        """The batches that hold the first so many inputs, kept in memory."""
        taken, count = [], 0
        for batch in self:
            taken.append(batch)
            count += input_count(batch)
            if count >= images:
                break
        return CalibrationBatches(taken)

    def divided(self) -> tuple[CalibrationBatches, CalibrationBatches] | None:
        """The batches without some of their inputs, and those: a sixth of all, at most `MOST_HELD_OUT`.

        Of batches that are kept in memory every sixth input, so that an order of the data does no harm; of others, and
        of those whose inputs cannot be taken one by one (`Inputs.divisible`), the last batches.

        Returns:
            Both parts; None where there are fewer than `FEWEST` inputs, or one batch that is not kept.
        """
        counts = self.input_counts()
        total = sum(counts)
        if total < FEWEST:
            return None
        if self.kept and all(called(batch).inputs().divisible for batch in self._kept or []):
            every = max(HELD_OUT, -(-total // MOST_HELD_OUT))
            parts: tuple[list, list] = ([], [])
            start = 0
            for batch, count in zip(self._kept or [], counts, strict=True):
                chosen = (torch.arange(start, start + count) + 1) % every == 0
                for part, places in zip(parts, (~chosen, chosen), strict=True):
                    if places.any():
                        taken = called(batch).cut(count, places.nonzero()[:, 0])
                        part.append(taken if isinstance(batch, CalledBatch) else taken.content)
                start += count
            return CalibrationBatches(parts[0]), CalibrationBatches(parts[1])
        index, rest = len(counts), min(total // HELD_OUT, MOST_HELD_OUT)
        while index and rest > 0:
            index -= 1
            rest -= counts[index]
        return (self.part(0, index), self.part(index, len(counts))) if index else None

    def fingerprint(self) -> str:
        """A digest of everything that the batches hold; reads all of them where that has not been done yet."""
        self.input_counts()
        digests = self._digests if self._kept is None else [called(batch).digest() for batch in self._kept]
        return digest(digests)

    def _keep_next(self) -> None:
        """Read one more batch; where it does not fit, none are kept any longer."""
        assert self._kept is not None
        if self._rest is None:
            self._rest = iter(self._batches)
        try:
            batch = next(self._rest)
        except StopIteration:
            self._complete = True
            return
        self._first = batch if self._first is None else self._first
        self._room -= sum(leaf.numel() * leaf.element_size() for leaf in _tensors(batch))
        self._counts.append(input_count(batch))
        self._kept.append(batch)
        if self._room < 0:
            self._digests = [called(each).digest() for each in self._kept]
            self._rest = _chain(batch, self._rest)
            self._kept = None

    def _stream(self, position: int) -> Iterator:
        """Read on from a position without keeping anything."""
        if self._rest is not None and position == len(self._digests) - 1:
            source, index = self._rest, position  # the first reading goes on
        else:
            source, index = iter(self._batches), 0
            if source is self._batches:
                raise ValueError(
                    f"batches are needed several times and do not fit into memory, and the {type(source).__name__} "
                    f"given is used up after one reading: give a list or a DataLoader"
                )
        self._rest = None
        for batch in source:
            self._compare(index, batch)
            if index >= position:
                yield batch
            index += 1
        if self._complete and index != len(self._digests):
            raise ValueError(_different(f"{index} batches came where the first reading gave {len(self._digests)}"))
        self._complete = True

    def _compare(self, index: int, batch: object) -> None:
        digest = called(batch).digest()
        if index == len(self._digests) and not self._complete:
            self._digests.append(digest)
            self._counts.append(input_count(batch))
        elif index >= len(self._digests) or digest != self._digests[index]:
            raise ValueError(_different(f"batch {index} is not the one of the first reading"))


class _Slice:
    """Some batches of an iterable that starts anew each time."""

    def __init__(self, batches: Iterable, start: int, stop: int) -> None:
        self.batches, self.start, self.stop = batches, start, stop

    def __iter__(self) -> Iterator:
        return islice(iter(self.batches), self.start, self.stop)


def calibration_batches(batches: Iterable, memory: float | None = None) -> CalibrationBatches:
    """Batches that are the same on every reading; what is so already is given back as it is."""
    return batches if isinstance(batches, CalibrationBatches) else CalibrationBatches(batches, memory)


class _Loader:
    """Batches with how a network is called with them, of an iterable that starts anew each time."""

    def __init__(self, batches: Iterable, calling: Calling) -> None:
        self.batches, self.calling = batches, calling

    def __iter__(self) -> Iterator:
        return (called(batch, self.calling) for batch in self.batches)


class _Whole(_Loader):
    """The same, of batches that may know it already."""

    def __iter__(self) -> Iterator:
        return (CalledBatch(called(batch).content, self.calling) for batch in self.batches)


def whole_where_dependent(batches: CalibrationBatches, model: nn.Module) -> CalibrationBatches:
    """Batches none of whose inputs is taken out, where a network's answers to the first one's depend on each other.

    Args:
        batches: of the network's inputs.
        model: the network.

    Returns:
        The same batches.
    """
    first = batches.first()
    if first is None or called(first).calling.whole or not inputs_depend(model, network_input(first, model)):
        return batches
    found = _Whole(batches, replace(called(first).calling, whole=True))
    return CalibrationBatches(list(found)) if batches.kept else CalibrationBatches(found, memory=0)


def called_batches(
    batches: Iterable | None, model: nn.Module, call: Call | None = None, output: Output | None = None
) -> Any:
    """Batches that know how a network is called with them.

    Args:
        batches: any iterable of them; None stays None.
        model: the network: its forward says whether a list of inputs is one argument or several.
        call: a function of the network and a batch, which gives the outputs.
        output: what of the outputs is looked at.

    Returns:
        A list for a list or tuple, an iterator for an iterator, else an iterable that starts anew each time. Batches
        that know it already stay as they are.

    Raises:
        TypeError: ``batches`` is no iterable of batches, or ``call`` or ``output`` of another kind.
    """
    if batches is None:
        return None
    check_batches(batches)
    calling = Calling(call, output, takes_one(model))
    if isinstance(batches, CalibrationBatches) or calling == Calling():
        return batches
    if isinstance(batches, (list, tuple)):
        return [called(batch, calling) for batch in batches]
    return (called(each, calling) for each in batches) if isinstance(batches, Iterator) else _Loader(batches, calling)


def _different(what: str) -> str:
    return (
        f"batches gives other batches when it is read again ({what}), so that inputs and targets would not belong "
        f"together: switch shuffling and random augmentation off, or give a list of batches"
    )


def _tensors(batch: object) -> list[Tensor]:
    return [leaf for leaf in leaves(called(batch).content) if isinstance(leaf, Tensor)]


def _chain(first: object, rest: Iterator) -> Iterator:
    yield first
    yield from rest
