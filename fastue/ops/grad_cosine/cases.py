"""Cases, refusals and benchmark inputs of grad_cosine."""

from functools import partial

import torch

from fastue.ops._cases import offset


def lists(g, dtype, shapes, scale=1.0, apart=1.0, **more):
    """{"g": tensors of these shapes, "h": the same and something that is `apart` times as large}"""
    scale = min(scale, torch.finfo(dtype).max / 32)
    target = [torch.randn(shape, generator=g) for shape in shapes]
    source = [t + apart * torch.randn(t.shape, generator=g) for t in target]
    as_given = [[(scale * t).to(dtype) for t in tensors] for tensors in (target, source)]
    return dict(zip(("g", "h"), as_given, strict=True)) | more


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    """Also those of grad_cosine_backward."""

    def case(*shapes, **more):
        return lists(g, dtype, shapes, **more)

    found = {
        "no_tensor": case(),
        "empty": case((0,), (3, 0)),
        "one": case((1,)),
        "odd": case((7,), (3, 5), (1,), (77, 9)),
        "blocks": case((16385,), (3,), (20001,), (16384,)),
        "near": case((64, 27), (64,), apart=1.4e-5),  # 1 - cos is 1e-10
        "opposite": case((33, 9), (5,), apart=-2.0),
        "many": case(*[(n % 5,) for n in range(230)]),  # several launches
        "huge": case((50,), (3, 3), scale=1e15),
        "tiny": case((50,), (3, 3), scale=1e-20),
    }
    crooked = case((41,), (1027,), (8, 3, 3, 3))
    found["offset_g"] = crooked | dict(g=[offset(t) for t in crooked["g"]])
    found["offset_h"] = crooked | dict(h=[offset(t) for t in crooked["h"]])
    ties = case((129, 3), (64,))  # the same gradients: q and m are 0
    found["ties"] = ties | dict(h=[t.clone() for t in ties["g"]])
    mixed = case((), (6, 5, 3, 3), (0,), (6, 5, 1, 1), (2, 3))
    for tensors in (mixed["g"], mixed["h"]):
        tensors[1] = tensors[1].contiguous(memory_format=torch.channels_last)
    # one channel_last as far as its numbers go; both are contiguous
    mixed["h"][3] = mixed["h"][3].as_strided((6, 5, 1, 1), (5, 1, 5, 5))
    found["mixed"] = mixed
    return found


def band(exact, g, h):
    """What float64 sums lose in one order or another, as large as the terms."""
    n, _, m = exact["result0"]
    return {"result0": (1e-14 * torch.stack([n, (n * m).sqrt(), m]), 1.0)}


def bad(g: torch.Generator) -> dict:
    ok = lists(g, torch.float32, [(4, 3), (5,), (2, 3, 2, 2)])

    def of_h(place, t):
        return ok | dict(h=[t if i == place else old for i, old in enumerate(ok["h"])])

    first, second, third = ok["h"]
    return {
        "length": ok | dict(h=ok["h"][:2]),
        "no_h": ok | dict(h=[]),
        "shape": of_h(0, first.t().contiguous()),
        "size": of_h(1, second[:4].clone()),
        "dtype": of_h(1, second.half()),
        "integers": dict(g=[t.long() for t in ok["g"]], h=[t.long() for t in ok["h"]]),
        "one_of_another_dtype": {k: [*ok[k][:2], ok[k][2].half()] for k in ("g", "h")},
        "transposed": of_h(0, torch.zeros(3, 4).t()),
        "strided": of_h(1, torch.zeros(10)[::2]),
        "another_order": of_h(2, third.contiguous(memory_format=torch.channels_last)),
        "other_device": of_h(1, second.to("meta")),
    }


def resnet18() -> list[tuple[int, ...]]:
    """Shapes of the 62 parameters of ResNet-18 for 32x32 pictures."""
    found, width = [(64, 3, 3, 3), (64,), (64,)], 64
    for wide in (64, 128, 256, 512):
        for into, shortcut in ((width, wide != width), (wide, False)):
            found += [(wide, into, 3, 3), (wide,), (wide,), (wide, wide, 3, 3), (wide,), (wide,)]
            found += [(wide, into, 1, 1), (wide,), (wide,)] if shortcut else []
        width = wide
    return [*found, (10, 512), (10,)]


def bench() -> dict:
    """The gradients of ResNet-18, and a list so small that a call is all it costs."""

    def make(shapes, dtype):
        return lists(torch.Generator().manual_seed(0), dtype, shapes, scale=0.01, apart=0.1)

    found = {"call": partial(make, [(10,)] * 10, torch.float32)}
    for dtype in (torch.float32, torch.bfloat16):
        found[f"resnet18-{str(dtype)[6:]}"] = partial(make, resnet18(), dtype)
    return found
