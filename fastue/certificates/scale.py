"""How strong the noise on each parameter is, relative to sigma: a fixed positive number each.

Noise sigma * s * z and shifts of length |v / s|_2 are those of the theorem in the coordinates
theta / s, so it holds for any s that is fixed before the draws. The canonical s makes it
indifferent to what a network does not notice: a filter in front of a BatchNorm may be rescaled.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastue.models.flat import flattened

_FILTERED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # weight [filters, ...]


def parameter_scale(model: nn.Module, x: Tensor, kind: str) -> Tensor:
    """s, float32 [D] in the layout of FlatParameters (padding is 1), on the device of the model.

    x are a few pictures as model input, for one pass that shows where outputs go.
    kind     "raw": 1 everywhere. "canonical": the root mean square of the weights of the
             parameter's group, or 1 where they are all 0. A filter (weights and bias) whose output
             goes straight into a BatchNorm is a group, so is every other module with parameters of
             its own. Where a module has weights of two dimensions or more, those alone are
             measured: its biases share their scale and may be moved without changing it.
    """
    scales = {id(p): torch.ones_like(p) for p in model.parameters()}
    if kind == "canonical":
        before_norm = filters_before_norm(model, x)
        seen: set[int] = set()
        for part in model.modules():
            own = [p for p in part.parameters(recurse=False) if id(p) not in seen]
            if own:
                seen |= {id(p) for p in own}
                _measure(own, part in before_norm, scales)
    return flattened([scales[id(p)] for p in model.parameters()], padding=1.0)


@torch.no_grad()
def filters_before_norm(model: nn.Module, x: Tensor) -> set[nn.Module]:
    """Convolutions and linear layers whose output, untouched, is the input of a BatchNorm."""
    made: dict[int, tuple[nn.Module, Tensor, int]] = {}  # kept, so that no id is used twice
    found: set[nn.Module] = set()

    def leaves(part: nn.Module, _: object, y: Tensor) -> None:
        made[id(y)] = (part, y, y._version)

    def enters(_: nn.Module, inputs: tuple) -> None:
        part, _, version = made.get(id(inputs[0]), (None, None, None))
        if part is not None and inputs[0]._version == version:  # nothing was written in between
            found.add(part)

    with _hooks(model, leaves, enters):
        model(x)
    return found


@contextlib.contextmanager
def _hooks(model: nn.Module, leaves, enters) -> Iterator[None]:
    """In eval mode, so that the pass changes no statistics."""
    training = [part for part in model.modules() if part.training]
    hooks = []
    for part in model.modules():
        if isinstance(part, _FILTERED):
            hooks.append(part.register_forward_hook(leaves))
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            hooks.append(part.register_forward_pre_hook(enters))
    try:
        model.eval()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in training:
            part.training = True


def _measure(own: list[nn.Parameter], by_filter: bool, scales: dict[int, Tensor]) -> None:
    """On the CPU in float64, and rounded once: the same on every machine."""
    weights = [p for p in own if p.ndim > 1] or own
    values = [p.detach().cpu().double() for p in weights]
    if by_filter:  # one weight; rows are filters
        rms = values[0].flatten(1).square().mean(1).sqrt()
    else:
        rms = (sum(v.square().sum() for v in values) / sum(v.numel() for v in values)).sqrt()
    rms = torch.where(rms > 0, rms, 1.0).float()
    for p in own:
        filters = rms.view(-1, *[1] * (p.ndim - 1)) if by_filter else rms
        scales[id(p)].copy_(filters.expand(p.shape))
