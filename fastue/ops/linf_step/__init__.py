"""linf_step: one signed step on noise rows, projected to the budget and to valid pixels, in place,
in one pass."""

from collections.abc import Sequence

import torch

from fastue.core import opspec
from fastue.ops import _checks, _grain, _keyed
from fastue.ops._arguments import dense, numbers, plain
from fastue.ops.linf_step import cases, reference

NAME = "linf_step"


def linf_step(
    noise: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    *,
    step: float,
    eps: float,
    ascend: bool = False,
    scale: float = 1.0,
    mask: torch.Tensor | None = None,
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
    """One signed-gradient step on noise[index], in place, kept within the budget and within valid
    pixels:

        n = clamp(n - step*sign(grad), -eps, eps); n = clamp(n, -x/255, 1 - x/255) (ascend: +
        step*sign)

    noise    bank [M, C, h, w], float32 in pixel units or int8 with `scale` (see apply_noise); an
             int8 bank stores the float32 result rounded to the nearest multiple of scale, ties to
             even, and is stepped from what it stores
    grad     [B, C, H, W] float32, bfloat16 or float16; zero and NaN move nothing
    x        uint8 [B, C, H, W];  index  int64 [B], rows of the bank, each at most once
    step, eps  pixel units
    mask     bool [B, 1, h, w] or [1, 1, h, w], of the bank's size: where False the noise becomes 0
             (patch noise)
    out      float [B, C, H, W]: also write the next model input there, as apply_noise would, with
             `mean` and `std`
    grain    side of the square of pixels that shows one value of the bank, of h = ceil(H/grain) by
             w = ceil(W/grain). `grad` is summed over its pixels, float32, line by line; the valid
             range is that of the pixel with the most room: the others are clamped where they are
             shown
    ids, seed, epoch, pad, flip  as in apply_noise, for pictures that were cropped and mirrored
             there: `grad` is with respect to the cropped picture and read back through the same
             crop (a pixel that was cut away has gradient 0), `out` is cropped too
    std is positive, so the sign of the gradient is the same before and after normalisation.
    Errors as apply_noise; on a GPU rows out of range are skipped.
    """
    mask = mask if mask is None else mask.contiguous()
    ids = ids if ids is None else ids.contiguous()
    OP.call(
        plain(noise), dense(grad), dense(x), index.contiguous(), step, eps, ascend, scale,
        mask, plain(out), numbers(mean), numbers(std), ids, seed, epoch, pad, flip, grain,
    )  # fmt: skip


def check(
    noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std,
    ids, seed, epoch, pad, flip, grain,
):  # fmt: skip
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, mean, std)
    size = _checks.bank(NAME, "M", noise, x, grain, (torch.float32, torch.int8, torch.float64))
    _checks.tensor(NAME, "grad", grad, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.tensor(NAME, "index", index, (b,), (torch.int64,), x.device)
    _checks.budget(NAME, step, eps)
    _checks.scale(NAME, noise, scale)
    if mask is not None:
        _checks.mask(NAME, mask, b, *size, x.device)
    if out is not None:
        _checks.tensor(NAME, "out", out, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.crop(NAME, ids, x, pad)


def band(
    exact, noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std,
    ids, seed, epoch, pad, flip, grain,
):  # fmt: skip
    """An int8 bank rounds to nearest: within 1e-3 of a tie either neighbour is right, and the input
    made of it."""
    if noise.dtype != torch.int8:
        return None
    crop = (ids, seed, epoch, pad, flip)
    n = reference.stepped(
        noise, grad, x, index, step, eps, ascend, scale, crop, grain, torch.float64
    ) * (1 / scale)
    tie = ((n - n.floor()) - 0.5).abs() < 1e-3
    rows = torch.zeros_like(noise, dtype=torch.bool)
    rows[index] = tie
    shown = _keyed.cropped(_grain.spread(tie, grain, *x.shape[2:]), *crop)
    return {"noise": (rows, 1.0), "out": (shown, scale / min(std, default=1.0))}


def traffic(noise, grad, x, index, step, eps, ascend, scale, mask, out, *_):
    """Bytes: gradient and pictures read, noise read and written, next input and mask where there
    are any."""
    more = sum(t.nbytes for t in (mask, out) if t is not None)
    return grad.nbytes + x.nbytes + 2 * len(x) * noise[0].nbytes + more


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor(a!) noise, Tensor grad, Tensor x, Tensor index, float step, float eps, bool ascend,"
        " float scale, Tensor? mask, Tensor(b!)? out, float[] mean, float[] std,"
        " Tensor? ids, int seed, int epoch, int pad, bool flip, int grain) -> ()",
        reference=reference.linf_step,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        band=band,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=2e-7,  # one rounding of a value near 1
        bitwise=True,
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
