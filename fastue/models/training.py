"""One optimiser step and one evaluation pass, shared by surrogates and victims.

In float32, or under bf16 autocast.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue import distributed
from fastue.core.errors import UsageError

PRECISIONS = ("auto", "float32", "bf16")


def resolve_precision(precision: str, device: torch.device | str = "cpu") -> str:
    """`float32` or `bf16`; `auto` takes bf16 where the device has matrix units for it.

    That is CUDA from sm_80 on, and a CPU with AMX.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: use one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = (
            device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        )
    return "bf16" if fast else "float32"


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU.

    Raises UsageError for a device torch cannot use here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--device {device}: not usable here ({reason}); use auto or cpu"
        ) from error
    return torch.device(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Forward passes inside run in bf16 where `precision` is bf16; nothing changes for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def to_input(x: Tensor) -> Tensor:
    """uint8 pictures [B,C,H,W] as model input: float32 in [0,1], channels_last."""
    return x.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def sgd(
    model: nn.Module, lr: float, *, momentum: float = 0.9, weight_decay: float = 5e-4
) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=weight_decay)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    precision: str,
    clip: float,
    average: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """One step of `loss` (logits, y) on model input x [B,C,H,W], gradients clipped at norm `clip`.

    With `average` all ranks make one step, each with its part of the batch (see average_ranks).
    Returns the loss, 0-d.
    """
    with autocast(x.device, precision):
        value = loss(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if average:
        average_ranks(model)
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return value.detach()


def average_ranks(model: nn.Module) -> None:
    """Gradients and running statistics become their mean over the ranks: what
    DistributedDataParallel does, in one message and for weights that are moved by hand, too.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    distributed.average([*gradients, *(b for b in model.buffers() if b.is_floating_point())])


@torch.no_grad()
def hits(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]], *, precision: str
) -> Tensor:
    """Which pictures are classified right in eval mode, bool [N] on their device, over uint8
    batches (x, y, index) in order."""
    model.eval()
    right = []
    for x, y, _ in batches:
        with autocast(x.device, precision):
            right.append(model(to_input(x)).argmax(1) == y)
    return torch.cat(right)


def accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]], *, precision: str
) -> float:
    """Percent of pictures classified right, as `hits`. One read-back from the device in all."""
    return percent(hits(model, batches, precision=precision))


def percent(right: Tensor) -> float:
    """Share of True in a bool tensor, in percent."""
    return 100.0 * float(right.sum()) / max(len(right), 1)
