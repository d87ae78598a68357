"""weight_noise: Gaussian noise on all parameters of a model, each value keyed by (seed, draw,
parameter, element)."""

import math

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import plain
from fastue.ops.weight_noise import cases, reference

NAME = "weight_noise"
BLOCK = 64  # elements; four of them have a Philox counter
Z_BAND = 8e-7  # kernels against the definition, in z; tests/ops/test_weight_noise.py measures it


def weight_noise(
    base: torch.Tensor,
    table: torch.Tensor,
    draws: torch.Tensor,
    *,
    sigma: float,
    seed: int,
    purpose: int,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gaussian noise on all parameters of a model, several draws in one launch: out[k] = base +
    sigma * z(draws[k])

    base     float32 [D]: the parameters one after another, each padded to a multiple of 64
             elements, which is a block
    table    int64 [D/64]: for each block its parameter << 32 | its number within the parameter, below 2^28
    draws    int64 [K], numbers of the draws, each in [0, 2^32)
    sigma    standard deviation, >= 0; with 0 the result is base
    seed     64 bits; purpose in [0, 2^32), one of WEIGHTS_*: keeps the draws of different uses
             apart
    dtype    of the result, float32 or bfloat16; the sum is float32 and rounded once, so that
             bfloat16 weights are a function of weights with Gaussian noise
    out      [K, D], contiguous, to write instead of a new tensor; its dtype wins
    z is standard normal (tail to |z| = 7.5) and depends on (seed, purpose, draw, parameter, element) alone: a draw can
    be made again at any time, in any company, with the same bits on every backend but the
    reference, which is the exact definition and differs by rounding. Padding gets noise too. Not
    differentiable. Errors: ValueError, TypeError, IndexError (RuntimeError from compiled code) for
    wrong shapes, dtypes and numbers; on a GPU draws and blocks out of range wrap around.
    """
    if out is None:
        out = torch.empty((len(draws), len(base)), dtype=dtype, device=base.device)
    OP.call(plain(base), table, draws, plain(out), sigma, seed, purpose)
    return out


def check(base, table, draws, out, sigma, seed, purpose):
    _checks.tensor(NAME, "base", base, ("D",), (torch.float32, torch.float64), base.device)
    d = base.shape[0]
    if d % BLOCK or d >= BLOCK << 28:
        raise ValueError(
            f"{NAME}: parameters are padded to multiples of {BLOCK}, base has {d} elements"
        )
    _checks.tensor(NAME, "table", table, (d // BLOCK,), (torch.int64,), base.device)
    _checks.tensor(NAME, "draws", draws, ("K",), (torch.int64,), base.device)
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    _checks.tensor(NAME, "out", out, (draws.shape[0], d), dtypes, base.device)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"{NAME}: sigma must be finite and not negative, got {sigma}")
    if not 0 <= purpose < 2**32:
        raise ValueError(f"{NAME}: purpose must be in [0, 2^32), got {purpose}")


def traffic(base, table, draws, out, *_):
    """Bytes: parameters read, each draw written."""
    return base.nbytes + out.nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor base, Tensor table, Tensor draws, Tensor(a!) out, float sigma, int seed, int purpose) -> ()",
        reference=reference.weight_noise,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16),
        # for sigma = 1, the largest of the cases: log, sin and cos are polynomials there, libm here
        atol=Z_BAND,
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
