"""Cases, refusals and benchmark inputs of diffusion_step."""

import math
from functools import partial

import torch

from fastue.ops._cases import INTERLEAVED, PLANAR, offset, pictures

SEED = -0x1234_5678_9ABC
# At t = 19 of 1000 with beta from 1e-4 to 0.02: what a released purifier runs.
AT_19 = dict(alpha_bar=0.99434, c0=0.0843, cx=0.9155, sigma=0.0219)


def _ids(b: int) -> torch.Tensor:
    """Both words of them count; none is like another."""
    return (torch.arange(b) - 2) * (2**33 + 1) + 7


def _args(x, eps=None, y=None, grad=None, ids=None, **more):
    numbers = dict(alpha_bar=1.0, c0=0.0, cx=1.0, pull=0.0, noisy=False, push=0.0, sigma=0.0,
                   seed=SEED, iteration=3, t=19)  # fmt: skip
    ids = _ids(len(x)) if ids is None else ids
    return dict(x=x, eps=eps, y=y, grad=grad, ids=ids) | numbers | more


def _case(g, dtype, b, c, h, w, layouts=(INTERLEAVED,) * 4, *, guided=True, climbs=True, **more):
    lx, le, ly, lg = layouts

    def floats(layout, of=torch.float32):
        return torch.randn((b, c, h, w), generator=g).to(of).contiguous(memory_format=layout)

    x, eps = floats(lx) * 0.6, floats(le, dtype)
    y, grad = pictures(g, b, c, h, w, ly), floats(lg)
    numbers = dict(alpha_bar=0.6, c0=0.7, cx=0.4, sigma=0.5)
    numbers |= dict(pull=0.3) if guided else {}
    numbers |= dict(push=0.2) if climbs else {}
    return _args(x, eps, y if guided else None, grad if climbs else None, **numbers | more)


def _start(g, b, c, h, w, layout, alpha_bar=0.9, **more):
    x = torch.randn((b, c, h, w), generator=g).contiguous(memory_format=layout)
    return _args(x, cx=math.sqrt(alpha_bar), sigma=math.sqrt(1 - alpha_bar), **more)


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    mixed = (PLANAR, INTERLEAVED, INTERLEAVED, PLANAR)
    crossed = (INTERLEAVED, PLANAR, PLANAR, INTERLEAVED)
    found = {
        "empty": _case(g, dtype, 0, 3, 8, 8),
        "no_pixel": _case(g, dtype, 2, 3, 0, 8),
        "one": _case(g, dtype, 1, 1, 1, 1),
        "odd": _case(g, dtype, 5, 3, 7, 9),
        "odd_planar": _case(g, dtype, 3, 3, 5, 5, (PLANAR,) * 4, noisy=True),
        # more than a tile, not a multiple of four
        "blocks": _case(g, dtype, 2, 3, 47, 33, noisy=True),
        "blocks_planar": _case(g, dtype, 2, 3, 49, 33, (PLANAR,) * 4),
        # a multiple of four, with more than one block of GPU threads
        "blocks_even": _case(g, dtype, 2, 3, 36, 40),
        "mixed": _case(g, dtype, 4, 3, 8, 12, mixed, noisy=True),
        "crossed": _case(g, dtype, 4, 3, 8, 12, crossed),
        "gray": _case(g, dtype, 3, 1, 8, 12),
        "gray_odd": _case(g, dtype, 3, 1, 7, 5, noisy=True),
        "gray_odd_planar": _case(g, dtype, 2, 1, 5, 7, (PLANAR,) * 4),
        "plain": _case(g, dtype, 3, 3, 8, 8, guided=False, climbs=False),
        "last": _case(g, dtype, 3, 3, 8, 8, sigma=0.0),
        "released": _case(g, dtype, 3, 3, 8, 8, (PLANAR,) * 4, climbs=False, noisy=True, **AT_19),
        "all_of_y": _case(g, dtype, 2, 3, 8, 8, pull=1.0, sigma=0.0),
        "start": _start(g, 3, 3, 9, 8, INTERLEAVED),
        "start_planar": _start(g, 3, 3, 8, 8, PLANAR),
        # neither of the two noises of such a step is the other's
        "start_noisy": _start(g, 2, 3, 4, 6, PLANAR, y=pictures(g, 2, 3, 4, 6), noisy=True, pull=0.4,
                              alpha_bar=0.7),
    }  # fmt: skip
    # Every word of the counter and of the key at its end; the same ids twice.
    far = torch.tensor([-(2**63), 2**63 - 1, -1, 0, -1])
    for name, seed, iteration, t in (("far", -(2**63), 255, 65535), ("far_seed", 2**63 - 1, 0, 0)):
        x = torch.zeros((5, 3, 4, 4))
        found[name] = _args(x, ids=far, sigma=1.0, seed=seed, iteration=iteration, t=t)
    # Too crooked in memory for a vector access.
    crooked = _case(g, dtype, 3, 3, 8, 8, (PLANAR,) * 4)
    found["offset"] = crooked | {k: offset(crooked[k]) for k in ("x", "eps", "y", "grad")}
    # Exactly at the clip, and beside it; the ends of y.
    half = torch.tensor([0.5, -0.5, 0.5000001, -0.5000001, 0.4999999, -0.4999999, 0.0, -0.0])
    x, y = half.repeat(2).view(2, 1, 2, 4), torch.tensor([0, 255, 127, 128], dtype=torch.uint8)
    eps = torch.zeros((2, 1, 2, 4), dtype=dtype)
    found["ties"] = _args(x, eps, y.repeat(4).view(2, 1, 2, 4), alpha_bar=0.25, c0=1.0, cx=0.0, pull=0.5)  # fmt: skip
    large = [1e30, -1e30, torch.inf, -torch.inf, torch.nan, 1e-40, 1e38, 0.5]
    wild = torch.tensor([6e4, torch.inf, -torch.inf, torch.nan, 1.0, -6e4, 0.0, 1e-7]).to(dtype)
    x = torch.tensor(large).repeat(8).view(1, 1, 8, 8)
    huge = dict(alpha_bar=0.5, c0=0.5, cx=0.25, sigma=0.1, push=1.0)
    grad = torch.tensor(large).roll(3).repeat_interleave(8).view(1, 1, 8, 8)
    found["huge"] = _args(x, wild.repeat_interleave(8).view(1, 1, 8, 8), None, grad, **huge)
    return found


def bad(g: torch.Generator) -> dict:
    ok = _case(g, torch.float32, 3, 3, 5, 6)
    none = dict(eps=None, y=None, pull=0.0)
    return {
        "x_half": ok | dict(x=ok["x"].half()),
        "x_layout": ok | dict(x=ok["x"].transpose(2, 3).contiguous().transpose(2, 3)),
        "two_channels": ok | {k: ok[k][:, :2].contiguous() for k in ("x", "eps", "y", "grad")},
        "eps_shape": ok | dict(eps=ok["eps"][:2]),
        "eps_integer": ok | dict(eps=ok["eps"].int()),
        "y_float": ok | dict(y=ok["x"].clone()),
        "y_shape": ok | dict(y=ok["y"][:, :, :4].contiguous()),
        "grad_half": ok | dict(grad=ok["grad"].half()),
        "ids_length": ok | dict(ids=ok["ids"][:2]),
        "ids_dtype": ok | dict(ids=ok["ids"].int()),
        "pull_without_y": ok | dict(y=None),
        "noisy_without_y": ok | none | dict(noisy=True),
        "y_without_eps": ok | dict(eps=None),
        "alpha_bar_zero": ok | dict(alpha_bar=0.0),
        "alpha_bar_above": ok | dict(alpha_bar=1.01),
        "alpha_bar_nan": ok | dict(alpha_bar=math.nan),
        "pull_negative": ok | dict(pull=-0.1),
        "pull_beyond": ok | dict(pull=1.1),
        "pull_infinite": ok | dict(pull=math.inf, noisy=True),
        "sigma_negative": ok | dict(sigma=-0.1),
        "sigma_nan": ok | dict(sigma=math.nan),
        "c0_nan": ok | dict(c0=math.nan),
        "cx_infinite": ok | dict(cx=math.inf),
        "push_infinite": ok | dict(push=-math.inf),
        "iteration_negative": ok | dict(iteration=-1),
        "iteration_too_high": ok | dict(iteration=256),
        "t_negative": ok | dict(t=-1),
        "t_too_high": ok | dict(t=65536),
        "other_device": ok | dict(eps=ok["eps"].to("meta")),
    }


def bench() -> dict:
    """The batch of the released purifier, planar, and one of large pictures, channels_last: guided
    steps, those with a noisy copy (two normal numbers a value), and starts."""

    def make(shape, layout, dtype, **more):
        g = torch.Generator().manual_seed(0)
        return _case(g, dtype, *shape, (layout,) * 4, climbs=False, **AT_19 | more)

    def start(shape, layout):
        return _start(torch.Generator().manual_seed(0), *shape, layout)

    found = {}
    for name, shape, layout in (
        ("cifar", (500, 3, 32, 32), PLANAR),
        ("imagenet", (16, 3, 224, 224), INTERLEAVED),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            label = f"{name}-{str(dtype)[6:]}"
            found[label] = partial(make, shape, layout, dtype)
            found[f"{label}-noisy"] = partial(make, shape, layout, dtype, noisy=True)
        found[f"{name}-start"] = partial(start, shape, layout)
    return found
