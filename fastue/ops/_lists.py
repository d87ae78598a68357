"""What the ops on lists of tensors share: the tensors of a place have the same shape, and are gone
through in the order of memory."""

from collections.abc import Sequence

import torch

from fastue.ops._checks import FLOAT_DTYPES


def same_order(row: Sequence[torch.Tensor]) -> bool:
    """Whether tensors of one shape have each element at the same place of a gapless memory."""
    if all([t.is_contiguous() for t in row]):
        return True
    return row[0].dim() == 4 and all(
        [t.is_contiguous(memory_format=torch.channels_last) for t in row]
    )


def alike(*lists: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The lists, with copies of the tensors that do not have the same order in memory."""
    rows = [
        row if same_order(row) else [t.contiguous() for t in row]
        for row in zip(*lists, strict=True)
    ]
    return [[row[k] for row in rows] for k in range(len(lists))]


def check(op: str, **lists: Sequence[torch.Tensor]) -> None:
    """Raise unless the lists are as long as each other, of one dtype and device, and the tensors of
    a place have one shape and the same order in memory."""
    (name, first), *others = lists.items()
    for other, tensors in others:
        if len(tensors) != len(first):
            raise ValueError(f"{op}: {len(first)} tensors in {name}, {len(tensors)} in {other}")
    for i, row in enumerate(zip(*lists.values(), strict=True)):
        dtype, device = first[0].dtype, first[0].device
        if any([t.shape != row[0].shape for t in row]):
            shapes = ", ".join(f"{k}[{i}] {list(t[i].shape)}" for k, t in lists.items())
            raise ValueError(f"{op}: shapes must be the same, got {shapes}")
        if dtype not in FLOAT_DTYPES or any([t.dtype != dtype for t in row]):
            dtypes = ", ".join(f"{k}[{i}] {t[i].dtype}" for k, t in lists.items())
            wanted = " or ".join(map(str, FLOAT_DTYPES))
            raise TypeError(f"{op}: all tensors must be of the same {wanted}, got {dtypes}")
        if any([t.device != device for t in row]):
            devices = ", ".join(f"{k}[{i}] on {t[i].device}" for k, t in lists.items())
            raise ValueError(f"{op}: all tensors must be on {device}, got {devices}")
        if not same_order(row):
            strides = ", ".join(f"{k}[{i}] {t[i].stride()}" for k, t in lists.items())
            raise ValueError(
                f"{op}: all must be contiguous or all channels_last, got strides {strides}"
            )
