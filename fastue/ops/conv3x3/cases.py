"""Cases, refusals and benchmark inputs of conv3x3."""

from functools import partial

import torch

from fastue.ops.conv import cases as of_conv


def _case(g, dtype, batch, cin, cout, side, **how):
    made = of_conv.case(g, dtype, batch, cin, cout, side, **how)
    return {name: value for name, value in made.items() if name not in ("stride", "padding")}


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    case = partial(_case, g, dtype)
    found = {
        "empty": case(0, 4, 8, 5),
        "one": case(1, 1, 1, 1),
        "odd": case(3, 37, 43, 9, height=11, around=True, relu=True),
        "odd_back": case(3, 43, 37, 9, height=11, around=True, transposed=True),
        "mixed": case(33, 70, 20, 6, around=True),
        "mixed_back": case(33, 20, 70, 6, around=True, transposed=True),
        "few_channels": case(40, 3, 64, 12, relu=True),
        "few_channels_back": case(40, 3, 64, 12, transposed=True),
        "blocks": case(19, 32, 96, 16, around=True, relu=True),  # of tiles: several for a thread
        "large_weights": case(30, 128, 144, 8, around=True),
        "large_weights_back": case(30, 128, 144, 8, around=True, transposed=True),
        # written past the cache
        "large_output": case(1, 8, 32, 160, height=260, around=True, relu=True),
        "large_output_odd": case(1, 5, 24, 211, relu=True),
        "ties": case(6, 32, 32, 4, around=True, relu=True),
        "huge": case(6, 40, 32, 6, relu=True),
        "weight_contiguous": case(5, 40, 48, 6),
        "weight_transposed": case(5, 40, 48, 6, transposed=True, around=True),
    }
    gate = found["ties"]["gate"]  # zero of either sign and NaN of either sign
    gate[0::3], gate[1::3], gate[2, 0] = 0.0, -0.0, torch.nan
    gate[2, 1] = -gate[2, 0]
    huge = found["huge"]
    huge["x"] *= 1e17
    huge["weight"] *= 1e17
    # all of a picture: a single NaN reaches the whole of its tiles
    huge["x"][2], huge["x"][4] = (torch.nan, torch.inf)
    for name in ("weight_contiguous", "weight_transposed"):
        found[name]["weight"] = found[name]["weight"].contiguous()
    return found


def bad(g: torch.Generator) -> dict:
    ok = _case(g, torch.float32, 3, 8, 16, 6, around=True)
    return {
        "x_planar": ok | dict(x=ok["x"].contiguous()),
        "x_dimensions": ok | dict(x=ok["x"][0]),
        "x_bfloat16": ok | dict(x=ok["x"].bfloat16()),
        "weight_dtype": ok | dict(weight=ok["weight"].bfloat16()),
        "weight_channels": ok | dict(weight=ok["weight"][:, :7].contiguous()),
        "weight_5x5": ok | dict(weight=torch.zeros(16, 8, 5, 5)),
        "weight_dimensions": ok | dict(weight=ok["weight"][0]),
        "bias_length": ok | dict(bias=torch.zeros(8)),
        "bias_dtype": ok | dict(bias=torch.zeros(16, dtype=torch.bfloat16)),
        "gate_shape": ok | dict(gate=ok["gate"][:2]),
        "residual_shape": ok | dict(residual=ok["gate"]),
        "out_size": ok
        | dict(out=ok["out"][:, :, :5].contiguous(memory_format=torch.channels_last)),
        "out_layout": ok | dict(out=ok["out"].contiguous()),
        "other_way": ok | dict(transposed=True),
        "other_device": ok | dict(residual=ok["residual"].to("meta")),
    }


def bench() -> dict:
    return of_conv.bench(_case, torch.float32)
