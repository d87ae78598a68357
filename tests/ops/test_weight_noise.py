"""The noise engine: known answers, bits, and whether the numbers are normal and independent. Seeds
are fixed: what passes once passes always. Bounds are those of a true N(0, 1) at about four standard
deviations."""

import math

import pytest
import torch
from scipy import stats

import fastue.ops
from fastue.core import opspec
from fastue.ops import _keyed, weight_noise
from fastue.ops.weight_noise.cases import table_of

from . import checks

OP = opspec.registry()["weight_noise"]
FAST = [side.backend for side in checks.tested(OP) if side.backend != "reference"]
DEVICE = dict(checks.tested(OP)) | {"auto": "cpu", "reference": "cpu"}


def noise(
    blocks,
    draws,
    *,
    backend="auto",
    dtype=torch.float32,
    seed=11,
    purpose=fastue.ops.WEIGHTS_CERTIFY,
):
    """[K, D]: z alone."""
    base, table, draws = torch.zeros(64 * sum(blocks)), table_of(blocks), torch.tensor(draws)
    given = [t.to(DEVICE[backend]) for t in (base, table, draws)]
    with opspec.use_backend(backend):
        return weight_noise(*given, sigma=1.0, seed=seed, purpose=purpose, dtype=dtype).cpu()


def exact(blocks, draws, **more):
    base, table = torch.zeros(64 * sum(blocks), dtype=torch.float64), table_of(blocks)
    more = dict(sigma=1.0, seed=11, purpose=fastue.ops.WEIGHTS_CERTIFY) | more
    return weight_noise(base, table, torch.tensor(draws), dtype=torch.float64, **more)


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, -1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, words):
    """The vectors that Random123 publishes for philox4x32-10. The kernels' Philox is compared with
    this one."""
    found = _keyed.philox(tuple(torch.tensor([c]) for c in counter), key)
    assert " ".join(f"{int(w):08x}" for w in found) == words


def test_definition_by_hand():
    """One element out of the middle, from its words."""
    words = _keyed.philox((torch.tensor([16 * 5 + 3]), 2, 9, 4), 77)
    w2, w3 = (int(w) for w in words[2:])
    u = w2 / 2**32 + ((w3 & 255) + 0.5) / 2**40
    radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * (w3 >> 8) / 2**24
    z = exact([4, 1, 8], [9], seed=77, purpose=4)[0].view(-1, 64)[4 + 1 + 5]
    assert math.isclose(z[3 + 32], radius * math.cos(angle), rel_tol=1e-12)
    assert math.isclose(z[3 + 48], radius * math.sin(angle), rel_tol=1e-12)


def bits(args: dict, backend: str) -> torch.Tensor:
    """What a backend writes, on its own device."""
    return checks.run(OP, checks.copied(OP, args, place=checks.on(DEVICE[backend])), backend)[
        "out"
    ].cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_backends_give_the_same_bits(dtype):
    """All but the reference; bfloat16 is the float32 result rounded once, to nearest."""
    if len(FAST) < 2:
        pytest.skip(f"only {FAST} here")
    for args in checks.cases(OP, dtype).values():
        wide = args | dict(out=torch.empty(args["out"].shape))
        first, *others = (bits(args, backend) for backend in FAST)
        rounded = bits(wide, FAST[-1]).to(dtype)
        for other in (*others, rounded):
            assert torch.equal(
                torch.nan_to_num(first).view(torch.uint8), torch.nan_to_num(other).view(torch.uint8)
            )


def band(backend: str, blocks: int, draws: range) -> float:
    """The largest error of z, absolute. Each is at most four units in the last place, but where the
    definition's own cosine of a quarter turn is 6e-17 instead of zero."""
    worst = 0.0
    for draw in draws:
        z, wanted = noise([blocks], [draw], backend=backend)[0].double(), exact([blocks], [draw])[0]
        error, unit = (z - wanted).abs(), 2.0 ** (torch.frexp(wanted).exponent - 24)
        assert (error <= 4 * unit + 1e-15).all(), (
            f"{(error / unit).max():.2f} units in the last place"
        )
        worst = max(worst, error.max().item())
    return worst


@pytest.mark.parametrize("backend", FAST)
def test_the_band_around_the_definition(backend):
    assert 0 < band(backend, 2048, range(1)) <= OP.atol


@pytest.mark.slow
def test_the_band_around_the_definition_in_many_draws():
    """2^26 values. The room's number is the worst of them, rounded up."""
    worst = band("cpp", 2**14, range(64))
    assert OP.atol / 2 <= worst <= OP.atol


def test_no_noise_gives_base():
    base, draws = torch.randn(640, generator=checks.generator()), torch.tensor([0, 1])
    for backend, device in checks.tested(OP):
        given = [t.to(device) for t in (base, table_of([10]), draws)]
        for dtype in (torch.float32, torch.bfloat16):
            with opspec.use_backend(backend):
                out = weight_noise(*given, sigma=0.0, seed=1, purpose=2, dtype=dtype)
            assert torch.equal(out.cpu(), base.to(dtype).expand(2, -1))


def test_a_draw_depends_on_its_number_alone():
    """Not on the company it is made in, on threads, or on which other parameters are there."""
    blocks, draws = [700, 33, 1], [5, 0, 2**32 - 1, 6]
    together = noise(blocks, draws)
    for k, draw in enumerate(draws):
        assert torch.equal(noise(blocks, [draw])[0], together[k])
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(noise(blocks, draws), together)
    finally:
        torch.set_num_threads(threads)
    alone = torch.zeros(64 * 33)
    part = weight_noise(
        alone, table_of([33], [1]), torch.tensor(draws), sigma=1.0, seed=11, purpose=2
    )
    assert torch.equal(part, together[:, 64 * 700 : 64 * 733])


def test_every_part_of_the_key_counts():
    """Other seed (either half), purpose, draw or parameter, other numbers: no value of one set is
    found in another."""
    sets = [noise([8], [0])[0], noise([8], [1])[0], noise([8], [0], purpose=3)[0]]
    sets += [
        noise([8], [0], seed=12)[0],
        noise([8], [0], seed=11 + 2**32)[0],
        noise([0, 8], [0])[0],
    ]
    together = torch.cat(sets)
    assert len(together.unique()) >= len(together) - 2


def is_normal(z: torch.Tensor) -> None:
    """Moments, the whole distribution, the tails and the sum of squares of independent N(0, 1)."""
    z, n = z.flatten().double(), z.numel()
    for power, (mean, variance) in {
        1: (0, 1),
        2: (1, 2),
        3: (0, 15),
        4: (3, 96),
        6: (15, 10170),
    }.items():
        assert abs((z**power).mean().item() - mean) <= 4 * math.sqrt(variance / n), (
            f"moment {power}"
        )
    ordered, steps = (
        torch.special.ndtr(z.sort().values),
        torch.arange(n + 1, dtype=torch.float64) / n,
    )
    distance = max((steps[1:] - ordered).max().item(), (ordered - steps[:-1]).max().item())
    assert distance * math.sqrt(n) <= 2.2, f"Kolmogorov-Smirnov: {distance:.2e}"  # once in 8000
    for bound in (1e-3, 3.0, 4.0, 4.5, 5.0, 5.5):
        p = 2 * stats.norm.sf(bound) if bound > 1 else 2 * stats.norm.cdf(bound) - 1
        count = int((z.abs() > bound).sum() if bound > 1 else (z.abs() < bound).sum())
        law = stats.binom(n, p)
        assert min(law.cdf(count), law.sf(count - 1)) > 1e-5, (
            f"{count} beyond {bound}, expected {n * p:.1f}"
        )
    assert 1e-5 < stats.chi2.cdf((z * z).sum().item(), n) < 1 - 1e-5


def are_independent(rows: torch.Tensor) -> None:
    """No two rows [n, d] are correlated, nor their squares; nor a row with itself moved by a lane
    or a block."""
    d = rows.shape[1]
    moved = [rows[:1].roll(shift, dims=1) for shift in (1, 16, 32, 48, 64)]
    z = torch.cat([rows, *moved]).double()
    for values in (z, (z * z - 1) / math.sqrt(2)):
        products = values @ values.T / d
        products.fill_diagonal_(0)
        assert products.abs().max() <= 4.5 / math.sqrt(d)  # of some 150 pairs


def test_values_are_normal_and_independent():
    """Half a million: eight draws, and eight parameters of one draw."""
    draws = noise([1024], range(8))
    is_normal(draws)
    are_independent(draws)
    parameters = noise([1024] * 8, [3]).view(8, -1)
    is_normal(parameters)
    are_independent(parameters)


@pytest.mark.slow
def test_values_are_normal_and_independent_in_many_draws():
    """2^24 values, and the sums of squares of 200 draws of a million."""
    draws = noise([2**15], range(8))
    is_normal(draws)
    are_independent(draws)
    sums = torch.cat([(noise([2**14], [k]).double() ** 2).sum(1) for k in range(200)])
    assert stats.kstest(sums.numpy(), stats.chi2(2**20).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_tails_in_very_many_draws():
    """2^28 values: 154 are expected beyond 5, 10 beyond 5.5, 0.5 beyond 6."""
    counts = dict.fromkeys((4.5, 5.0, 5.5, 6.0), 0)
    for k in range(64):
        z = noise([2**16], [k], purpose=fastue.ops.WEIGHTS_ATTACK).abs()
        for bound in counts:
            counts[bound] += int((z > bound).sum())
    for bound, count in counts.items():
        law = stats.poisson(2**28 * 2 * stats.norm.sf(bound))
        assert min(law.cdf(count), law.sf(count - 1)) > 1e-4, (
            f"{count} beyond {bound}, expected {law.mean():.1f}"
        )
