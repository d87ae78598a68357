"""Cases, refusals and benchmark inputs of l2_step."""

import itertools
from functools import partial

import torch

from fastue.ops._cases import (
    BENCH,
    IDS,
    INTERLEAVED,
    LAYOUTS,
    MEAN,
    PLANAR,
    SHAPES,
    STD,
    bank,
    coarse,
    gradient,
    offset,
    pictures,
    rows,
    sheet,
    view,
    views,
)  # fmt: skip


def _args(
    noise, grad, x, index, step=0.1, eps=0.3, ascend=False, out=None, mean=(), std=(), **seen
):
    return dict(noise=noise, grad=grad, x=x, index=index, step=step, eps=eps, ascend=ascend,
                out=out, mean=list(mean), std=list(std), **(view() | seen))  # fmt: skip


def _case(g, dtype, b, m, c, h, w, layouts=(INTERLEAVED,) * 3, **more):
    ln, lg, lx = layouts
    noise = bank(g, m, c, *coarse(h, w, more.get("grain", 1)), ln)
    grad = gradient(g, b, c, h, w, dtype, lg)
    return _args(noise, grad, pictures(g, b, c, h, w, lx), rows(g, b, m), **more)


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    def out(b, c, h, w, layout=INTERLEAVED):
        return dict(out=sheet(b, c, h, w, dtype, layout), mean=MEAN, std=STD)

    found = {
        "empty": _case(g, dtype, 0, 4, 3, 8, 8),
        "one": _case(g, dtype, 1, 1, 1, 1, 1),
        "odd": _case(g, dtype, 5, 9, 3, 7, 9),
        "ascend": _case(g, dtype, 5, 9, 3, 7, 9, ascend=True),
        "gray": _case(g, dtype, 3, 4, 1, 9, 5, (PLANAR, INTERLEAVED, PLANAR)),
        "blocks": _case(g, dtype, 3, 5, 3, 67, 65),
        "planar": _case(g, dtype, 3, 5, 3, 33, 35, (PLANAR,) * 3),
        "mixed": _case(g, dtype, 3, 5, 3, 33, 35, (PLANAR, PLANAR, INTERLEAVED)),
        "crossed": _case(g, dtype, 3, 5, 3, 33, 35, (INTERLEAVED, PLANAR, PLANAR)),
        "inside_the_ball": _case(g, dtype, 5, 9, 3, 7, 9, step=0.01, eps=9.0),
        "next_input": _case(g, dtype, 5, 9, 3, 7, 9, **out(5, 3, 7, 9)),
        "next_input_mixed": _case(
            g,
            dtype,
            3,
            5,
            3,
            33,
            35,
            (INTERLEAVED, PLANAR, INTERLEAVED),
            **out(3, 3, 33, 35, PLANAR),
        ),
    }
    # Pictures that fit a small block and a large one, and larger ones, which are cut into pieces.
    large = {"middle_even": (3, 40, 40), "middle_odd": (1, 17, 19)}
    large |= {
        "large_even": (3, 64, 65),
        "large_gray_even": (1, 65, 64),
        "large_gray_odd": (1, 33, 35),
    }
    for (shape, (c, h, w)), (name, (layouts, of_out)) in itertools.product(
        (SHAPES | large).items(), LAYOUTS.items()
    ):
        more = (
            {}
            if name == "same"
            else dict(out=sheet(2, c, h, w, dtype, of_out), mean=MEAN[:c], std=STD[:c])
        )
        found[f"{shape}_{name}"] = _case(g, dtype, 2, 3, c, h, w, layouts, **more)
    for (name, ((c, h, w), seen)), (order, (layouts, of_out)) in itertools.product(
        views(dtype).items(), LAYOUTS.items()
    ):
        more = dict(out=sheet(4, c, h, w, dtype, of_out), mean=MEAN[:c], std=STD[:c])
        if order == "same":
            more = dict(ascend=True, step=0.01, eps=9.0)
        found[f"view_{name}_{order}"] = _case(g, dtype, 4, 6, c, h, w, layouts, **more, **seen)
    found["grain_large"] = _case(
        g, dtype, 2, 3, 3, 130, 67, (PLANAR,) * 3, **view(2, IDS[:2], 4, True)
    )
    crooked = found["view_grain_crop_planar"]
    found["offset_grain"] = crooked | {k: offset(crooked[k]) for k in ("noise", "grad", "x", "out")}
    crooked = found["even_planar"]
    for moved in ("noise", "grad", "x", "out"):
        found[f"offset_{moved}"] = crooked | {moved: offset(crooked[moved])}
    # A sample without a gradient, one with NaN in it, one with an infinity, one that is fine.
    ties = _case(g, dtype, 4, 5, 3, 3, 3)
    ties["grad"][0] = 0
    ties["grad"][1, 0, 0, 0] = torch.nan
    ties["grad"][2, 1, 2, 2] = -torch.inf
    found["ties"] = ties
    huge = _case(g, dtype, 2, 3, 3, 3, 3, eps=0.01)
    largest = torch.finfo(dtype).max
    huge["grad"] = torch.where(huge["grad"] > 0, largest, -largest).to(dtype)
    huge["noise"] = huge["noise"] * 1e25
    found["huge"] = huge
    tiny = _case(g, dtype, 2, 3, 3, 3, 3)
    # its square is not a number of half precision
    tiny["grad"] = torch.where(tiny["grad"] > 0, 1e-7, -1e-7).to(dtype)
    found["tiny"] = tiny
    return found


def bad(g: torch.Generator) -> dict:
    ok = _case(g, torch.float32, 3, 4, 3, 5, 6)
    return {
        "row_too_high": ok | dict(index=torch.tensor([0, 4, 1])),
        "row_negative": ok | dict(index=torch.tensor([0, -1, 1])),
        "row_of_coarse_noise": _case(g, torch.float32, 3, 4, 3, 5, 6, grain=2)
        | dict(index=torch.tensor([0, 4, -1])),
        "grad_shape": ok | dict(grad=ok["grad"][:2]),
        "x_float": ok | dict(x=ok["x"].float()),
        "bank_layout": ok | dict(noise=ok["noise"].transpose(2, 3).contiguous().transpose(2, 3)),
        "bank_compact": ok | dict(noise=ok["noise"].to(torch.int8)),
        "eps_infinite": ok | dict(eps=float("inf")),
        "step_negative": ok | dict(step=-0.1),
        "grain_zero": ok | dict(grain=0),
        "grain_of_another_bank": ok | dict(grain=2),
        "ids_length": ok | dict(ids=torch.arange(2)),
        "pad_negative": ok | dict(pad=-1),
        "out_shape": ok | dict(out=torch.zeros(3, 3, 5, 5)),
    }


def bench() -> dict:
    """Buffers beyond the cache, with and without the next input."""

    def make(name, dtype, next_input=False, **seen):
        (b, c, h, w), layout = BENCH[name]
        g = torch.Generator().manual_seed(0)
        grad = torch.randn((b, c, h, w), generator=g).to(dtype).contiguous(memory_format=layout)
        out = sheet(b, c, h, w, dtype, layout) if next_input else None
        noise = bank(g, b, c, *coarse(h, w, seen.get("grain", 1)), layout)
        x = pictures(g, b, c, h, w, layout)
        return _args(noise, grad, x, rows(g, b, b), step=0.2, eps=1.0, out=out, **seen)

    found = {
        f"{n}-{str(d)[6:]}-next-grain4-crop-flip": partial(
            make, n, d, True, **view(4, torch.arange(b), 4, True)
        )
        for n, ((b, *_), _) in BENCH.items()
        for d in (torch.float32, torch.bfloat16)
    }
    return found | {
        f"{n}-{str(d)[6:]}{'-next' * more}": partial(make, n, d, more)
        for n in BENCH
        for d in (torch.float32, torch.bfloat16)
        for more in (False, True)
    }
