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
    ids: torch.Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    pad: int = 0,
    flip: bool = False,
    grain: int = 1,
) -> None:
    """One step along the normalised gradient on noise[index], in place, within an l2 ball and
    within valid pixels:

        n = n - step*grad/|grad|;  n = n * min(1, eps/|n|);  n = clamp(n, -x/255, 1 - x/255)       (ascend: +)

    |.| is the 2-norm of one sample; step and eps are such norms, in pixel units. A sample whose gradient is zero or
    not finite does not move. noise is float32 [M, C, h, w]; the rest is as in linf_step. With a grain
    above 1 the step is along the mean gradient of each block, and |.| is that of the noise as
    shown, at the picture's size.
    """
    ids = ids if ids is None else ids.contiguous()
    OP.call(
        plain(noise), dense(grad), dense(x), index.contiguous(), step, eps, ascend,
        plain(out), numbers(mean), numbers(std), ids, seed, epoch, pad, flip, grain,
    )  # fmt: skip


def check(
    noise, grad, x, index, step, eps, ascend, out, mean, std, ids, seed, epoch, pad, flip, grain
):
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, mean, std)
    _checks.bank(NAME, "M", noise, x, grain, (torch.float32, torch.float64))
    _checks.tensor(NAME, "grad", grad, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.tensor(NAME, "index", index, (b,), (torch.int64,), x.device)
    if not (0 <= step < math.inf and 0 <= eps < math.inf):
        raise ValueError(
            f"{NAME}: step and eps are finite 2-norms of a sample's noise, got {step} and {eps}"
        )
    if out is not None:
        _checks.tensor(NAME, "out", out, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.crop(NAME, ids, x, pad)


def traffic(noise, grad, x, index, step, eps, ascend, out, *_):
    """Bytes: gradient and pictures read, noise read and written, next input where there is one."""
    return (
        grad.nbytes + x.nbytes + 2 * len(x) * noise[0].nbytes + (0 if out is None else out.nbytes)
    )


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor(a!) noise, Tensor grad, Tensor x, Tensor index, float step, float eps, bool ascend,"
        " Tensor(b!)? out, float[] mean, float[] std,"
        " Tensor? ids, int seed, int epoch, int pad, bool flip, int grain) -> ()",
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
