"""The int8 state, every case there is: all stored values x all pixel values x all kinds of
gradient, bit for bit."""

import pytest
import torch

from fastue.ops._cases import view
from tests.ops import checks

BYTES = {  # budget, step, unit of the state; in 1/255
    "default": (8, 0.8, 8 / 127),
    "half the budget at once": (8, 4, 8 / 127),
    "wide": (16, 1.6, 16 / 127),
    "narrow": (2, 0.4, 2 / 127),
    "state finer than the budget": (8, 0.8, 4 / 127),
    "state coarser than the budget": (8, 0.8, 1),
    "step ends on a tie": (8, 12.5 * 8 / 127, 8 / 127),
    "step beyond a byte": (8, 20, 8 / 127),
    "budget beyond the table": (40, 4, 40 / 127),
    "last budget of the table": (31, 4, 31 / 127),
    "no step": (8, 0, 8 / 127),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ascend", [False, True])
@pytest.mark.parametrize("case", BYTES)
def test_every_value(case, ascend, dtype):
    eps, step, scale = (v / 255 for v in BYTES[case])
    kinds = [
        1.0,
        -1.0,
        0.0,
        -0.0,
        float("nan"),
        -float("nan"),
        float("inf"),
        -float("inf"),
        1e-40,
        -1e-40,
    ]
    stored, pixel, kind = torch.meshgrid(
        torch.arange(-127, 128), torch.arange(256), torch.arange(len(kinds)), indexing="ij"
    )
    shape = (1, 1, 255, 256 * len(kinds))
    x, gradient = pixel.to(torch.uint8).view(shape), torch.tensor(kinds)[kind].to(dtype).view(shape)
    op, results = checks.OPS["linf_step"], []
    for side in (checks.Side("reference", "cpu"), checks.Side("cpp", "cpu")):
        args = dict(
            noise=stored.to(torch.int8).view(shape).clone(), grad=gradient, x=x,
            index=torch.zeros(1, dtype=torch.int64), step=step, eps=eps, ascend=ascend, scale=scale,
            mask=None, out=torch.empty(shape), mean=[], std=[], **view(),
        )  # fmt: skip
        checks.need(op, side, args)
        results.append(checks.run(op, args, side.backend))
    wanted, found = results
    noise = found["noise"]
    assert (
        torch.equal(noise, wanted["noise"]) and (found["out"] - wanted["out"]).abs().max() <= 1e-7
    )
    if case != "no step":
        assert (noise.view(-1) != stored.reshape(-1)).float().mean() > 0.2
