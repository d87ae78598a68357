"""class_step: the class-wise update of EMN, a step for each sample and the mean over the samples of a class."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.class_step import cases
from fastue.ops.class_step.reference import class_step

NAME = "class_step"


def check(noise, grad, x, y, step, eps, ascend):
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, (), ())
    _checks.tensor(NAME, "noise", noise, ("K", c, h, w), (torch.float32, torch.float64), x.device)
    _checks.tensor(NAME, "grad", grad, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.tensor(NAME, "y", y, (b,), (torch.int64,), x.device)
    _checks.budget(NAME, step, eps)


def traffic(noise, grad, x, y, *_):
    """Bytes: gradient and pictures read, noise of the classes present read and written."""
    return grad.nbytes + x.nbytes + 2 * len(y.unique()) * noise[0].nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor(a!) noise, Tensor grad, Tensor x, Tensor y, float step, float eps, bool ascend) -> ()",
        reference=class_step,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=2e-7,  # one rounding of a value near 1, which the mean does not enlarge
        bitwise=True,
        backends=(opspec.cuda(opspec.FLOATS), opspec.triton(opspec.FLOATS), opspec.cpp(opspec.FLOATS)),
    )
)
