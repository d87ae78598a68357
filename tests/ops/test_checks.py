"""The generic test can fail, and knows what to test where: on ops that exist only here."""

import pytest
import torch

from bench import ops
from fastue.core.opspec import FLOATS, Backend, OpSpec

from . import checks
from .cuda_host import harness


def doubled_reference(out, a):
    out.copy_(2 * a)


def doubled_by(over: int, before: int = 0):
    """A kernel that begins `before` elements early and ends `over` elements late."""

    def doubled(out, a):
        def wide(t):
            return t._base.as_strided(
                (before + t.numel() + over,), (1,), t.storage_offset() - before
            )

        wide(out).copy_(2 * wide(a))

    return doubled


def toy(*backends: Backend) -> OpSpec:
    return OpSpec(
        name="toy",
        schema="(Tensor(a!) out, Tensor a) -> ()",
        reference=doubled_reference,
        check=lambda out, a: None,
        cases=lambda g, dtype: {"one": toy_args(dtype)},
        dtypes=(torch.float32, torch.float64),
        atol=0.0,
        backends=backends,
    )


def toy_args(dtype):
    return dict(out=torch.zeros(5, dtype=dtype), a=torch.arange(5).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("over, before", [(1, 0), (0, 1)])
def test_a_kernel_that_writes_on_what_it_read_beyond_is_caught(over, before, dtype):
    """It turns the NaN beside its input into NaN beside its output."""
    right, wrong = (
        toy(Backend("cpp", "cpu", FLOATS, lambda _, f=f: f))
        for f in (doubled_by(0), doubled_by(over, before))
    )
    checks.compare(right, toy_args(dtype), "cpp")
    with pytest.raises(AssertionError, match="out: memory beside it was written"):
        checks.compare(wrong, toy_args(dtype), "cpp")


def test_a_changed_input_is_caught():
    def changes(out, a):
        doubled_reference(out, a)
        a[2] += 1

    with pytest.raises(AssertionError, match="a: an input was changed"):
        checks.compare(
            toy(Backend("cpp", "cpu", FLOATS, lambda _: changes)), toy_args(torch.float32), "cpp"
        )


def test_a_copy_keeps_strides_and_alignment():
    t = torch.arange(60, dtype=torch.float32)[3:].as_strided((4, 3), (2, 9))
    for place in (checks.guarded, harness.RUNS["begins"][1]):
        copy = place(t, False)
        assert copy.stride() == t.stride() and torch.equal(copy, t)
        assert copy.data_ptr() % 16 == t.data_ptr() % 16 == 12


def ready(name: str):
    return lambda out, a: None


def missing(name: str):
    raise ImportError("not available: nothing was built")


def sides(*, gpu: bool, interpreted: bool, monkeypatch, load=ready) -> list[str]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
    return [f"{side} on {side.device}" for side in checks.tested(toy(*all_backends(load)))]


def all_backends(load):
    return (
        Backend("cuda", "cuda", FLOATS, load),
        Backend("triton", "cuda", FLOATS, load, interpretable=True),
        Backend("cpp", "cpu", FLOATS, ready),
    )


def test_which_backend_is_tested_on_which_device(monkeypatch):
    monkeypatch.delenv("FASTUE_REQUIRE", raising=False)
    cpu = ["cpp on cpu", "reference on cpu"]
    both = [*cpu, "reference-cuda on cuda"]
    assert sides(gpu=False, interpreted=True, monkeypatch=monkeypatch) == ["triton on cpu", *cpu]
    assert sides(gpu=False, interpreted=False, monkeypatch=monkeypatch) == cpu
    assert sides(gpu=True, interpreted=False, monkeypatch=monkeypatch) == [
        "cuda on cuda",
        "triton on cuda",
        *both,
    ]
    assert sides(gpu=True, interpreted=True, monkeypatch=monkeypatch) == [
        "cuda on cuda",
        "triton on cpu",
        *both,
    ]
    assert sides(gpu=True, interpreted=False, monkeypatch=monkeypatch, load=missing) == both


@pytest.mark.parametrize(
    "gpu, load, reason", [(True, missing, "nothing was built"), (False, ready, "no cuda device")]
)
def test_a_required_backend_that_is_missing_fails(gpu, load, reason, monkeypatch):
    monkeypatch.setenv("FASTUE_REQUIRE", "cuda,triton")
    listed = sides(gpu=gpu, interpreted=False, monkeypatch=monkeypatch, load=load)
    assert listed[:2] == ["cuda on cuda", "triton on cuda"]
    for name in ("cuda", "triton"):
        with pytest.raises(
            pytest.fail.Exception, match=f"FASTUE_REQUIRE names {name}, but not available: {reason}"
        ):
            checks.need(
                toy(*all_backends(load)), checks.Side(name, "cuda"), toy_args(torch.float32)
            )


def test_the_benchmark_leaves_out_what_cannot_run_and_says_why(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert ops.left_out(toy(*all_backends(ready)), cpu) == {
        "cuda": "runs on cuda",
        "triton": "runs on cuda",
    }
    assert ops.left_out(toy(*all_backends(ready)), cuda) == {
        "triton": "is interpreted",
        "cpp": "runs on cpu",
    }
    assert "nothing was built" in ops.left_out(toy(*all_backends(missing)), cuda)["cuda"]


def test_the_benchmark_finds_red_cases_of_the_dtypes_that_a_backend_takes():
    """float64 is none of them here, and no error."""
    red = ops.red_cases(toy(*all_backends(ready)), "cpp", torch.device("cpu"))
    assert len(red) == 1 and red[0].startswith("toy cpp float32 one: ")
    assert ops.red_cases(toy(*all_backends(ready)), "reference", torch.device("cpu")) == []
