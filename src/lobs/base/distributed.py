"""Several processes of `torch.distributed`, each with its own share of the batches: their sums, their failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, distributed

T = TypeVar("T")


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many there are; 0 and 1 where no process group is initialised."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def require_group() -> None:
    """Check that there are processes to sum over.

    Raises:
        ValueError: no process group is initialised.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "distributed=True needs an initialised process group (torch.distributed.init_process_group, or a launcher "
            "that calls it); without one leave it at False"
        )


def summed(values: Tensor) -> Tensor:
    """The sum of all processes' tensors; may overwrite ``values``.

    Args:
        values: this process's, of the same shape and type in all.

    Returns:
        The sum, the same in every process, on the device of ``values``.
    """
    if rank_and_size()[1] == 1:
        return values
    # NCCL knows nothing but GPUs.
    home, through = values.device, "cuda" if distributed.get_backend() == "nccl" else values.device
    values = values.to(through).contiguous()
    distributed.all_reduce(values)
    return values.to(home)


def gathered(value: Any) -> list[Any]:
    """What every process gives, in the order of their numbers."""
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def of_first(value: T) -> T:
    """The first process's value, in every process."""
    if rank_and_size()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def together(work: Callable[[], T]) -> T:
    """Run something without communication in every process; where one fails, all raise and none waits for it.

    Args:
        work: what to run.

    Returns:
        Its result.

    Raises:
        Exception: what this process's work raised.
        ValueError: another process's work failed.
    """
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    reports = gathered(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report is not None:
            raise ValueError(f"process {rank} failed: {report}")
    return result  # type: ignore[return-value]
