"""The one test of all ops. It names none: a new op brings cases, a new backend brings nothing."""

import pytest
import torch

import fastue.ops
from fastue.core import opspec
from fastue.ops._cases import REQUIRED

from . import checks

CASES = [
    pytest.param(op, dtype, case, id=f"{op.name}-{str(dtype)[6:]}-{case}")
    for op in checks.OPS.values()
    for dtype in op.dtypes
    for case in checks.cases(op, dtype)
]
ON_BACKENDS = [
    pytest.param(*p.values, backend, id=f"{p.id}-{backend}") for p in CASES for backend in checks.tested(p.values[0])
]
FIRST = [p for p in CASES if p.values[1] == p.values[0].dtypes[0]]
BAD = [
    pytest.param(op, case, backend, id=f"{op.name}-{case}-{backend}")
    for op in checks.OPS.values()
    for case in op.bad(checks.generator())
    for backend in checks.tested(op)
]


def arguments(op, dtype, case):
    return checks.copied(checks.cases(op, dtype)[case])


@pytest.mark.parametrize("op, dtype, case, backend", ON_BACKENDS)
def test_values(op, dtype, case, backend):
    args = arguments(op, dtype, case)
    checks.need(op, backend, args)
    checks.compare(op, args, backend)


@pytest.mark.parametrize("op, dtype, case", FIRST)
def test_opcheck(op, dtype, case):
    args = arguments(op, dtype, case)
    torch.library.opcheck(getattr(torch.ops.fastue, op.name).default, tuple(args.values()))


@pytest.mark.parametrize("op, dtype, case", [p for p in FIRST if p.values[2] in ("odd", "mixed")])
def test_public_function_compiles_into_one_graph(op, dtype, case):
    """The function people call, traced whole, gives the eager bits. aot_eager: inductor is not what is tested."""
    args = arguments(op, dtype, case)
    public = getattr(fastue.ops, op.name)
    eager, traced = checks.copied(args), checks.copied(args)
    public(**eager)
    torch._dynamo.reset()
    torch.compile(public, fullgraph=True, backend="aot_eager")(**traced)
    for i in op.mutated:
        name = op.arguments[i].name
        if eager[name] is not None:
            assert torch.equal(eager[name], traced[name])


@pytest.mark.parametrize("op, case, backend", BAD)
def test_bad_arguments_are_refused(op, case, backend):
    """Before anything is written, with an error that says what is wrong."""
    args = op.bad(checks.generator())[case]
    good = checks.cases(op, op.dtypes[0])["odd"]
    checks.need(op, backend, good)
    written = [args[op.arguments[i].name] for i in op.mutated]
    written = [t for t in written if t is not None and t.device.type != "meta"]
    before = [t.clone() for t in written]
    with opspec.use_backend(backend), pytest.raises((ValueError, TypeError, IndexError, RuntimeError)) as caught:
        getattr(torch.ops.fastue, op.name)(*args.values())
    assert not isinstance(caught.value, opspec.BackendError) and str(caught.value)
    for old, new in zip(before, written, strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())


@pytest.mark.parametrize("op", checks.OPS.values(), ids=checks.OPS)
def test_cases_can_fail(op):
    """The cases that random shapes miss are there under their names, and cases do not depend on hidden state."""
    for dtype in op.dtypes:
        cases = checks.cases(op, dtype)
        assert set(REQUIRED) <= set(cases), set(REQUIRED) - set(cases)
        again = op.cases(checks.generator(), dtype)
        for name, args in cases.items():
            assert list(args) == [a.name for a in op.arguments], name
            for key, value in args.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value.nan_to_num(), again[name][key].nan_to_num()), (name, key)


@pytest.mark.parametrize("op", checks.OPS.values(), ids=checks.OPS)
def test_gradients(op):
    """Where a gradient is declared: gradcheck of the reference in float64, each backend against it."""
    if op.backward is None:
        assert op.setup_context is None
        return
    function = getattr(torch.ops.fastue, op.name)
    for case, given in checks.cases(op, torch.float32).items():
        wide = [_leaf(v.double()) if _is_float(v) else v for v in given.values()]
        with opspec.use_backend("reference"):
            assert torch.autograd.gradcheck(function, wide, fast_mode=True), case
            exact = _gradients(function, wide)
            own = _gradients(function, [_leaf(v) if _is_float(v) else v for v in given.values()])
        for backend in op.backends:
            if op.why_not(backend, list(given.values())):
                continue
            with opspec.use_backend(backend.name):
                got = _gradients(function, [_leaf(v) if _is_float(v) else v for v in given.values()])
            for value, mine, wanted in zip(got, own, exact, strict=True):
                loss = (mine - wanted).abs().amax() if wanted.numel() else 0.0
                assert ((value - wanted).abs() <= 2 * loss + op.atol).all(), f"{case} on {backend.name}"


def _is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _leaf(t):
    return t.detach().clone().requires_grad_()


def _gradients(function, args) -> list:
    outputs = function(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    g = torch.Generator().manual_seed(3)
    weights = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in outputs]
    return list(torch.autograd.grad(outputs, [a for a in args if _is_float(a)], weights))
