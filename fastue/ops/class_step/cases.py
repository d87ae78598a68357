"""Cases, refusals and benchmark inputs of class_step."""

import itertools
from functools import partial

import torch

from fastue.ops._cases import (
    BENCH,
    EPS,
    INTERLEAVED,
    LAYOUTS,
    PLANAR,
    SHAPES,
    bank,
    coarse,
    gradient,
    offset,
    pictures,
    view,
    views,
)

STEP = 0.8 / 255


def _case(g, dtype, y, k, c, h, w, layouts=(INTERLEAVED,) * 3, ascend=False, step=STEP, **seen):
    ln, lg, lx = layouts
    y = torch.tensor(y, dtype=torch.int64)
    b = len(y)
    noise = bank(g, k, c, *coarse(h, w, seen.get("grain", 1)), ln)
    return dict(noise=noise, grad=gradient(g, b, c, h, w, dtype, lg), x=pictures(g, b, c, h, w, lx),
                y=y, step=step, eps=EPS, ascend=ascend, **(view() | seen))  # fmt: skip


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    some = [3, 0, 3, 1, 3, 3, 0, 6]
    found = {
        "empty": _case(g, dtype, [], 4, 3, 8, 8),
        "one": _case(g, dtype, [0], 1, 1, 1, 1),
        "odd": _case(g, dtype, some, 7, 3, 7, 9),
        "ascend": _case(g, dtype, some, 7, 3, 7, 9, ascend=True),
        "one_class": _case(g, dtype, [2] * 11, 5, 3, 7, 9, step=EPS),
        "gray": _case(g, dtype, some, 7, 1, 9, 5, (PLANAR, INTERLEAVED, PLANAR)),
        "blocks": _case(g, dtype, [1, 0, 1, 1], 3, 3, 67, 65),
        "planar": _case(g, dtype, [1, 0, 1, 1], 3, 3, 33, 35, (PLANAR,) * 3),
        "mixed": _case(g, dtype, [1, 0, 1, 1], 3, 3, 33, 35, (PLANAR, PLANAR, INTERLEAVED)),
        "crossed": _case(g, dtype, [1, 0, 1, 1], 3, 3, 33, 35, (INTERLEAVED, PLANAR, PLANAR)),
    }
    for (shape, (c, h, w)), (name, (layouts, _)) in itertools.product(
        SHAPES.items(), LAYOUTS.items()
    ):
        found[f"{shape}_{name}"] = _case(g, dtype, some, 7, c, h, w, layouts, ascend=name == "same")
    for (name, ((c, h, w), seen)), (order, (layouts, _)) in itertools.product(
        views(dtype).items(), LAYOUTS.items()
    ):
        labels = [3, 0, 3, 1] if order == "same" else [2, 2, 0, 2]
        found[f"view_{name}_{order}"] = _case(
            g, dtype, labels, 4, c, h, w, layouts, ascend=order == "crossed", **seen
        )
    crooked = found["view_grain_crop_planar"]
    found["offset_grain"] = crooked | {k: offset(crooked[k]) for k in ("noise", "grad", "x")}
    # More samples of a class than are worked on side by side.
    labels = torch.randint(0, 2, (21,), generator=g).tolist()
    found["view_many"] = _case(
        g, dtype, labels, 3, 3, 9, 8, **view(2, torch.arange(21) * 7, 3, True)
    )
    # A large batch in no order, most of it of one class.
    many = torch.randint(-9, 6, (700,), generator=g).clamp(0, 5).tolist()
    found["large_batch"] = _case(g, dtype, many, 7, 3, 2, 2)
    # Many classes of many pixels: enough work for a GPU to take several pixels at a time.
    for c, (name, (layouts, _)) in itertools.product((1, 3), LAYOUTS.items()):
        some = torch.randint(0, 128, (9,), generator=g).tolist()
        found[f"many_classes_{c}_{name}"] = _case(
            g, dtype, [*some, 5, 5, 127], 128, c, 32, 33, layouts
        )
    crooked = found["many_classes_3_planar"]
    for moved in ("noise", "grad", "x"):
        found[f"offset_{moved}"] = crooked | {moved: offset(crooked[moved])}
    ties = _case(g, dtype, [0, 0, 1], 3, 3, 2, 2)
    values = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-8, -1e-8, 1.0, -1.0, 0.0, 2.0, -2.0]
    ties["grad"] = torch.tensor(values).to(dtype).view(1, 3, 2, 2).repeat(3, 1, 1, 1)
    ties["x"] = torch.tensor([0, 255, 128, 0, 255, 1, 254, 0, 255, 7, 248, 8], dtype=torch.uint8)
    ties["x"] = ties["x"].view(1, 3, 2, 2).repeat(3, 1, 1, 1)
    found["ties"] = ties
    huge = _case(g, dtype, [1, 2, 1], 4, 3, 3, 3)
    largest = torch.finfo(dtype).max
    huge["grad"] = torch.where(huge["grad"] > 0, largest, -largest).to(dtype)
    huge["noise"] = huge["noise"] * 1e30
    found["huge"] = huge
    return found


def bad(g: torch.Generator) -> dict:
    ok = _case(g, torch.float32, [0, 2, 2], 4, 3, 5, 6)
    return {
        "class_too_high": ok | dict(y=torch.tensor([0, 4, 1])),
        "class_negative": ok | dict(y=torch.tensor([0, -1, 1])),
        "class_of_coarse_noise": _case(g, torch.float32, [0, 2, 2], 4, 3, 5, 6, grain=2)
        | dict(y=torch.tensor([0, 4, -1])),
        "y_dtype": ok | dict(y=ok["y"].int()),
        "grad_shape": ok | dict(grad=ok["grad"][:2]),
        "x_float": ok | dict(x=ok["x"].float()),
        "bank_layout": ok | dict(noise=ok["noise"].transpose(2, 3).contiguous().transpose(2, 3)),
        "bank_dtype": ok | dict(noise=ok["noise"].to(torch.int8)),
        "eps_in_levels": ok | dict(eps=8.0),
        "grain_zero": ok | dict(grain=0),
        "grain_of_another_bank": ok | dict(grain=2),
        "ids_length": ok | dict(ids=torch.arange(2)),
        "pad_negative": ok | dict(pad=-1),
        "other_device": ok | dict(x=ok["x"].to("meta")),
    }


def bench() -> dict:
    """Ten classes, buffers beyond the cache."""

    def make(name, dtype, **seen):
        (b, c, h, w), layout = BENCH[name]
        g = torch.Generator().manual_seed(0)
        grad = torch.randn((b, c, h, w), generator=g).to(dtype).contiguous(memory_format=layout)
        noise = bank(g, 10, c, *coarse(h, w, seen.get("grain", 1)), layout)
        return dict(noise=noise, grad=grad, x=pictures(g, b, c, h, w, layout),
                    y=torch.randint(0, 10, (b,), generator=g), step=STEP, eps=EPS, ascend=False,
                    **(view() | seen))  # fmt: skip

    found = {
        f"{n}-{str(d)[6:]}-grain4-crop-flip": partial(
            make, n, d, **view(4, torch.arange(b), 4, True)
        )
        for n, ((b, *_), _) in BENCH.items()
        for d in (torch.float32, torch.bfloat16)
    }
    return found | {
        f"{n}-{str(d)[6:]}": partial(make, n, d)
        for n in BENCH
        for d in (torch.float32, torch.bfloat16)
    }
