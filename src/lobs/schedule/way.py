"""How a network is gone through, apart from the budget and the method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral


@dataclass(frozen=True)
class Way:
    """The options of `lobs.prune` that say how.

    Attributes:
        sequential: front to back, or all layers from the dense network's inputs.
        stages: how many, or the shares before the last one.
        correct: a name in `lobs.registry.CORRECTIONS`.
        refit: whether the kept weights are refitted in the end, or in how many minibatches; None: where that is
            possible.
    """

    sequential: bool = False
    stages: int | Sequence[float] = 1
    correct: str = "none"
    refit: bool | int | None = False

    def __post_init__(self) -> None:
        for name in ("stages", "refit"):
            value = getattr(self, name)
            if getattr(value, "ndim", None) == 0:  # of NumPy or torch
                value = value.item()
                object.__setattr__(self, name, value)
            if isinstance(value, Integral) and not isinstance(value, bool):
                object.__setattr__(self, name, int(value))
        if isinstance(self.stages, Iterable) and not isinstance(self.stages, (str, bytes)):
            shares = [share.item() if hasattr(share, "item") else share for share in self.stages]
            object.__setattr__(self, "stages", tuple(shares))
        if not (self.refit is None or isinstance(self.refit, bool) or (isinstance(self.refit, int) and self.refit > 0)):
            raise ValueError(f"refit must be True, False or how many minibatches, 1 or more; got {self.refit!r}")

    def reads_again(self, stages: int) -> str | None:
        """The option for which the batches are read more than once; None where there is none.

        Args:
            stages: that there will be.

        Returns:
            Its name and value.
        """
        if self.sequential:
            return "sequential=True"
        if stages > 1:
            return f"stages={self.stages!r}"
        if self.correct != "none":
            return f"correct={self.correct!r}"
        return None if self.refit is False else f"refit={self.refit}"
