"""weight_noise: Gaussian noise on all parameters of a model, each value keyed by (seed, draw, parameter, element)."""

import math

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.weight_noise import cases
from fastue.ops.weight_noise.reference import weight_noise

NAME = "weight_noise"
BLOCK = 64  # elements; four of them have a Philox counter
Z_BAND = 8e-7  # kernels against the definition, in z; tests/ops/test_weight_noise.py measures it


def check(base, table, draws, out, sigma, seed, purpose):
    _checks.tensor(NAME, "base", base, ("D",), (torch.float32, torch.float64), base.device)
    d = base.shape[0]
    if d % BLOCK or d >= BLOCK << 28:
        raise ValueError(f"{NAME}: parameters are padded to multiples of {BLOCK}, base has {d} elements")
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
        reference=weight_noise,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16),
        atol=Z_BAND,  # for sigma = 1, the largest of the cases: log, sin and cos are polynomials there, libm here
        backends=(opspec.cuda(opspec.FLOATS), opspec.triton(opspec.FLOATS), opspec.cpp(opspec.FLOATS)),
    )
)
