"""Cases, refusals and benchmark inputs of conv_weights."""

from functools import partial

import torch

LAST = torch.channels_last


def _case(
    g, dtype, batch, cin, cout, side, kernel=3, stride=1, padding=1, *, height=None, layout=LAST
):
    """`side` and `height` are those of the convolution's input."""
    height = height or side
    deep = [(n + 2 * padding - kernel) // stride + 1 for n in (height, side)]
    x, grad = (
        torch.randn((batch, cin, height, side), generator=g),
        torch.randn((batch, cout, *deep), generator=g),
    )
    return dict(
        x=x.to(dtype).contiguous(memory_format=LAST),
        grad=grad.to(dtype).contiguous(memory_format=LAST),
        out=torch.full((cout, cin, kernel, kernel), torch.nan).contiguous(memory_format=layout),
        stride=stride,
        padding=padding,
    )


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    case = partial(_case, g, dtype)
    found = {
        "empty": case(0, 4, 8, 5),
        "one": case(1, 1, 1, 1, 1, 1, 0),
        "odd": case(3, 37, 43, 9, 5, 2, 2, height=11),
        "blocks": case(67, 64, 96, 8),
        "mixed": case(33, 70, 20, 6, 3, 2, 1),
        "few_channels": case(40, 3, 64, 12),
        "wide_kernel": case(5, 3, 24, 21, 7, 2, 3),
        "unpadded": case(4, 18, 8, 9, 5, 1, 0),
        "corner": case(4, 20, 33, 2, 5, 1, 2),  # most taps fall on the padding
        "point": case(20, 64, 130, 5, 1, 2, 0),
        "skipping": case(9, 34, 34, 11, 3, 4, 0),
        "large": case(2, 32, 32, 24, height=40),  # rows in bands
        "groups": case(130, 32, 16, 2),  # pictures in groups
        "out_contiguous": case(5, 40, 48, 6, layout=torch.contiguous_format),
        "ties": case(6, 32, 32, 4),
        "huge": case(6, 40, 32, 4),
    }
    found["ties"]["x"].round_()
    found["ties"]["grad"].round_()
    found["huge"]["x"] *= 1e17
    found["huge"]["grad"] *= 1e17
    found["huge"]["x"][0, 0, 0, 0] = torch.nan
    found["huge"]["x"][1, 1, 0, 0] = torch.inf
    return found


def bad(g: torch.Generator) -> dict:
    ok = _case(g, torch.bfloat16, 3, 8, 16, 6)
    return {
        "x_planar": ok | dict(x=ok["x"].contiguous()),
        "x_dimensions": ok | dict(x=ok["x"][0]),
        "x_dtype": ok | dict(x=ok["x"].half()),
        "grad_dtype": ok | dict(grad=ok["grad"].float()),
        "grad_batch": ok | dict(grad=ok["grad"][:2]),
        "grad_layout": ok | dict(grad=ok["grad"].contiguous()),
        "grad_size": ok | dict(stride=2),
        "out_dtype": ok | dict(out=ok["out"].bfloat16()),
        "out_channels": ok | dict(out=ok["out"][:, :7].contiguous()),
        "out_empty": ok | dict(out=ok["out"][:, :, :0].contiguous()),
        "kernel_too_large": ok | dict(out=torch.zeros(16, 8, 9, 9)),
        "stride_zero": ok | dict(stride=0),
        "padding_negative": ok | dict(padding=-1),
        "other_device": ok | dict(grad=ok["grad"].to("meta")),
    }


def bench() -> dict:
    """The 3x3 convolutions of a ResNet-18 for CIFAR, a batch of 128."""

    def make(channels, side):
        return _case(
            torch.Generator().manual_seed(0), torch.bfloat16, 128, channels, channels, side
        )

    shapes = ((64, 32), (128, 16), (256, 8), (512, 4))
    return {
        f"{channels}x{side}-bfloat16": partial(make, channels, side) for channels, side in shapes
    }
