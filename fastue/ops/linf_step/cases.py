"""Cases, refusals and benchmark inputs of linf_step."""

import itertools
from functools import partial

import torch

from fastue.ops._cases import (
    BENCH,
    EPS,
    INTERLEAVED,
    LAYOUTS,
    MEAN,
    PLANAR,
    SHAPES,
    STD,
    bank,
    coarse,
    compact,
    gradient,
    offset,
    pictures,
    rows,
    sheet,
    view,
    views,
)  # fmt: skip

STEP = 0.8 / 255


def _args(
    noise,
    grad,
    x,
    index,
    step=STEP,
    eps=EPS,
    ascend=False,
    scale=1.0,
    mask=None,
    out=None,
    mean=(),
    std=(),
    **seen,
):
    return dict(noise=noise, grad=grad, x=x, index=index, step=step, eps=eps, ascend=ascend, scale=scale,
                mask=mask, out=out, mean=list(mean), std=list(std), **(view() | seen))  # fmt: skip


def _case(g, dtype, b, m, c, h, w, layouts=(INTERLEAVED,) * 3, make=bank, **more):
    ln, lg, lx = layouts
    size = coarse(h, w, more.get("grain", 1))
    noise, grad = make(g, m, c, *size, ln), gradient(g, b, c, h, w, dtype, lg)
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
        "big_step": _case(g, dtype, 3, 5, 3, 7, 9, step=2 * EPS, ascend=True),
        "next_input": _case(g, dtype, 5, 9, 3, 7, 9, **out(5, 3, 7, 9)),
        "next_input_planar": _case(g, dtype, 3, 5, 3, 33, 35, (PLANAR,) * 3, **out(3, 3, 33, 35, PLANAR)),
        "next_input_mixed": _case(
            g, dtype, 3, 5, 3, 33, 35, (INTERLEAVED, PLANAR, INTERLEAVED), **out(3, 3, 33, 35, PLANAR)
        ),
        "next_input_beyond_cache": _case(g, dtype, 3, 4, 3, 500, 500, **out(3, 3, 500, 500)),
        "mask": _case(g, dtype, 5, 9, 3, 7, 9, mask=torch.rand((5, 1, 7, 9), generator=g) < 0.5),
        "mask_planar": _case(
            g, dtype, 3, 5, 3, 33, 35, (PLANAR,) * 3, mask=torch.rand((3, 1, 33, 35), generator=g) < 0.5
        ),
        "mask_shared": _case(
            g, dtype, 5, 9, 3, 7, 9, mask=torch.rand((1, 1, 7, 9), generator=g) < 0.5, **out(5, 3, 7, 9)
        ),
        "compact": _case(g, dtype, 5, 9, 3, 7, 9, make=compact, scale=EPS / 127),
        "compact_blocks": _case(g, dtype, 3, 5, 3, 67, 65, make=compact, scale=EPS / 127, ascend=True),
        "compact_mixed": _case(
            g, dtype, 3, 5, 3, 33, 35, (PLANAR, INTERLEAVED, INTERLEAVED), compact, scale=EPS / 127,
            **out(3, 3, 33, 35),
        ),
        "compact_mask": _case(
            g, dtype, 5, 9, 3, 7, 9, make=compact, scale=EPS / 127, mask=torch.rand((5, 1, 7, 9), generator=g) < 0.5
        ),
        "compact_coarse": _case(g, dtype, 5, 9, 3, 7, 9, make=compact, scale=EPS / 100),
        "compact_half_steps": _case(g, dtype, 5, 9, 3, 7, 9, make=compact, scale=EPS / 127, step=12.5 * EPS / 127),
    }  # fmt: skip
    for (shape, (c, h, w)), (name, (layouts, of_out)) in itertools.product(
        SHAPES.items(), LAYOUTS.items()
    ):
        more = dict(out=sheet(4, c, h, w, dtype, of_out), mean=MEAN[:c], std=STD[:c])
        if name == "same":
            more = dict(mask=torch.rand((4, 1, h, w), generator=g) < 0.5)
        found[f"{shape}_{name}"] = _case(g, dtype, 4, 6, c, h, w, layouts, **more)
        more |= dict(out=sheet(4, c, h, w, dtype, of_out), make=compact, scale=EPS / 127)
        found[f"{shape}_{name}_compact"] = _case(g, dtype, 4, 6, c, h, w, layouts, **more)
    for (name, ((c, h, w), seen)), (order, (layouts, of_out)) in itertools.product(
        views(dtype).items(), LAYOUTS.items()
    ):
        more = dict(out=sheet(4, c, h, w, dtype, of_out), mean=MEAN[:c], std=STD[:c])
        if order == "same":  # no next input, and a mask of the bank's size
            size = coarse(h, w, seen["grain"])
            more = dict(mask=torch.rand((4, 1, *size), generator=g) < 0.5, ascend=True)
        found[f"view_{name}_{order}"] = _case(g, dtype, 4, 6, c, h, w, layouts, **more, **seen)
        more |= dict(out=sheet(4, c, h, w, dtype, of_out), make=compact, scale=EPS / 127)
        found[f"view_{name}_{order}_compact"] = _case(
            g, dtype, 4, 6, c, h, w, layouts, **more, **seen
        )
    crooked = found["view_grain_crop_planar"]
    found["offset_grain"] = crooked | {k: offset(crooked[k]) for k in ("noise", "grad", "x", "out")}
    crooked = found["even_planar"]
    found["offset"] = crooked | {k: offset(crooked[k]) for k in ("noise", "grad", "x", "out")}
    for moved in ("noise", "grad", "x", "out"):
        found[f"offset_{moved}"] = crooked | {moved: offset(crooked[moved])}
    # Gradients of both zeros, NaNs and infinities; noise at 0 and at the budget; pixels where the
    # range binds.
    grad = torch.tensor(
        [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-8, -1e-8, 1.0, -1.0, 0.0, 2.0, -2.0]
    )
    noise = torch.tensor([0.0, EPS, -EPS, EPS, -EPS, -EPS, EPS, 0.0, -0.0, STEP, STEP, -STEP])
    for name, pixels in (
        ("ties", [128] * 12),
        ("ties_black", [0] * 12),
        ("ties_white", [255] * 12),
        ("ties_edges", [1, 2, 3, 252, 253, 254, 8, 247, 7, 248, 9, 246]),
    ):
        x = torch.tensor(pixels, dtype=torch.uint8).view(1, 3, 2, 2)
        signed = grad.to(dtype)
        # NaN has a sign: each meets noise that could move
        signed[9], signed[2] = (signed[2].clone(), signed[2].abs())
        args = _args(noise.view(1, 3, 2, 2).clone(), signed.view(1, 3, 2, 2), x, torch.tensor([0]))
        found[name] = args | dict(ascend=name == "ties_white")
    levels = (noise.flip(0) * 127 / EPS).round().to(torch.int8).view(1, 3, 2, 2)
    found["ties_compact"] = found["ties_edges"] | dict(noise=levels, scale=EPS / 127)
    # A block whose pixels cancel, one with a NaN, one of infinities of both signs; and blocks with
    # room on one side in one pixel only.
    sums = torch.tensor(
        [[2.0, -1, 3, torch.nan], [-1, 0, 1, 1], [torch.inf, 0, -0.0, 0], [1, -torch.inf, 0, -0.0]]
    )
    x = torch.tensor(
        [[0, 0, 255, 255], [0, 3, 255, 251], [0, 255, 9, 9], [7, 0, 9, 250]], dtype=torch.uint8
    )
    for ascend in (False, True):
        noise = torch.tensor([[EPS, -EPS], [0.0, EPS]]).view(1, 1, 2, 2).clone()
        args = _args(
            noise, sums.to(dtype).view(1, 1, 4, 4), x.view(1, 1, 4, 4), torch.tensor([0]), 0.03
        )
        found[f"grain_ties_{ascend}"] = args | dict(grain=2, ascend=ascend)
    huge = _case(g, dtype, 2, 3, 3, 3, 3)
    largest = torch.finfo(dtype).max
    huge["grad"] = torch.where(huge["grad"] > 0, largest, -largest).to(dtype)
    huge["noise"] = huge["noise"] * 1e30
    found["huge"] = huge
    return found


def bad(g: torch.Generator) -> dict:
    def swapped(t):
        return t.transpose(2, 3).contiguous().transpose(2, 3)

    ok = _case(g, torch.float32, 3, 4, 3, 5, 6)
    return {
        "row_too_high": ok | dict(index=torch.tensor([0, 4, 1])),
        "row_negative": ok | dict(index=torch.tensor([0, -1, 1])),
        "row_of_coarse_noise": _case(g, torch.float32, 3, 4, 3, 5, 6, grain=2)
        | dict(index=torch.tensor([0, 4, -1])),
        "index_dtype": ok | dict(index=ok["index"].int()),
        "grad_shape": ok | dict(grad=ok["grad"][:2]),
        "grad_integer": ok | dict(grad=ok["grad"].int()),
        "x_float": ok | dict(x=ok["x"].float()),
        "bank_layout": ok | dict(noise=swapped(ok["noise"])),
        "bank_dtype": ok | dict(noise=ok["noise"].half()),
        "eps_in_levels": ok | dict(eps=8.0),
        "step_negative": ok | dict(step=-0.1),
        "compact_without_scale": ok | dict(noise=ok["noise"].to(torch.int8), scale=0.0),
        "mask_shape": ok | dict(mask=torch.ones(3, 3, 5, 6, dtype=torch.bool)),
        "mask_dtype": ok | dict(mask=torch.ones(3, 1, 5, 6)),
        "out_shape": ok | dict(out=torch.zeros(3, 3, 5, 5)),
        "grain_zero": ok | dict(grain=0),
        "grain_of_another_bank": ok | dict(grain=2),
        "grain_mask_of_the_picture": _case(g, torch.float32, 3, 4, 3, 5, 6, grain=2)
        | dict(mask=torch.ones(3, 1, 5, 6, dtype=torch.bool)),
        "ids_length": ok | dict(ids=torch.arange(2)),
        "pad_negative": ok | dict(pad=-1),
        "other_device": ok | dict(grad=ok["grad"].to("meta")),
    }


def bench() -> dict:
    """Buffers beyond the cache, with and without the next input, float32 and compact state."""

    def make(name, dtype, next_input=False, compact_bank=False, **seen):
        (b, c, h, w), layout = BENCH[name]
        g = torch.Generator().manual_seed(0)
        grad = torch.randn((b, c, h, w), generator=g).to(dtype).contiguous(memory_format=layout)
        size = coarse(h, w, seen.get("grain", 1))
        noise = (compact if compact_bank else bank)(g, b, c, *size, layout)
        out = sheet(b, c, h, w, dtype, layout) if next_input else None
        return _args(noise, grad, pictures(g, b, c, h, w, layout), rows(g, b, b),
                     scale=EPS / 127 if compact_bank else 1.0, out=out, **seen)  # fmt: skip

    g = torch.Generator().manual_seed(0)
    found = {"call": partial(_case, g, torch.float32, 1, 4, 3, 32, 32)}
    for name, ((b, *_), _) in BENCH.items():
        seen = view(4, torch.arange(b), 4, True)
        for dtype in (torch.float32, torch.bfloat16):
            label = f"{name}-{str(dtype)[6:]}"
            found[label] = partial(make, name, dtype)
            found[f"{label}-next"] = partial(make, name, dtype, True)
            found[f"{label}-compact"] = partial(make, name, dtype, False, True)
            found[f"{label}-compact-next"] = partial(make, name, dtype, True, True)
            found[f"{label}-grain4"] = partial(make, name, dtype, **view(4))
            found[f"{label}-next-crop-flip"] = partial(
                make, name, dtype, True, **seen | dict(grain=1)
            )
            found[f"{label}-next-grain4-crop-flip"] = partial(make, name, dtype, True, **seen)
    return found
