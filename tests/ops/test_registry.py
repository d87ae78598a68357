"""Choosing a backend, and what a differentiable op gets, on a small op that exists only here."""

import contextlib
import warnings

import pytest
import torch

import fastue.ops
from fastue.core import opspec
from fastue.core.opspec import Backend, BackendError, OpSpec

from . import checks


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
    assert "runs on cpu, tensor is on meta" in op.why_not(
        op.backends[0], [torch.ones(2, device="meta"), 3.0]
    )
    with (
        opspec.use_backend("triton"),
        pytest.raises(BackendError, match="there is no triton backend"),
    ):
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
    registered(
        make(
            "toy_grad",
            lambda name: scaled_reference,
            backward=lambda ctx, g: (g * ctx.factor, None),
        )
    )
    a = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: torch.ops.fastue.toy_grad(t, 2.5), a)
    torch.library.opcheck(
        torch.ops.fastue.toy_grad.default, (torch.rand(4, requires_grad=True), 2.5)
    )


def test_a_written_tensor_is_known_to_autograd():
    """A buffer saved for a backward pass and then overwritten by an op is an error there, not a
    wrong gradient."""
    x = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    out = torch.ones(1, 1, 2, 2)
    weight = torch.ones(1, requires_grad=True)
    product = (out * weight).sum()
    fastue.ops.apply_noise(x, torch.zeros(1, 1, 2, 2), torch.tensor([0]), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


class Divisions(torch.utils._python_dispatch.TorchDispatchMode):
    """Collects divisions of a tensor by a Python number."""

    def __init__(self):
        super().__init__()
        self.by_number = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.div and not isinstance(args[1], torch.Tensor):
            self.by_number.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", checks.OPS.values(), ids=checks.OPS)
def test_the_definition_divides_by_tensors(op):
    """CUDA multiplies by the reciprocal of a number, which rounds otherwise: the definition would
    be another there."""
    with Divisions() as seen:
        torch.ones(2) / 255
    assert seen.by_number == [255]
    cases = checks.cases(op, op.dtypes[0])
    with Divisions() as seen:
        for args in cases.values():
            op.reference(*checks.copied(op, args).values())
    assert not seen.by_number


@pytest.mark.parametrize("op", checks.OPS.values(), ids=checks.OPS)
def test_a_call_like_an_earlier_one_is_still_refused(op):
    """`call` compares dtypes, devices and numbers only: the native kernel has to see the rest, and
    does."""
    backend = next((b for b in op.backends if b.name == "cpp"), None)
    if backend is None or op.function(backend)[0] is None:
        assert backend is None or "cpp" not in checks.tested(op)
        return
    op._ready.clear()
    refusals = op.bad(checks.generator())
    for name, args in refusals.items():
        good = checks.copied(op, checks.cases(op, op.dtypes[0])["odd"])
        for key, value in args.items():  # as close to the bad call as a good one can be
            if not isinstance(value, torch.Tensor | list | None) and key != "slot":
                with contextlib.suppress(ValueError, TypeError, IndexError):
                    op.check(*(good | {key: value}).values())
                    good[key] = value
        with opspec.use_backend("cpp"):
            op.call(*good.values())
            with pytest.raises((ValueError, TypeError, IndexError, RuntimeError)) as caught:
                op.call(*args.values())
        assert not isinstance(caught.value, opspec.BackendError), name
    assert bool(op._ready) == bool(refusals)  # else nothing was remembered


def test_modes_and_traces_see_every_call():
    """The short way past torch's dispatcher is taken only where nobody watches it."""
    x = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    noise, index = torch.zeros(1, 1, 2, 2), torch.tensor([0])
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    fastue.ops.apply_noise(x, noise, index)
    with Watch():
        fastue.ops.apply_noise(x, noise, index)
    assert torch.ops.fastue.apply_noise.default in seen
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, noise, index)]
        assert fastue.ops.apply_noise(*fake).shape == x.shape


def test_an_old_gpu_is_a_reason(monkeypatch):
    """The library loads on any card; without code for it the first launch would fail."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    opspec.too_old.cache_clear()
    assert "needs a GPU of compute capability 8.0" in opspec.too_old(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    opspec.too_old.cache_clear()
    assert opspec.too_old(torch.device("cuda", 0)) == ""
    opspec.too_old.cache_clear()
