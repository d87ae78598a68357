"""What every method gives back, and how a running method survives being killed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fastue.core.errors import UsageError
from fastue.data import checkpoint


@dataclass
class Perturbation:
    """Noise float32 [N,C,H,W] (per="sample") or [K,C,H,W] (per="class"), in [0,1] pixel units."""

    noise: Tensor
    per: str
    eps: float
    history: list[dict] = field(default_factory=list)
    converged: bool = True  # False where a stop rule was not met in the sweeps allowed
    surrogate: nn.Module | None = (
        None  # the network the noise was made with, as it stood at the end
    )

    def quantised(self) -> Tensor:
        """int8 in units of 1/255, rounded to nearest and never above the budget."""
        levels = budget_levels(self.eps)
        return self.noise.mul(255).round_().clamp_(-levels, levels).to(torch.int8).cpu()


def budget_levels(eps: float) -> int:
    """The largest whole number of 1/255 steps within an L-inf budget `eps` in [0,1] pixel units."""
    levels = int(eps * 255 + 1e-6)
    if not 1 <= levels <= 127:
        raise UsageError(
            f"--eps {eps:g}: must be between 1/255 and 127/255 to be written as 8-bit noise"
        )
    return levels


class Checkpointer:
    """Snapshots of (tensors, state) in `folder`, at most one every `seconds`; None as folder keeps nothing.

    A method calls `tick` wherever its state is consistent. What it computes must not depend on when that was.
    """

    def __init__(self, folder: Path | None, seconds: float = 30.0):
        self.folder, self.seconds = folder, seconds
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        return checkpoint.load(self.folder) if self.folder else None

    def tick(self, snapshot: Callable[[], tuple[dict[str, Tensor], dict]]) -> None:
        if self.folder and time.monotonic() - self._last >= self.seconds:
            checkpoint.save(self.folder, *snapshot())
            self._last = time.monotonic()


def pack(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Weights, buffers and momentum as one flat dict, for a checkpoint."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{i}"] = momentum
    return tensors


def unpack(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.SGD) -> None:
    """The reverse of `pack`, in place."""
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        if f"momentum.{i}" in tensors:
            buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{i}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer
