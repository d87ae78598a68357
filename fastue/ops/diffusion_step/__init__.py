"""diffusion_step: one reverse step of a diffusion model on pictures, guided and with keyed noise, in
place, in one pass."""

import math

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import dense, plain
from fastue.ops.diffusion_step import cases, reference
from fastue.ops.weight_noise import Z_BAND

NAME = "diffusion_step"
MOST_ITERATIONS, MOST_T = 2**8, 2**16  # as far as a word of the counter has room


def diffusion_step(
    x: torch.Tensor,
    eps: torch.Tensor | None,
    ids: torch.Tensor,
    *,
    cx: float,
    sigma: float,
    seed: int,
    iteration: int,
    t: int,
    alpha_bar: float = 1.0,
    c0: float = 0.0,
    y: torch.Tensor | None = None,
    pull: float = 0.0,
    noisy: bool = False,
    grad: torch.Tensor | None = None,
    push: float = 0.0,
) -> None:
    """One reverse step x_t -> x_(t-1) of a DDPM, in place:

        x0 = clamp(x sqrt(1/alpha_bar) - eps sqrt(1/alpha_bar - 1), -1, 1)
        x0 = x0 + pull (2y/255 - 1 - x0)
        x  = c0 x0 + cx x + sigma z + push grad

    x        float32 [B, C, H, W], C = 1 or 3, in [-1, 1] units; written
    eps      the network's prediction, like x, float32, bfloat16 or float16; None: there is no x0.
             x = cx x + sigma z then starts an iteration, with cx = sqrt(alpha_bar) and
             sigma = sqrt(1 - alpha_bar)
    ids      int64 [B], stable sample ids
    cx, c0   of the posterior mean at t; c0 = 1, cx = sigma = 0 gives x0
    sigma    standard deviation of the step's noise, >= 0; nothing is drawn for 0
    seed     64 bits; iteration in [0, 256), t in [0, 65536)
    alpha_bar  in (0, 1], the product of 1 - beta up to t
    y        uint8 [B, C, H, W], the protected pictures that guide, or None
    pull     the fraction of the way from x0 to y, in [0, 1], for each picture on its own
    noisy    the guidance of 2023: y is compared with x, not x0, as a copy noised afresh to t:
             x = c0 x0 + cx x + pull (sqrt(alpha_bar) (2y/255 - 1) + sqrt(1 - alpha_bar) z2 - x)
             + sigma z + push grad; pull is then any number >= 0 (twice the gradient's scale, times
             sigma^2, by how many values it is averaged over)
    grad     float32 like x, a gradient to go up, times push
    z and z2 are standard normal (tail to |z| = 7.5) and depend on (seed, iteration, t, id, channel,
    pixel) alone, those of a start, a step and a noisy copy apart: a picture comes out the same in
    any batch, layout, number of threads, and with the same bits on every backend but the reference,
    which is the exact definition and differs by rounding. Not differentiable. Errors: ValueError or
    TypeError (RuntimeError from compiled code) for wrong shapes, dtypes and numbers.
    """
    OP.call(
        plain(x), eps if eps is None else dense(eps), y if y is None else dense(y),
        grad if grad is None else dense(grad), ids.contiguous(),
        alpha_bar, c0, cx, pull, noisy, push, sigma, seed, iteration, t,
    )  # fmt: skip


def check(x, eps, y, grad, ids, alpha_bar, c0, cx, pull, noisy, push, sigma, seed, iteration, t):
    floats = (torch.float32, torch.float64)
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), floats, x.device)
    _checks.channels(NAME, x.shape[1], (), ())
    if x.shape[1:].numel() >= 2**31:
        raise ValueError(f"{NAME}: a picture has too many pixels: {list(x.shape)}")
    for name, like, dtypes in (
        ("eps", eps, _checks.FLOAT_DTYPES),
        ("y", y, (torch.uint8,)),
        ("grad", grad, floats),
    ):
        if like is not None:
            _checks.tensor(NAME, name, like, x.shape, dtypes, x.device)
    _checks.tensor(NAME, "ids", ids, (len(x),), (torch.int64,), x.device)
    if y is None and (pull != 0 or noisy):
        raise ValueError(f"{NAME}: pull and noisy are for guidance, which needs y")
    if y is not None and eps is None and not noisy:
        raise ValueError(f"{NAME}: y guides x0, which needs eps")
    if not 0 < alpha_bar <= 1:
        raise ValueError(f"{NAME}: alpha_bar must be in (0, 1], got {alpha_bar}")
    if not 0 <= pull <= (_LARGEST if noisy else 1):
        raise ValueError(
            f"{NAME}: pull is a fraction in [0, 1], or where noisy not negative; got {pull}"
        )
    if not 0 <= sigma <= _LARGEST:
        raise ValueError(f"{NAME}: sigma must be finite and not negative, got {sigma}")
    if not all(map(math.isfinite, (c0, cx, push))):
        raise ValueError(f"{NAME}: c0, cx and push must be finite, got {c0}, {cx} and {push}")
    if not (0 <= iteration < MOST_ITERATIONS and 0 <= t < MOST_T):
        raise ValueError(
            f"{NAME}: iteration must be in [0, {MOST_ITERATIONS}) and t in "
            f"[0, {MOST_T}), got {iteration} and {t}"
        )


_LARGEST = torch.finfo(torch.float32).max


def traffic(x, eps, y, grad, *_):
    """Bytes: x read and written, the others read where they are there."""
    return 2 * x.nbytes + sum(t.nbytes for t in (eps, y, grad) if t is not None)


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor(a!) x, Tensor? eps, Tensor? y, Tensor? grad, Tensor ids, float alpha_bar, float c0,"
        " float cx, float pull, bool noisy, float push, float sigma, int seed, int iteration, int t) -> ()",
        reference=reference.diffusion_step,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        # sigma plus pull is 1 at most in the cases
        atol=Z_BAND,
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
