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
ON_SIDES = [
    pytest.param(*p.values, side, id=f"{p.id}-{side}")
    for p in CASES
    for side in checks.tested(p.values[0])
]
FIRST = [p for p in CASES if p.values[1] == p.values[0].dtypes[0]]
BAD = [
    pytest.param(op, case, side, id=f"{op.name}-{case}-{side}")
    for op in checks.OPS.values()
    for case in op.bad(checks.generator())
    for side in checks.tested(op)
]


def arguments(op, dtype, case, device="cpu"):
    return checks.copied(op, checks.cases(op, dtype)[case], place=checks.on(device))


@pytest.mark.parametrize("op, dtype, case, side", ON_SIDES)
def test_values(op, dtype, case, side):
    args = checks.cases(op, dtype)[case]
    checks.need(op, side, args)
    checks.compare(op, args, side.backend, checks.on(side.device))


@pytest.mark.parametrize("device", checks.devices())
@pytest.mark.parametrize("op, dtype, case", FIRST)
def test_opcheck(op, dtype, case, device):
    args = arguments(op, dtype, case, device)
    if not op.mutated:  # it compares results, and there NaN is not NaN
        args = checks.copied(op, args, lambda t: t.nan_to_num(), checks.on(device))
    torch.library.opcheck(getattr(torch.ops.fastue, op.name).default, tuple(args.values()))


@pytest.mark.parametrize("device", checks.devices())
@pytest.mark.parametrize("op, dtype, case", [p for p in FIRST if p.values[2] in ("odd", "mixed")])
def test_public_function_compiles_into_one_graph(op, dtype, case, device):
    """The function people call, traced whole, gives the eager bits. aot_eager: inductor is not what
    is tested."""
    public = getattr(fastue.ops, op.name)
    eager, traced = arguments(op, dtype, case, device), arguments(op, dtype, case, device)
    public(**eager)
    torch._dynamo.reset()
    torch.compile(public, fullgraph=True, backend="aot_eager")(**traced)
    for i in op.mutated:
        name = op.arguments[i].name
        if eager[name] is not None:
            assert torch.equal(eager[name], traced[name])


@pytest.mark.parametrize("op, case, side", BAD)
def test_bad_arguments_are_refused(op, case, side):
    """Before anything is written, with an error that says what is wrong.

    But a kernel on a GPU does not look at rows before it runs, which would stop the device: none of
    them is touched.
    """
    checks.need(op, side, checks.cases(op, op.dtypes[0])["odd"])
    args = checks.copied(op, op.bad(checks.generator())[case], place=_placed_on(side.device))
    written = {k: v for k, v in args.items() if k in checks.names_written(op) and _is_real(v)}
    before = {k: v.clone() for k, v in written.items()}
    if side.device == "cuda" and side.backend != "reference" and checks.looks_good(op, args):
        checks.run(op, args, side.backend)
        assert all(checks.guards_intact(v, True) for v in written.values())
        return
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError)) as caught:
        checks.run(op, args, side.backend)
    assert not isinstance(caught.value, opspec.BackendError) and str(caught.value)
    for name, old in before.items():
        assert torch.equal(old.nan_to_num(), written[name].nan_to_num())


def _is_real(value) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type != "meta"


def _placed_on(device):
    return lambda t, written: checks.guarded(t, written, device) if _is_real(t) else t


@pytest.mark.parametrize("op", checks.OPS.values(), ids=checks.OPS)
def test_cases_can_fail(op):
    """The cases that random shapes miss are there under their names, and cases do not depend on
    hidden state."""
    for dtype in op.dtypes:
        cases = checks.cases(op, dtype)
        assert set(REQUIRED) <= set(cases), set(REQUIRED) - set(cases)
        again = op.cases(checks.generator(), dtype)
        for name, args in cases.items():
            assert list(args) == [a.name for a in op.arguments], name
            for key, value in args.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value.nan_to_num(), again[name][key].nan_to_num()), (
                        name,
                        key,
                    )


@pytest.mark.parametrize("op", checks.OPS.values(), ids=checks.OPS)
def test_gradients(op):
    """Where a gradient is declared: gradcheck of the reference in float64, each backend against
    it."""
    if op.backward is None:
        assert op.setup_context is None
        return
    function = getattr(torch.ops.fastue, op.name)
    for case, given in checks.cases(op, torch.float32).items():
        if case.startswith("huge"):
            continue  # rounding swallows the steps of gradcheck
        names = [k for k, v in given.items() if _is_float(v) and k not in op.constant]
        wide = _leaves({k: v.double() if _is_float(v) else v for k, v in given.items()}, names)
        with opspec.use_backend("reference"):
            assert torch.autograd.gradcheck(function, tuple(wide.values()), fast_mode=True), case
            exact = _gradients(function, wide)
            own = _gradients(function, _leaves(given, names))
        for side in checks.tested(op):
            if checks.why_not(op, side, given):
                continue
            args = dict(zip(given, checks.moved(given, side.device), strict=True))
            with opspec.use_backend(side.backend):
                got = _gradients(function, _leaves(args, names))
            for value, mine, wanted in zip(got, own, exact, strict=True):
                if wanted.numel() == 0:
                    continue
                allowed = 2 * (mine - wanted).abs().amax() + op.atol
                allowed += op.gradient_tolerance * wanted.abs().amax()
                assert ((value.cpu() - wanted).abs() <= allowed).all(), f"{case} on {side}"


def _is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _leaves(args: dict, names: list[str]) -> dict:
    """The arguments with leaves for those of these names."""
    return {k: v.detach().clone().requires_grad_() if k in names else v for k, v in args.items()}


def _gradients(function, args: dict) -> list:
    outputs = function(*args.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    g = torch.Generator().manual_seed(3)
    weights = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in outputs]
    leaves = [a for a in args.values() if isinstance(a, torch.Tensor) and a.requires_grad]
    return list(torch.autograd.grad(outputs, leaves, weights))
