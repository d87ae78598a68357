"""class_step: the class-wise update of EMN, a step for each sample and the mean over the samples of
a class."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import dense, plain
from fastue.ops.class_step import cases, reference

NAME = "class_step"


def class_step(
    noise: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    step: float,
    eps: float,
    ascend: bool = False,
    ids: torch.Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    pad: int = 0,
    flip: bool = False,
    grain: int = 1,
) -> None:
    """The class-wise update, in place on the bank: for each class k in y

        e_i = clamp(clamp(x_i/255 + noise_k, 0, 1) - step*sign(grad_i) - x_i/255, -eps, eps)
        (ascend: + step*sign) noise_k = clamp(mean of e_i over the batch's samples of class k, -eps,
        eps)

    noise    float32 [K, C, h, w] in pixel units; classes absent from the batch are not touched
    grad     [B, C, H, W] float32, bfloat16 or float16; x uint8 [B, C, H, W]; y int64 [B] in [0, K)
    ids, seed, epoch, pad, flip, grain  as in linf_step; the mean is over the pixels of a block too
    Summed in batch order, within a sample line by line over the block, so the bits do not depend on
    threads or backend. Errors as linf_step.
    """
    ids = ids if ids is None else ids.contiguous()
    OP.call(
        plain(noise), dense(grad), dense(x), y.contiguous(), step, eps, ascend,
        ids, seed, epoch, pad, flip, grain,
    )  # fmt: skip


def check(noise, grad, x, y, step, eps, ascend, ids, seed, epoch, pad, flip, grain):
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, (), ())
    _checks.bank(NAME, "K", noise, x, grain, (torch.float32, torch.float64))
    _checks.tensor(NAME, "grad", grad, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.tensor(NAME, "y", y, (b,), (torch.int64,), x.device)
    _checks.budget(NAME, step, eps)
    _checks.crop(NAME, ids, x, pad)


def traffic(noise, grad, x, y, *_):
    """Bytes: gradient and pictures read, noise of the classes present read and written."""
    return grad.nbytes + x.nbytes + 2 * len(y.unique()) * noise[0].nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor(a!) noise, Tensor grad, Tensor x, Tensor y, float step, float eps, bool ascend,"
        " Tensor? ids, int seed, int epoch, int pad, bool flip, int grain) -> ()",
        reference=reference.class_step,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=2e-7,  # one rounding of a value near 1, which the mean does not enlarge
        bitwise=True,
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
