"""Cases, refusals and benchmark inputs of apply_noise."""

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
    offset,
    pictures,
    rows,
    sheet,
    view,
    views,
)  # fmt: skip


def _args(
    x, noise, index, out, mean=(), std=(), scale=1.0, ids=None, seed=0, epoch=0, pad=0, flip=False, grain=1
):  # fmt: skip
    return dict(x=x, noise=noise, index=index, out=out, mean=list(mean), std=list(std), scale=scale,
                ids=ids, seed=seed, epoch=epoch, pad=pad, flip=flip, grain=grain)  # fmt: skip


def _case(g, dtype, b, m, c, h, w, layouts=(INTERLEAVED,) * 3, **more):
    lx, ln, lo = layouts
    x, noise = pictures(g, b, c, h, w, lx), bank(g, m, c, *coarse(h, w, more.get("grain", 1)), ln)
    return _args(x, noise, rows(g, b, m), sheet(b, c, h, w, dtype, lo), **more)


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    normal = dict(mean=MEAN, std=STD)
    found = {
        "empty": _case(g, dtype, 0, 4, 3, 8, 8, **normal),
        "one": _case(g, dtype, 1, 1, 1, 1, 1, mean=[0.5], std=[0.25]),
        "odd": _case(g, dtype, 5, 9, 3, 7, 9, **normal),
        "plain": _case(g, dtype, 3, 4, 3, 5, 6),
        "gray": _case(
            g, dtype, 3, 4, 1, 9, 5, (PLANAR, PLANAR, INTERLEAVED), mean=[0.1307], std=[0.3081]
        ),
        "blocks": _case(g, dtype, 3, 4, 3, 67, 65, **normal),
        "planar": _case(g, dtype, 3, 5, 3, 33, 35, (PLANAR,) * 3, **normal),
        "mixed": _case(g, dtype, 3, 5, 3, 33, 35, (INTERLEAVED, PLANAR, PLANAR), **normal),
        "crossed": _case(g, dtype, 3, 5, 3, 33, 35, (PLANAR, INTERLEAVED, INTERLEAVED), **normal),
        "model_layout": _case(
            g, dtype, 3, 5, 3, 33, 35, (INTERLEAVED, INTERLEAVED, PLANAR), **normal
        ),
        "beyond_cache": _case(g, dtype, 3, 4, 3, 500, 500, **normal),
    }
    # Black and white pixels with noise at the budget on every side of the clamp, and exact sums of
    # 0 and 1.
    x = torch.tensor([0, 0, 0, 255, 255, 255, 1, 254, 128, 8, 247, 127], dtype=torch.uint8).view(
        1, 3, 2, 2
    )
    n = torch.tensor([0, EPS, -EPS, 0, EPS, -EPS, -1 / 255, 1 / 255, 0, -EPS, EPS, -0.0]).view(
        1, 3, 2, 2
    )
    index = torch.zeros(1, dtype=torch.int64)
    found["ties"] = _args(x, n, index, sheet(1, 3, 2, 2, dtype, PLANAR), MEAN, STD)
    n = torch.tensor([1e30, -1e30, torch.inf, -torch.inf, 3.0, -3.0] * 2).view(1, 3, 2, 2)
    found["huge"] = _args(x, n, index, sheet(1, 3, 2, 2, dtype, PLANAR), MEAN, STD)
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found["every_pixel"] = _args(x, torch.zeros(1, 1, 16, 16), index, sheet(1, 1, 16, 16, dtype))
    # Class-wise: few rows, many times.
    found["classes"] = _case(g, dtype, 8, 8, 3, 5, 7, **normal)
    found["classes"]["index"] = torch.tensor([7, 0, 7, 7, 3, 0, 1, 7])
    q = compact(g, 6, 3, 9, 11)
    found["compact"] = _args(
        pictures(g, 4, 3, 9, 11),
        q,
        rows(g, 4, 6),
        sheet(4, 3, 9, 11, dtype),
        MEAN,
        STD,
        scale=EPS / 127,
    )
    found["compact_mixed"] = _args(
        pictures(g, 4, 3, 9, 11),
        q,
        rows(g, 4, 6),
        sheet(4, 3, 9, 11, dtype, PLANAR),
        MEAN,
        STD,
        scale=1 / 255,
    )
    for (shape, (c, h, w)), (name, (layouts, of_out)) in itertools.product(
        SHAPES.items(), LAYOUTS.items()
    ):
        norm = dict(mean=MEAN[:c], std=STD[:c]) if name == "same" else {}
        args = _case(g, dtype, 4, 6, c, h, w, (*layouts[:2], of_out), **norm)
        q = dict(
            noise=compact(g, 6, c, h, w, layouts[1]),
            scale=EPS / 127,
            out=sheet(4, c, h, w, dtype, of_out),
        )
        found |= {f"{shape}_{name}": args, f"{shape}_{name}_compact": args | q}
        keyed = dict(
            ids=torch.tensor([3, 2**40 + 1, 17, 99]), seed=-5, epoch=2**33 + 1, pad=3, flip=True
        )
        found[f"{shape}_{name}_crop_compact"] = args | q | keyed
    crooked = found["even_same"]
    for moved in ("x", "noise", "out"):
        found[f"offset_{moved}"] = crooked | {moved: offset(crooked[moved])}
    ids = torch.tensor([0, 5, 2**33 + 1, 49_999, 7, 8, 9, 10])
    keyed = dict(ids=ids, seed=0x1234_5678_9ABC, epoch=3, pad=4, flip=True)
    found["crop_flip"] = _case(g, dtype, 8, 9, 3, 13, 11, **normal, **keyed)
    found["crop_flip_planar"] = _case(g, dtype, 8, 9, 3, 13, 11, (PLANAR,) * 3, **normal, **keyed)
    found["crop_flip_mixed"] = _case(
        g, dtype, 8, 9, 3, 13, 11, (INTERLEAVED, PLANAR, PLANAR), **normal, **keyed
    )
    found["crop_beyond"] = _case(g, dtype, 8, 9, 3, 3, 4, **(keyed | dict(pad=6, flip=False)))
    for (name, ((c, h, w), seen)), (order, (layouts, of_out)) in itertools.product(
        views(dtype).items(), LAYOUTS.items()
    ):
        norm = dict(mean=MEAN[:c], std=STD[:c]) if order != "planar" else {}
        args = _case(g, dtype, 4, 6, c, h, w, (*layouts[:2], of_out), **norm, **seen)
        q = compact(g, 6, c, *coarse(h, w, seen["grain"]), layouts[1])
        found[f"view_{name}_{order}"] = args
        found[f"view_{name}_{order}_compact"] = args | dict(noise=q, scale=EPS / 127)
    # Several tiles of a CPU, with blocks across their borders, and lines that are longer than one.
    found["grain_blocks"] = _case(g, dtype, 2, 3, 3, 67, 65, **normal, grain=5)
    found["grain_planar"] = _case(g, dtype, 2, 3, 3, 67, 65, (PLANAR,) * 3, grain=5)
    found["grain_wide"] = _case(g, dtype, 2, 3, 3, 3, 700, **normal, **view(4, ids[:2], 4, True))
    found["crop_wide"] = _case(g, dtype, 2, 3, 3, 3, 700, **normal, **(keyed | dict(ids=ids[:2])))
    return found


def bad(g: torch.Generator) -> dict:
    def good():
        return _case(g, torch.float32, 3, 4, 3, 5, 6, mean=MEAN, std=STD)

    def swapped(t):
        return t.transpose(2, 3).contiguous().transpose(2, 3)

    ok = good()
    return {
        "row_too_high": ok | dict(index=torch.tensor([0, 4, 1])),
        "row_negative": ok | dict(index=torch.tensor([0, -1, 1])),
        "row_of_coarse_noise": _case(g, torch.float32, 3, 4, 3, 5, 6, grain=2)
        | dict(index=torch.tensor([0, 4, -1])),
        "index_dtype": ok | dict(index=ok["index"].int()),
        "index_length": ok | dict(index=ok["index"][:2]),
        "x_float": ok | dict(x=ok["x"].float()),
        "x_two_channels": ok | dict(x=ok["x"][:, :2].contiguous()),
        "bank_layout": ok | dict(noise=swapped(ok["noise"])),
        "bank_size": ok | dict(noise=ok["noise"][..., :5].contiguous()),
        "bank_dtype": ok | dict(noise=ok["noise"].half()),
        "out_layout": ok | dict(out=swapped(ok["out"])),
        "out_integer": ok | dict(out=ok["x"].clone()),
        "mean_length": ok | dict(mean=[0.5]),
        "std_zero": ok | dict(std=[0.2, 0.0, 0.2]),
        "scale_of_float_bank": ok | dict(scale=0.5),
        "other_device": ok | dict(noise=ok["noise"].to("meta")),
        "pad_negative": ok | dict(pad=-1),
        "grain_zero": ok | dict(grain=0),
        "grain_of_another_bank": ok | dict(grain=2),
        "ids_dtype": ok | dict(ids=torch.zeros(3, dtype=torch.int32)),
    }


def bench() -> dict:
    """Buffers beyond the cache, each output type, the compact bank, and the crop and flip."""

    def make(name, dtype, compact_bank=False, **more):
        (b, c, h, w), layout = BENCH[name]
        g = torch.Generator().manual_seed(0)
        noise = (compact if compact_bank else bank)(
            g, b, c, *coarse(h, w, more.get("grain", 1)), layout
        )
        x, out = pictures(g, b, c, h, w, layout), sheet(b, c, h, w, dtype, layout)
        return _args(
            x,
            noise,
            rows(g, b, b),
            out,
            MEAN,
            STD,
            scale=EPS / 127 if compact_bank else 1.0,
            **more,
        )

    found = {}
    for name, ((b, *_), _) in BENCH.items():
        found[f"{name}-float32"] = partial(make, name, torch.float32)
        found[f"{name}-bfloat16"] = partial(make, name, torch.bfloat16)
        found[f"{name}-float32-compact"] = partial(make, name, torch.float32, True)
        found[f"{name}-bfloat16-compact"] = partial(make, name, torch.bfloat16, True)
        keyed = dict(ids=torch.arange(b), seed=1, epoch=2, pad=4, flip=True)
        found[f"{name}-float32-crop-flip"] = partial(make, name, torch.float32, **keyed)
        found[f"{name}-float32-grain4-crop-flip"] = partial(
            make, name, torch.float32, **keyed, grain=4
        )
    return found
