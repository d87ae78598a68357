"""Cases, refusals and benchmark inputs of weight_noise."""

from functools import partial

import torch

from fastue.ops._keyed import WEIGHTS_CERTIFY


def table_of(blocks, parameters=None) -> torch.Tensor:
    """int64 [sum of blocks] for parameters of so many blocks of 64 elements, numbered from 0 where
    not told."""
    numbers = range(len(blocks)) if parameters is None else parameters
    return torch.cat([torch.arange(n) + (p << 32) for p, n in zip(numbers, blocks, strict=True)])


def _args(base, table, draws, dtype, sigma=0.25, seed=0x1234_5678_9ABC, purpose=WEIGHTS_CERTIFY):
    out = torch.full((len(draws), len(base)), torch.nan, dtype=dtype)
    draws = torch.tensor(draws, dtype=torch.int64)
    return dict(
        base=base, table=table, draws=draws, out=out, sigma=sigma, seed=seed, purpose=purpose
    )


def _case(g, dtype, blocks, draws=(0,), **more):
    return _args(
        torch.randn(64 * sum(blocks), generator=g) * 0.1, table_of(blocks), draws, dtype, **more
    )


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    found = {
        "empty": _case(g, dtype, [0], [3, 4]),
        "no_draw": _case(g, dtype, [2], []),
        "one": _case(g, dtype, [1]),
        "odd": _case(g, dtype, [3, 1, 7]),
        "blocks": _case(g, dtype, [300, 1, 399], [5, 6]),
        "mixed": _case(g, dtype, [1, 9, 2, 30], [7, 0, 2**32 - 1, 7], sigma=1.0),
    }
    # Every word of the counter and of the key at its end, parameters in any order.
    far = torch.tensor([2**28 - 1, 0, 2**27 + 5]) + (torch.tensor([-1, 2**31 - 1, -(2**31)]) << 32)
    found["far"] = _args(torch.zeros(192), far, [2**31, 2**32 - 1], dtype, 1.0, -(2**63), 2**32 - 1)
    found["far_seed"] = _args(torch.zeros(192), far, [1], dtype, 1.0, 2**63 - 1, 0)
    # No noise: base comes through exactly. Halfway between two bfloat16 numbers, to the even one.
    halfway = (torch.arange(256, dtype=torch.int32) + 0x3F80 << 16) + 0x8000
    found["ties"] = _args(halfway.view(torch.float32), table_of([3, 1]), [0, 1], dtype, 0.0)
    huge = torch.tensor([1e30, -1e30, torch.inf, -torch.inf, 3e38, -3e38, torch.nan, 1e-40]).repeat(
        8
    )
    found["huge"] = _args(huge, table_of([1]), [0, 1], dtype, 1.0)
    return found


def bad(g: torch.Generator) -> dict:
    ok = _case(g, torch.float32, [3, 2], [1, 2, 3])
    return {
        "not_padded": ok | dict(base=ok["base"][:-1].clone(), out=ok["out"][:, :-1].clone()),
        "base_dtype": ok | dict(base=ok["base"].bfloat16()),
        "table_length": ok | dict(table=ok["table"][:4]),
        "table_dtype": ok | dict(table=ok["table"].int()),
        "block_too_high": ok | dict(table=ok["table"] + 2**28 - 1),
        "draws_dtype": ok | dict(draws=ok["draws"].int()),
        "draw_negative": ok | dict(draws=torch.tensor([1, -1, 2])),
        "draw_too_high": ok | dict(draws=torch.tensor([1, 2, 2**32])),
        "out_rows": ok | dict(out=ok["out"][:2]),
        "out_columns": ok | dict(out=ok["out"][:, :64].clone()),
        "out_layout": ok | dict(out=ok["out"].t().contiguous().t()),
        "out_dtype": ok | dict(out=ok["out"].half()),
        "sigma_negative": ok | dict(sigma=-0.1),
        "sigma_infinite": ok | dict(sigma=float("inf")),
        "sigma_nan": ok | dict(sigma=float("nan")),
        "purpose_negative": ok | dict(purpose=-1),
        "purpose_too_high": ok | dict(purpose=2**32),
        "other_device": ok | dict(draws=ok["draws"].to("meta")),
    }


def resnet18() -> list[int]:
    """Elements of the 62 parameters of ResNet-18 for 32x32 pictures: 11 173 962."""
    found, width = [3 * 64 * 9, 64, 64], 64
    for wide in (64, 128, 256, 512):
        for into, shortcut in ((width, wide != width), (wide, False)):
            found += [into * wide * 9, wide, wide, wide * wide * 9, wide, wide]
            found += [into * wide, wide, wide] if shortcut else []
        width = wide
    return [*found, 512 * 10, 10]


def small() -> list[int]:
    """Elements of the parameters of a net of four convolutions and a linear layer: 242 474."""
    found, width = [], 3
    for wide in (32, 64, 128, 128):
        found += [width * wide * 9, wide, wide]
        width = wide
    return [*found, 128 * 10, 10]


def bench() -> dict:
    """A large model and a small one, one draw; eight draws of the small one; both dtypes of the
    result."""

    def make(sizes, draws, dtype):
        blocks = [-(-n // 64) for n in sizes()]
        g = torch.Generator().manual_seed(0)
        return _case(g, dtype, blocks, range(draws), sigma=0.05)

    found = {}
    for name, sizes, draws in (
        ("resnet18", resnet18, 1),
        ("small", small, 1),
        ("small-8", small, 8),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            found[f"{name}-{str(dtype)[6:]}"] = partial(make, sizes, draws, dtype)
    return found
