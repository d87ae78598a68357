"""Cases, refusals and benchmark inputs of ghost_pair; ghost_pair_backward has the same."""

from functools import partial

import torch


def case(g, b, d, p, t, near=0.1, scale=1.0):
    """a2 and e2 differ from a and e by about `near` of their size."""
    a, da = torch.randn((2, b, d, t), generator=g) * scale
    e, de = torch.randn((2, b, p, t), generator=g) * scale
    return dict(a=a, e=e, a2=a + near * da, e2=e + near * de)


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    found = {
        "empty": case(g, 0, 3, 4, 5),
        "no_position": case(g, 2, 3, 4, 0),
        "no_input": case(g, 2, 0, 4, 5),
        "no_output": case(g, 2, 3, 0, 1),
        "one": case(g, 1, 1, 1, 1),
        "odd": case(g, 3, 37, 11, 7),
        "blocks": case(g, 2, 20, 9, 150),
        "mixed": case(g, 5, 130, 67, 1),
        "linear": case(g, 4, 1100, 5, 1),
        "deep": case(g, 2, 530, 70, 16),
        "edge": case(g, 2, 333, 10, 65),
        "full": case(g, 1, 18, 24, 64),
        "near": case(g, 3, 40, 30, 9, 1e-3),
        "nearer": case(g, 3, 40, 30, 36, 1e-5),
        "nearer_linear": case(g, 3, 400, 30, 1, 1e-5),
        "ties": case(g, 4, 12, 6, 20),
        "ties_linear": case(g, 4, 12, 6, 1),
        "huge": case(g, 4, 20, 10, 12),
        "huge_linear": case(g, 4, 20, 10, 1),
    }
    for name in ("ties", "ties_linear"):  # no difference of a, of e, of both; nothing but zeros
        c = found[name]
        c["a2"][0], c["e2"][1] = c["a"][0], c["e"][1]
        c["a2"][2], c["e2"][2] = c["a"][2], c["e"][2]
        for t in c.values():
            t[3] = 0
    for name in ("huge", "huge_linear"):
        c = found[name]
        for t in c.values():
            t *= torch.tensor([1e8, 1e-8, 1.0, 1.0])[:, None, None]
        c["a2"][2, 3, 0] = torch.nan  # and |G|^2 is a number
    return found


def bad(g: torch.Generator) -> dict:
    ok = case(g, 3, 6, 4, 5)
    return {
        "a_dimensions": ok | dict(a=ok["a"][0]),
        "a_dtype": ok | dict(a=ok["a"].half()),
        "a_layout": ok | dict(a=ok["a"].mT.contiguous().mT),
        "e_batch": ok | dict(e=ok["e"][:2]),
        "e_positions": ok | dict(e=ok["e"][:, :, :4].contiguous()),
        "e_dtype": ok | dict(e=ok["e"].double()),
        "a2_shape": ok | dict(a2=ok["a2"][:, :5].contiguous()),
        "a2_dtype": ok | dict(a2=ok["a2"].bfloat16()),
        "a2_layout": ok | dict(a2=ok["a2"].mT.contiguous().mT),
        "e2_shape": ok | dict(e2=ok["e2"][:, :3].contiguous()),
        "other_device": ok | dict(e2=ok["e2"].to("meta")),
    }


# Layers of a ResNet-18 for CIFAR where Gram products are cheaper than the weight gradient: d, p, T.
SHAPES = {
    "stage3": (2304, 256, 64),
    "shortcut3": (128, 256, 64),
    "stage4": (4608, 512, 16),
    "linear": (512, 10, 1),
    "wide_linear": (4096, 1000, 1),
}


def bench() -> dict:
    """A batch of 16."""

    def make(d, p, t):
        return case(torch.Generator().manual_seed(0), 16, d, p, t)

    return {name: partial(make, *shape) for name, shape in SHAPES.items()}
