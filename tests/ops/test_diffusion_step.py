"""The diffusion step: what its noise depends on, the same bits everywhere, normal numbers, and a
step by hand. Seeds are fixed: what passes once passes always."""

import math

import pytest
import torch

from fastue.core import opspec
from fastue.ops import _keyed, diffusion_step
from fastue.ops._cases import INTERLEAVED, PLANAR

from . import checks
from .test_weight_noise import are_independent, is_normal

OP = opspec.registry()["diffusion_step"]
SIDES = checks.tested(OP)
FAST = [side for side in SIDES if side.backend != "reference"]


def step(args: dict, **more) -> torch.Tensor:
    """x after a step on these arguments; they stay as they are."""
    args = checks.copied(OP, args | more)
    diffusion_step(**args)
    return args["x"]


def noise(ids, shape, *, backend="auto", eps=False, **more) -> torch.Tensor:
    """[len(ids), *shape]: z alone, of a start or (eps) of a step."""
    x = torch.zeros((len(ids), *shape))
    numbers = dict(cx=0.0, sigma=1.0, seed=11, iteration=2, t=19) | more
    with opspec.use_backend(backend):
        diffusion_step(x, torch.zeros_like(x) if eps else None, torch.tensor(ids), **numbers)
    return x


def test_a_step_by_hand():
    """One value out of the middle, from the formulas and the words of its counter."""
    args = checks.cases(OP, torch.float32)["odd"]
    b, c, row, column = 2, 1, 4, 5
    pixel, quads = row * 9 + column, 16
    id_, a, use = int(args["ids"][b]), args["alpha_bar"], _keyed.DIFFUSION_STEP | 3 << 8 | 19 << 16
    words = _keyed.philox(
        (torch.tensor([c * quads + pixel // 4]), id_ & 0xFFFFFFFF, id_ >> 32 & 0xFFFFFFFF, use),
        args["seed"],
    )
    z = _keyed.normals(words)[pixel % 4].item()
    x, eps, y, grad = (float(args[k][b, c, row, column]) for k in ("x", "eps", "y", "grad"))
    x0 = min(max(x / math.sqrt(a) - eps * math.sqrt(1 / a - 1), -1), 1)
    x0 += args["pull"] * (2 * y / 255 - 1 - x0)
    wanted = args["c0"] * x0 + args["cx"] * x + args["sigma"] * z + args["push"] * grad
    assert math.isclose(step(args)[b, c, row, column], wanted, abs_tol=2e-6)


@pytest.mark.parametrize("dtype", OP.dtypes, ids=lambda d: str(d)[6:])
def test_backends_give_the_same_bits(dtype):
    """All but the reference."""
    if len(FAST) < 2:
        pytest.skip(f"only {FAST} here")
    for name, args in checks.cases(OP, dtype).items():
        results = [
            checks.run(OP, checks.copied(OP, args, place=checks.on(s.device)), s.backend)["x"].cpu()
            for s in FAST
        ]
        for other in results[1:]:
            first, other = (t.nan_to_num().view(torch.int32) for t in (results[0], other))
            assert torch.equal(first, other), name


@pytest.mark.parametrize("case", ["blocks", "blocks_planar", "mixed", "gray_odd", "start"])
def test_a_picture_depends_on_itself_alone(case):
    """Not on the batch it is in, its layout, the order or threads."""
    args = checks.cases(OP, torch.float32)[case]
    together, tensors = step(args), ("x", "eps", "y", "grad", "ids")

    def some(which) -> dict:
        return args | {k: args[k][which] for k in tensors if args[k] is not None}

    for i in range(len(together)):
        assert torch.equal(step(some([i]))[0], together[i])
    backwards = list(reversed(range(len(together))))
    assert torch.equal(step(some(backwards)), together[backwards])
    for layout in (PLANAR, INTERLEAVED):
        turned = {
            k: args[k].contiguous(memory_format=layout) for k in tensors[:4] if args[k] is not None
        }
        assert torch.equal(step(args | turned), together)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(step(args), together)
    finally:
        torch.set_num_threads(threads)


def test_every_part_of_the_key_counts():
    """Other seed (either half), id (either half), iteration, t, use, channel or pixel, other
    numbers: no value of one set is found in another."""
    shape, first = (3, 8, 8), [5]
    sets = [noise(first, shape), noise(first, shape, eps=True), noise([6], shape)]
    sets += [noise([5 + 2**32], shape), noise(first, shape, seed=12)]
    sets += [noise(first, shape, seed=11 + 2**32), noise(first, shape, iteration=3)]
    sets += [noise(first, shape, t=20), noise(first, shape, t=19 + 256)]
    y = torch.full((1, *shape), 255, dtype=torch.uint8)
    copy = dict(y=y, noisy=True, pull=1.0, alpha_bar=0.5, sigma=0.0)
    sets.append((noise(first, shape, **copy) - math.sqrt(0.5)) / math.sqrt(0.5))
    together = torch.cat(sets).flatten()
    assert len(together.unique()) >= len(together) - 2
    products = torch.corrcoef(torch.stack([s.flatten() for s in sets]).double())
    assert products.fill_diagonal_(0).abs().max() <= 4.5 / math.sqrt(sets[0].numel())


@pytest.mark.parametrize("side", FAST, ids=str)
def test_the_band_around_the_definition(side):
    """z itself, value by value."""
    if side.device != "cpu":
        pytest.skip("weight_noise's test measures it there")
    z = noise([3, 2**40], (3, 64, 64), backend=side.backend).double()
    exact = torch.zeros_like(z)
    with opspec.use_backend("reference"):
        diffusion_step(
            exact, None, torch.tensor([3, 2**40]), cx=0.0, sigma=1.0, seed=11, iteration=2, t=19
        )
    assert 0 < (z - exact).abs().max() <= OP.atol


def test_values_are_normal_and_independent():
    """Of pictures, channels, steps and iterations."""
    z = noise(range(24), (3, 64, 64))
    is_normal(z)
    are_independent(z.view(24, -1))
    are_independent(z.transpose(0, 1).reshape(3, -1))
    times = [noise([7], (3, 128, 128), t=t, iteration=k) for t in range(4) for k in range(4)]
    are_independent(torch.cat(times).view(16, -1))


def test_known_answers():
    """x0 alone; a start; the last step; all of y."""
    args = checks.cases(OP, torch.float32)["plain"]
    a = args["alpha_bar"]
    x0 = step(args, c0=1.0, cx=0.0, sigma=0.0)
    wanted = args["x"] / math.sqrt(a) - args["eps"] * math.sqrt(1 / a - 1)
    torch.testing.assert_close(x0, wanted.clamp(-1, 1))
    assert x0.abs().max() == 1 and (x0.abs() < 1).any()
    y = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = torch.zeros((1, 1, 16, 16))
    diffusion_step(
        x, torch.zeros_like(x), torch.tensor([0]), cx=0.0, c0=1.0, sigma=0.0, seed=0, iteration=0,
        t=0, y=y, pull=1.0,
    )  # fmt: skip
    torch.testing.assert_close(x, y / 127.5 - 1)
    still = step(args, c0=0.0, cx=1.0, sigma=0.0)
    assert torch.equal(still, args["x"])
