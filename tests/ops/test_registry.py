"""Choosing a backend, and what a differentiable op gets, on a small op that exists only here."""

import warnings

import pytest
import torch

import fastue.ops
from fastue.core import opspec
from fastue.core.opspec import Backend, BackendError, OpSpec


def scaled_reference(a, factor):
    return a * factor


def make(name: str, load, backward=None, dtypes=opspec.FLOAT32) -> OpSpec:
    def setup(ctx, inputs, output):
        ctx.factor = inputs[1]

    return OpSpec(
        name=name,
        schema="(Tensor a, float factor) -> Tensor",
        reference=scaled_reference,
        check=lambda a, factor: None,
        fake=lambda a, factor: torch.empty_like(a),
        cases=lambda g, dtype: {"one": dict(a=torch.ones(3, dtype=dtype), factor=2.0)},
        atol=0.0,
        backends=(Backend("cpp", "cpu", dtypes, load),),
        backward=backward,
        setup_context=setup if backward else None,
    )


def missing(name):
    raise ImportError("not available: nothing was built")


@pytest.fixture
def registered(monkeypatch):
    """Register a spec for one test. Its torch op stays; the registry forgets it."""
    monkeypatch.setattr(opspec, "_REGISTRY", dict(opspec._REGISTRY))
    monkeypatch.setattr(opspec, "_warned", set())
    return opspec.register


def test_auto_takes_the_first_that_runs_else_the_reference(registered):
    calls = []

    def load(name):
        return lambda a, factor: calls.append("cpp") or a * factor

    op = registered(make("toy_auto", load))
    torch.ops.fastue.toy_auto(torch.ones(2), 3.0)
    assert calls == ["cpp"]
    double = torch.ops.fastue.toy_auto(torch.ones(2, dtype=torch.float64), 3.0)
    assert calls == ["cpp"] and double.dtype == torch.float64
    with opspec.use_backend("reference"):
        torch.ops.fastue.toy_auto(torch.ones(2), 3.0)
    assert calls == ["cpp"]
    assert op.backend_names == ("cpp", "reference")


def test_a_named_backend_runs_or_says_every_reason(registered):
    op = registered(make("toy_named", missing))
    with opspec.use_backend("cpp"), pytest.raises(BackendError) as caught:
        torch.ops.fastue.toy_named(torch.ones(2, dtype=torch.float16), 3.0)
    for reason in ("nothing was built", "no torch.float16"):
        assert reason in str(caught.value)
    assert "runs on cpu, tensor is on meta" in op.why_not(op.backends[0], [torch.ones(2, device="meta"), 3.0])
    with opspec.use_backend("triton"), pytest.raises(BackendError, match="there is no triton backend"):
        torch.ops.fastue.toy_named(torch.ones(2), 3.0)
    with pytest.raises(BackendError, match="choose one of"), opspec.use_backend("gpu"):
        pass


def test_the_environment_chooses_and_a_block_overrules_it(monkeypatch):
    monkeypatch.setenv("FASTUE_BACKEND", "Reference")
    assert opspec.chosen_backend() == "reference"
    with opspec.use_backend("cpp"):
        assert opspec.chosen_backend() == "cpp"
    assert opspec.chosen_backend() == "reference"
    monkeypatch.setenv("FASTUE_BACKEND", "fast")
    with pytest.raises(BackendError, match="FASTUE_BACKEND='fast'"):
        opspec.chosen_backend()


def test_one_warning_when_fast_code_is_missing(registered):
    registered(make("toy_slow", missing))
    with pytest.warns(UserWarning, match="nothing was built"):
        torch.ops.fastue.toy_slow(torch.ones(2), 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.ops.fastue.toy_slow(torch.ones(2), 3.0)


def test_no_warning_for_a_dtype_that_only_the_reference_has(registered):
    registered(make("toy_double", lambda name: scaled_reference))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.ops.fastue.toy_double(torch.ones(2, dtype=torch.float64), 3.0)


def test_a_differentiable_op_has_its_gradient_declared_once(registered):
    registered(make("toy_grad", lambda name: scaled_reference, backward=lambda ctx, g: (g * ctx.factor, None)))
    a = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: torch.ops.fastue.toy_grad(t, 2.5), a)
    torch.library.opcheck(torch.ops.fastue.toy_grad.default, (torch.rand(4, requires_grad=True), 2.5))


def test_a_written_tensor_is_known_to_autograd():
    """A buffer saved for a backward pass and then overwritten by an op is an error there, not a wrong gradient."""
    x = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    out = torch.ones(1, 1, 2, 2)
    weight = torch.ones(1, requires_grad=True)
    product = (out * weight).sum()
    fastue.ops.apply_noise(x, torch.zeros(1, 1, 2, 2), torch.tensor([0]), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
