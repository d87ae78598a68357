"""The emulator of cuda_host/ notices what it is there for: else green tests of the kernels would
mean little."""

import ctypes

import pytest
import torch

from .cuda_host import build, harness

INVALID, ILLEGAL, MISALIGNED, FAILED = 9, 700, 716, 719  # cudaError_t
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def library(compiler):
    return harness.Library(build.build([build.HERE / "sanity.cu"], harness.CACHE))


@pytest.fixture
def call(library):
    """A function (name, arguments, seed) -> error code; a tensor stands for its address."""

    def run(name, *args, seed=0):
        given = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in args]
        with library.order(seed):
            return getattr(library.code, f"run_{name}")(*given)

    return run


@pytest.mark.parametrize("name, length", [("reversed", 64), ("twice", 128)])
def test_a_missing_barrier_shows(name, length, call):
    values = torch.arange(length, dtype=torch.int32)
    right = values.view(-1, 64).sum(0, dtype=torch.int32).flip(0)
    out = torch.empty(64, dtype=torch.int32)
    caught = []
    for seed in SEEDS:
        assert call(name, True, values, out, seed=seed) == 0 and torch.equal(out, right)
        assert call(name, False, values, out, seed=seed) == 0
        caught.append(not torch.equal(out, right))
    assert any(caught), "no order shows it"


def test_shared_memory_is_poison_in_each_block(call):
    out = torch.zeros(1, dtype=torch.int32)
    assert call("not_initialised", out) == 0 and int(out) == 0x7F7F7F7F


@pytest.mark.parametrize("seed", SEEDS)
def test_reading_over_either_end_is_an_error_and_the_next_launch_is_fine(seed, call, library):
    out = torch.empty(4)
    for at_end, offset in ((True, 4), (False, -4)):
        values = harness.fenced(torch.arange(16.0), False, at_end=at_end)
        assert call("quads", values, out, offset, seed=seed) == ILLEGAL
        assert "quads" in library.message() and "an illegal memory access" in library.message()
        assert call("quads", values, out, 0, seed=seed) == 0
        assert torch.equal(out, torch.arange(16.0).view(4, 4).sum(1))


def test_writing_to_what_is_only_read_is_an_error(call):
    out = harness.fenced(torch.empty(4), False, at_end=True)
    assert call("quads", torch.arange(16.0), out, 0) == ILLEGAL


def test_a_misaligned_vector_is_an_error(call, library):
    assert call("quads", torch.arange(20.0), torch.empty(4), 1) == MISALIGNED
    assert "a misaligned address" in library.message()


def test_a_tensor_at_the_start_of_a_page_keeps_its_misalignment(call):
    values = harness.fenced(torch.arange(20.0)[1:17], False, at_end=False)
    assert values.data_ptr() % 16 == 4
    assert call("quads", values, torch.empty(4), 0) == MISALIGNED


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_that_some_threads_never_reach_is_an_error(seed, call, library):
    assert call("parted", 2, seed=seed) == FAILED
    assert "32 wait in line" in library.message()
    assert call("parted_warp", seed=seed) == FAILED
    assert call("parted", 0, seed=seed) == 0  # those that have returned are not waited for


@pytest.mark.parametrize("seed", SEEDS)
def test_collectives(seed, call):
    values = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).round(
        decimals=2
    )
    out = torch.empty(64, 9, dtype=torch.float64)
    assert call("collectives", values, out, seed=seed) == 0
    for t, row in enumerate(out.tolist()):
        warp = t // 32
        total = (
            values[32 * warp : 32 * warp + 32] * 100
        ).round().sum() / 100  # no rounding is left to the order
        assert [round(v, 6) for v in row[:2]] == [
            0 if t % 32 else round(float(total), 6),
            round(float(total), 6),
        ]
        assert row[2:] == [16, 6, warp == 1, warp == 1, 32 * warp + 7, 50, 1]


def test_blocks_of_a_grid_run_once_each_in_the_order_of_the_seed(call):
    orders = []
    for seed in SEEDS:
        order = torch.full((24,), -1, dtype=torch.int32)
        assert call("tickets", torch.zeros(1, dtype=torch.int32), order, 4, 3, 2, 1, seed=seed) == 0
        orders.append(order.tolist())
    assert orders[0] == list(range(24)) and orders[1] == orders[0][::-1]
    assert sorted(orders[2]) == orders[0] and orders[2] not in orders[:2]


@pytest.mark.parametrize("x, y, z, threads", [(0, 1, 1, 1), (1, 65536, 1, 1), (1, 1, 65536, 1), (2**31, 1, 1, 1),
                                              (1, 1, 1, 0), (1, 1, 1, 1025)])  # fmt: skip
def test_the_limits_of_a_grid(x, y, z, threads, call):
    order = torch.full((1,), -1, dtype=torch.int32)
    sizes = [ctypes.c_uint(n) for n in (x, y, z, threads)]
    assert (
        call("tickets", torch.zeros(1, dtype=torch.int32), order, *sizes) == INVALID
        and int(order) == -1
    )


def test_conversions_are_torchs(call):
    """Every half, and floats at, beside and between halves and bfloat16 numbers, subnormal and
    infinite ones too."""
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    numbers = torch.cat([halves.float(), halves.view(torch.bfloat16).float()])
    ties = (numbers.double() + numbers.roll(-1).double()).div(2).float()
    values = torch.cat([numbers, ties])
    values = torch.cat(
        [values, *(values.nextafter(torch.tensor(side)) for side in (-torch.inf, torch.inf))]
    )
    values = values[torch.linspace(0, len(values) - 1, 260000).long()].contiguous()
    bf16, half = (torch.empty(len(values), dtype=torch.int16) for _ in range(2))
    back = torch.empty(65536)
    assert call("convert", values, bf16, half, back, len(values)) == 0
    for bits, dtype in ((bf16, torch.bfloat16), (half, torch.float16)):
        mine, right = bits.view(dtype), values.to(dtype)
        assert torch.equal(mine.isnan(), right.isnan())
        real = ~right.isnan()
        assert torch.equal(mine[real].view(torch.int16), right[real].view(torch.int16))
    assert torch.equal(back.isnan(), halves.isnan())
    assert torch.equal(
        back.nan_to_num().view(torch.int32), halves.float().nan_to_num().view(torch.int32)
    )


def test_launches_are_rewritten_whatever_stands_in_them():
    text = "k<A, B<2>>\n  <<<dim3(f(n, 2), 1), kThreads, 0, s>>>(a, b); ns::plain<<<(n + 3) / 4, 64, 0, s>>>(c);"
    assert build.rewrite_launches(text) == (
        "::cuda_host::launch<&k<A, B<2>>\n  >(dim3(f(n, 2), 1), kThreads, 0, s)(a, b); "
        "::cuda_host::launch<&ns::plain>((n + 3) / 4, 64, 0, s)(c);"
    )


def test_what_does_not_compile_is_said(tmp_path, compiler):
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void wrong() { no_such_thing(); }\n")
    with pytest.raises(build.CompileError, match="no_such_thing"):
        build.build([source], harness.CACHE)
