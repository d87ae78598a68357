"""Ranks under torchrun, which is the engine; one process otherwise.

Every function is called by all ranks at the same point. For a single process they do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastue.core import env

if TYPE_CHECKING:
    from torch import Tensor


def place() -> tuple[int, int]:
    """(this process's rank, how many ranks there are)."""
    return env.rank()


def first() -> bool:
    """Whether this process is the one that speaks and writes what there is one of."""
    return place()[0] == 0


def barrier() -> None:
    """Wait for all ranks."""
    if place()[1] > 1:
        _group().barrier()


def told(value: Any) -> Any:
    """What rank 0 passes here, for all."""
    if place()[1] == 1:
        return value
    box = [value]
    _group().broadcast_object_list(box)
    return box[0]


def average(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its mean over the ranks, in place; one message in all."""
    import torch

    ranks = place()[1]
    tensors = list(tensors)
    if ranks == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    _group().all_reduce(flat)
    flat /= ranks
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def total(tensor: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if place()[1] > 1:
        _group().all_reduce(tensor)
    return tensor


def gathered(part: Tensor) -> Tensor:
    """The parts [B, ...] of all ranks, equally long, behind each other."""
    import torch

    ranks = place()[1]
    if ranks == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(ranks)]
    _group().all_gather(parts, part)
    return torch.cat(parts)


def _group():
    import datetime

    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # The others wait for as long as one of them trains.
        dist.init_process_group(backend, timeout=datetime.timedelta(days=7))
    return dist
