"""What may be done to a picture: the kind of change, the norm it is measured in, and how large it
may be.

Imports no torch: the methods' settings are read to print `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastue.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

NORMS = ("linf", "l2")
# How noise becomes a picture (data/writers.py). A method that is no sum, such as a convolution,
# adds its kind here.
CHANGES = {
    "additive": "clip(x + noise, 0, 255)",
    "positive": "the same with every negative noise value at 0",
}
_MOST = 127  # of a noise value as int8, in 1/255
_BLOCK = 512  # rows whose float64 copy is in memory at a time


@dataclass(frozen=True)
class Budget:
    """`eps` in [0,1] pixel units: the largest value (linf), or the 2-norm of a picture's noise."""

    eps: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"--norm {self.norm}: use {' or '.join(NORMS)}")
        # One thousandth of a level of slack: 8/255 as a float times 255 may be 7.9999999.
        most = _MOST + 1 if self.norm == "linf" else float("inf")
        if not 1 <= self.eps * 255 + 1e-6 < most:
            limit = "between 1/255 and 127/255" if self.norm == "linf" else "at least 1/255"
            hint = f"; did you mean {self.eps:g}/255?" if 1 < self.eps <= _MOST else ""
            raise UsageError(
                f"--eps {self.eps:g}: must be {limit} to be written as 8-bit noise{hint}"
            )

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Budget:
        """That of a store; manifests before the norms say nothing and mean linf."""
        return cls(manifest["eps"], manifest.get("norm", "linf"))

    @property
    def levels(self) -> int:
        """The largest noise value within the budget, in whole steps of 1/255."""
        return min(_MOST, int(self.eps * 255 + 1e-6))

    def text(self) -> str:
        """For people: `8/255`, or `1.3 (2-norm)`."""
        if self.norm == "linf":
            return f"{self.eps * 255:g}/255"
        return f"{self.eps:.4g} (2-norm)"

    def quantise(self, noise: Tensor) -> Tensor:
        """Noise [M,C,H,W] in [0,1] units as int8 in 1/255: rounded to nearest, never above the
        budget.
        """
        import torch

        if self.norm == "linf":
            noise = noise.mul(255).round_().clamp_(-self.levels, self.levels)
            return noise.to(torch.int8).cpu()
        blocks = [_rounded_within(part, self.eps * 255) for part in noise.cpu().split(_BLOCK)]
        return torch.cat(blocks) if blocks else noise.to(torch.int8).cpu()


def lengths(noise: Tensor) -> Tensor:
    """The 2-norm of each row of whole-number noise [M,C,H,W], float64 [M], in the noise's units."""
    import torch

    blocks = [part.flatten(1).double().norm(dim=1) for part in noise.split(_BLOCK)]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.float64)


def within_length(length, eps: float):
    """Whether a 2-norm in 1/255 (or each of an array) is within `eps`; the slack is far below what
    one step of a value changes.
    """
    return length <= eps * 255 + 1e-6


def change_of(manifest: dict[str, Any]) -> str:
    """The kind of change of a store; before it had a name, the repeated code stood for it."""
    return manifest.get("change", "positive" if manifest["compat"] == "emn2021" else "additive")


def _rounded_within(noise: Tensor, limit: float) -> Tensor:
    """int8 [B,C,H,W] next to noise * 255 with a 2-norm of at most `limit` a row.

    Rounding to nearest may make a row longer than it was. Values that were rounded away from zero
    then go one step back, those rounded farthest first, until the row fits: with all of them back
    it is shorter than before rounding.
    """
    import torch

    exact = noise.flatten(1).double() * 255
    exact = exact * (limit / exact.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    exact = exact.clamp(-_MOST, _MOST)
    whole = exact.round()
    away = whole.abs() - exact.abs()
    saving = torch.where(away > 0, 2 * whole.abs() - 1, 0.0)  # of the square, by one step back
    order = away.argsort(dim=1, descending=True, stable=True)
    before = saving.gather(1, order).cumsum(1) - saving.gather(1, order)
    excess = whole.square().sum(1, keepdim=True) - limit**2
    back = torch.zeros_like(whole).scatter_(1, order, (before < excess).double()) * (away > 0)
    return (whole - back * whole.sign()).to(torch.int8).view(noise.shape)
