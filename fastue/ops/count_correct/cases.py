"""Cases, refusals and benchmark inputs of count_correct."""

import itertools
from functools import partial

import torch


def _args(logits, y, counts=(5, 0, 2**40), slot=1):
    return dict(logits=logits, y=y, counts=torch.tensor(counts), slot=slot)


def _case(g, dtype, b, k, **more):
    """Half of the rows right."""
    logits = torch.randn((b, k), generator=g).to(dtype)
    y = torch.where(
        torch.rand(b, generator=g) < 0.5, logits.argmax(1), torch.randint(0, k, (b,), generator=g)
    )
    return _args(logits, y, **more)


def _every(dtype, *values):
    """All rows of three of these values, with each class as the right one."""
    rows = torch.tensor(list(itertools.product(values, repeat=3)), dtype=dtype)
    return _args(rows.repeat(3, 1), torch.arange(3).repeat_interleave(len(rows)))


def cases(g: torch.Generator, dtype: torch.dtype) -> dict:
    found = {
        "empty": _case(g, dtype, 0, 10),
        "one": _case(g, dtype, 1, 1, counts=[0], slot=0),
        "odd": _case(g, dtype, 77, 7),
        "blocks": _case(g, dtype, 3203, 10, slot=2),
        "many_classes": _case(g, dtype, 70, 1000),
        "more_classes": _case(g, dtype, 5, 2500, slot=0),
        "mixed": _case(g, dtype, 300, 33),
        "ties": _every(dtype, 0.0, -0.0, 1.0, -1.0, torch.nan),
        "huge": _every(
            dtype, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max, torch.finfo(dtype).min
        ),
    }
    # no class: never right
    found["mixed"]["y"][::3] = torch.tensor([-1, 33, 2**40, -(2**63)]).repeat(25)
    late = _case(g, dtype, 40, 1000)  # an equal one far away, before or behind
    late["logits"][:, [3, 996]] = 100.0
    late["y"] = torch.tensor([3, 996]).repeat(20)
    return found | {"late_ties": late}


def bad(g: torch.Generator) -> dict:
    ok = _case(g, torch.float32, 6, 4)
    return {
        "slot_negative": ok | dict(slot=-1),
        "slot_too_high": ok | dict(slot=3),
        "no_class": ok | dict(logits=ok["logits"][:, :0]),
        "one_dimension": ok | dict(logits=ok["logits"].flatten()),
        "logits_integer": ok | dict(logits=ok["logits"].long()),
        "logits_layout": ok | dict(logits=ok["logits"].t().contiguous().t()),
        "y_length": ok | dict(y=ok["y"][:5]),
        "y_dtype": ok | dict(y=ok["y"].int()),
        "counts_dtype": ok | dict(counts=ok["counts"].int()),
        "counts_layout": ok | dict(counts=torch.zeros(6, dtype=torch.int64)[::2]),
        "other_device": ok | dict(y=ok["y"].to("meta")),
    }


def bench() -> dict:
    """Ten classes and a thousand."""

    def make(b, k, dtype):
        return _case(torch.Generator().manual_seed(0), dtype, b, k)

    found = {"call": partial(make, 1, 10, torch.float32)}
    for name, b, k in (("cifar", 50_000, 10), ("imagenet", 8192, 1000)):
        for dtype in (torch.float32, torch.bfloat16):
            found[f"{name}-{str(dtype)[6:]}"] = partial(make, b, k, dtype)
    return found
