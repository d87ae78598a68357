"""Cases, refusals and benchmark inputs of ghost_pair_backward: those of ghost_pair with a gradient."""

from functools import partial

import torch

from fastue.ops.ghost_pair import cases as pair


def _with_gradient(g, args):
    """Of each sample another one; of some only one column."""
    grad = torch.randn((len(args["a"]), 3), generator=g, dtype=torch.float64)
    return dict(grad=grad) | args


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    found = {name: _with_gradient(g, args) for name, args in pair.cases(g, dtype).items()}
    # as 1 - cos has them: all three terms of the same size
    for name in ("near", "nearer", "nearer_linear"):
        found[name]["grad"][:, 1] *= 1e-3 if name == "near" else 1e-5
    found["odd"]["grad"][0, 1] = found["odd"]["grad"][1, 2] = 0
    found["blocks"]["grad"][0, 2] = found["linear"]["grad"][0, 1] = 0
    return found


def bad(g: torch.Generator) -> dict:
    found = {name: _with_gradient(g, args) for name, args in pair.bad(g).items()}
    ok = _with_gradient(g, pair.case(g, 3, 6, 4, 5))
    del found["a_dimensions"]
    return found | {
        "grad_shape": ok | dict(grad=ok["grad"][:, :2].contiguous()),
        "grad_batch": ok | dict(grad=ok["grad"][:2]),
        "grad_dtype": ok | dict(grad=ok["grad"].float()),
        "grad_layout": ok | dict(grad=ok["grad"].t().contiguous().t()),
    }


def bench() -> dict:
    """A batch of 16."""

    def make(of):
        return _with_gradient(torch.Generator().manual_seed(1), of())

    return {name: partial(make, of) for name, of in pair.bench().items()}
