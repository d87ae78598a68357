"""l2_step: one step along the normalised gradient, projected to an l2 ball a sample and to valid
pixels, in place."""

import math
from collections.abc import Sequence

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import dense, numbers, plain
from fastue.ops.l2_step import cases, reference

NAME = "l2_step"


def l2_step(
    noise: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    *,
    step: float,
    eps: float,
    ascend: bool = False,
    out: torch.Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """One step along the normalised gradient on noise[index], in place, within an l2 ball and
    within valid pixels:

        n = n - step*grad/|grad|;  n = n * min(1, eps/|n|);  n = clamp(n, -x/255, 1 - x/255)       (ascend: +)

    |.| is the 2-norm of one sample; step and eps are such norms, in pixel units. A sample whose gradient is zero or
    not finite does not move. noise is float32 [M, C, H, W]; the rest is as in linf_step.
    """
    OP.call(
        plain(noise), dense(grad), dense(x), index.contiguous(), step, eps, ascend,
        plain(out), numbers(mean), numbers(std),
    )  # fmt: skip


def check(noise, grad, x, index, step, eps, ascend, out, mean, std):
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, mean, std)
    _checks.tensor(NAME, "noise", noise, ("M", c, h, w), (torch.float32, torch.float64), x.device)
    _checks.tensor(NAME, "grad", grad, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.tensor(NAME, "index", index, (b,), (torch.int64,), x.device)
    if not (0 <= step < math.inf and 0 <= eps < math.inf):
        raise ValueError(
            f"{NAME}: step and eps are finite 2-norms of a sample's noise, got {step} and {eps}"
        )
    if out is not None:
        _checks.tensor(NAME, "out", out, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)


def traffic(noise, grad, x, index, step, eps, ascend, out, mean, std):
    """Bytes: gradient and pictures read, noise read and written, next input where there is one."""
    return (
        grad.nbytes
        + x.nbytes
        + 2 * x.numel() * noise.element_size()
        + (0 if out is None else out.nbytes)
    )


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor(a!) noise, Tensor grad, Tensor x, Tensor index, float step, float eps, bool ascend,"
        " Tensor(b!)? out, float[] mean, float[] std) -> ()",
        reference=reference.l2_step,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=2e-7,  # one rounding of a value near 1; the norms are summed in float64, in any order
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
