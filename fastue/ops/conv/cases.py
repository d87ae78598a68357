"""Cases, refusals and benchmark inputs of conv."""

from functools import partial

import torch

LAST = torch.channels_last


def _randn(g, dtype, *shape):
    return torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=LAST)


def case(
    g, dtype, batch, cin, cout, side, kernel=3, stride=1, padding=1, *, transposed=False, relu=False, around=False,
    height=None,
):  # fmt: skip
    """`around`: with bias, gate and residual. `side` and `height` are those of the convolution's
    input."""
    height = height or side
    weight = _randn(g, dtype, cout, cin, kernel, kernel) / (kernel * kernel * max(cin, 1)) ** 0.5
    deep = [(n + 2 * padding - kernel) // stride + 1 for n in (height, side)]
    given, made = (batch, cin, height, side), (batch, cout, *deep)
    given, made = (made, given) if transposed else (given, made)
    return dict(
        x=_randn(g, dtype, *given),
        weight=weight.to(dtype).contiguous(memory_format=LAST),
        bias=torch.randn(made[1], generator=g) if around else None,
        gate=_randn(g, dtype, *given).relu_() if around else None,
        residual=_randn(g, dtype, *made) if around else None,
        out=torch.full(made, torch.nan, dtype=dtype).contiguous(memory_format=LAST),
        stride=stride,
        padding=padding,
        transposed=transposed,
        relu=relu,
    )


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    make = partial(case, g, dtype)
    found = {
        "empty": make(0, 4, 8, 5),
        "one": make(1, 1, 1, 1, kernel=1, padding=0),
        "odd": make(3, 37, 43, 9, 5, 2, 2, height=11, around=True, relu=True),
        "odd_back": make(3, 43, 37, 9, 5, 2, 2, height=11, around=True, transposed=True),
        "blocks": make(67, 64, 96, 8, around=True, relu=True),
        "blocks_back": make(67, 96, 64, 8, around=True, transposed=True),
        "mixed": make(33, 70, 20, 6, 3, 2, 1, around=True),
        "mixed_back": make(33, 20, 70, 6, 3, 2, 1, around=True, transposed=True),
        "few_channels": make(40, 3, 64, 12, relu=True),
        "few_channels_back": make(40, 3, 64, 12, transposed=True),
        "few_channels_gated": make(5, 3, 16, 7, around=True),
        "wide_kernel": make(5, 3, 24, 21, 7, 2, 3, around=True),
        "unpadded": make(4, 18, 8, 9, 5, 1, 0),
        "corner": make(4, 20, 33, 2, 5, 1, 2),  # most taps fall on the padding
        "point": make(20, 64, 130, 5, 1, 2, 0, around=True),
        # most pixels get nothing
        "point_back": make(20, 64, 130, 5, 1, 2, 0, around=True, transposed=True),
        "skipping": make(9, 34, 34, 11, 3, 4, 0),
        "skipping_back": make(9, 34, 34, 11, 3, 4, 0, transposed=True),
        "large": make(2, 32, 32, 70, height=140, relu=True),  # rows in bands
        "large_back": make(2, 32, 32, 70, height=140, transposed=True),
        "ties": make(6, 32, 32, 4, around=True, relu=True),
        "huge": make(6, 40, 32, 4, relu=True),
    }
    # gates of zero, of either sign, and NaN; sums of exactly zero; rounding to bf16 at ties
    ties = found["ties"]
    for name in ("x", "weight", "residual"):
        ties[name] = (ties[name] * 4).round().contiguous(memory_format=LAST)
    ties["gate"][0::3], ties["gate"][1::3] = 0.0, -0.0
    ties["gate"][2, 0, 0, 0] = torch.nan
    ties["gate"].view(torch.int16)[2, 1, 0, 0] = -64  # a NaN with its sign set
    ties["x"][2, :2, 0, 0], ties["weight"][:, :2] = 64.0, 2.0  # so that what passes there shows
    ties["bias"].round_()
    huge = found["huge"]
    huge["x"] *= 1e17
    huge["weight"] *= 1e17
    huge["x"][0, 0, 0, 0] = torch.nan
    huge["x"][1, 1, 0, 0] = torch.inf
    # other layouts of the weight
    found["weight_contiguous"] = make(5, 40, 48, 6) | dict(
        weight=_randn(g, dtype, 48, 40, 3, 3).contiguous() / 20
    )
    found["weight_transposed"] = make(5, 40, 48, 6, transposed=True, around=True)
    found["weight_transposed"]["weight"] = (_randn(g, dtype, 48, 40, 3, 3) / 20).contiguous()
    return found


def bad(g: torch.Generator) -> dict:
    ok = case(g, torch.bfloat16, 3, 8, 16, 6, around=True)
    return {
        "x_planar": ok | dict(x=ok["x"].contiguous()),
        "x_dimensions": ok | dict(x=ok["x"][0]),
        "x_integer": ok | dict(x=ok["x"].long()),
        "x_float32": ok | dict(x=ok["x"].float()),
        "weight_dtype": ok | dict(weight=ok["weight"].float()),
        "weight_channels": ok | dict(weight=ok["weight"][:, :7].contiguous()),
        "weight_empty": ok | dict(weight=ok["weight"][:, :, :0].contiguous()),
        "kernel_too_large": ok | dict(weight=torch.zeros(16, 8, 9, 9, dtype=torch.bfloat16)),
        "bias_length": ok | dict(bias=torch.zeros(8)),
        "bias_dtype": ok | dict(bias=torch.zeros(16, dtype=torch.bfloat16)),
        "gate_shape": ok | dict(gate=ok["gate"][:2]),
        "residual_shape": ok | dict(residual=ok["gate"]),
        "out_size": ok | dict(stride=2),
        "out_layout": ok | dict(out=ok["out"].contiguous()),
        "stride_zero": ok | dict(stride=0),
        "padding_negative": ok | dict(padding=-1),
        "other_way": ok | dict(transposed=True),
        "other_device": ok | dict(residual=ok["residual"].to("meta")),
    }


def bench(case=case, dtype: torch.dtype = torch.bfloat16) -> dict:
    """The 3x3 convolutions of a ResNet-18 for CIFAR, forward and input gradient, a batch of 128."""

    def make(channels, side, back):
        g = torch.Generator().manual_seed(0)
        return case(g, dtype, 128, channels, channels, side, transposed=back, relu=not back)

    shapes = ((64, 32), (128, 16), (256, 8), (512, 4))
    return {
        f"{channels}x{side}{'-back' if back else ''}-{str(dtype)[6:]}": partial(
            make, channels, side, back
        )
        for channels, side in shapes
        for back in (False, True)
    }
