"""Cases, refusals and benchmark inputs of grad_cosine_backward."""

import torch

from fastue.ops.grad_cosine import cases as pairs


def _args(found, grad=(0.3, -1.7, 0.6), targets=False):
    grad = torch.tensor(grad, dtype=torch.float64)
    out = [torch.full_like(t, torch.nan if t.is_floating_point() else 0) for t in found["h"]]
    return found | dict(grad=grad, out=out, targets=targets)


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    """Those of grad_cosine; the weights go with the size of the gradients."""
    found = pairs.cases(g, dtype)
    ends = {"huge": (0.0, 1e-30, -1e-31), "tiny": (0.0, -1e40, 1e41)}  # beyond float32
    all_of_h = {
        name: _args(given, ends.get(name, (0.3, -1.7, 0.6))) for name, given in found.items()
    }
    names = ("odd", "near", "many", "mixed")
    of_g = {f"targets_{name}": _args(found[name], (-0.4, 0.9, 2.2), True) for name in names}
    special = pairs.lists(g, dtype, [(50,), (9, 4)])
    special["g"][0][::7], special["h"][1][::2] = torch.nan, torch.inf
    return all_of_h | of_g | {
        "special": _args(special),
        "zero": _args(found["odd"], (0.0, 0.0, 0.0)),
        "nan": _args(found["odd"], (0.0, torch.nan, 1.0)),
    }  # fmt: skip


def bad(g: torch.Generator) -> dict:
    ok = _args(pairs.lists(g, torch.float32, [(4, 3), (5,), (2, 3, 2, 2)]))
    refused = {f"h_{name}": _args(given) for name, given in pairs.bad(g).items()}
    return refused | {
        "out_length": ok | dict(out=ok["out"][:2]),
        "out_shape": ok | dict(out=[*ok["out"][:1], torch.zeros(4), *ok["out"][2:]]),
        "out_dtype": ok | dict(out=[*ok["out"][:2], ok["out"][2].bfloat16()]),
        "out_order": ok
        | dict(out=[*ok["out"][:2], ok["out"][2].to(memory_format=torch.channels_last)]),
        "grad_length": ok | dict(grad=ok["grad"][:2].clone()),
        "grad_dtype": ok | dict(grad=ok["grad"].float()),
        "grad_layout": ok | dict(grad=torch.zeros(6, dtype=torch.float64)[::2]),
        "grad_elsewhere": ok | dict(grad=ok["grad"].to("meta")),
    }


def bench() -> dict:
    """The gradients of ResNet-18, and a list so small that a call is all it costs."""
    return {name: lambda make=make: _args(make()) for name, make in pairs.bench().items()}
