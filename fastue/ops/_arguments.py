"""What the public functions do to their arguments before they call an op."""

from collections.abc import Sequence

import torch

from fastue.ops._checks import is_dense


def plain(t: torch.Tensor | None) -> torch.Tensor | None:
    """Without a gradient: what an op does is not differentiated."""
    return t.detach() if t is not None and t.requires_grad else t


def dense(t: torch.Tensor) -> torch.Tensor:
    t = plain(t)
    return t if is_dense(t) else t.contiguous()


def interleaved(t: torch.Tensor | None) -> torch.Tensor | None:
    return t if t is None else plain(t).contiguous(memory_format=torch.channels_last)


def numbers(values: Sequence[float] | None) -> list[float]:
    return [] if values is None else values if type(values) is list else [float(v) for v in values]
