"""The one test of all ops. It names none: a new op brings cases, a new backend brings nothing."""

import functools

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
    results = [public(**eager)]
    torch._dynamo.reset()
    results += [torch.compile(public, fullgraph=True, backend="aot_eager")(**traced)]
    written = [[a[op.arguments[i].name] for i in op.mutated] for a in (eager, traced)]
    for a, b in zip(*map(opspec.tensors_of, written), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*[opspec.tensors_of([r]) for r in results], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op, case, side", BAD)
def test_bad_arguments_are_refused(op, case, side):
    """Before anything is written, with an error that says what is wrong.

    But a kernel on a GPU does not look at rows before it runs, which would stop the device: none of
    them is touched.
    """
    checks.need(op, side, checks.cases(op, op.dtypes[0])["odd"])
    args = checks.copied(op, op.bad(checks.generator())[case], place=_placed_on(side.device))
    written = {k: v for k, v in args.items() if k in checks.names_written(op)}
    written = {k: v for k, v in checks.named(written).items() if _is_real(v)}
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
            others = checks.named(again[name])
            for key, value in checks.named(args).items():
                assert torch.equal(value.nan_to_num(), others[key].nan_to_num()), (name, key)


@pytest.mark.parametrize("op", checks.OPS.values(), ids=checks.OPS)
def test_gradients(op):
    """Where a gradient is declared: gradcheck of the reference in float64, each backend against
    it."""
    if op.backward is None:
        assert op.setup_context is None
        return
    for case, given in checks.cases(op, torch.float32).items():
        wide = _with_leaves(op, given, torch.Tensor.double)
        if not _leaves(wide):
            continue  # empty lists
        with opspec.use_backend("reference"):
            if all(t.abs().amax() < 1e6 for t in _leaves(wide) if t.numel()):
                # else gradcheck's steps of 1e-6 are lost in rounding
                function = functools.partial(_of_leaves, op, wide)
                assert torch.autograd.gradcheck(function, _leaves(wide), fast_mode=True), case
            exact = _gradients(op, wide)
            own = _gradients(op, _with_leaves(op, given))
        for side in checks.tested(op):
            if checks.why_not(op, side, given):
                continue
            args = dict(zip(given, checks.moved(given, side.device), strict=True))
            with opspec.use_backend(side.backend):
                got = _gradients(op, _with_leaves(op, args))
            for value, mine, wanted in zip(got, own, exact, strict=True):
                known = wanted.isfinite()  # huge values leave float64's range
                value, mine, wanted = value.cpu()[known], mine[known], wanted[known]
                if known.any():
                    allowed = 2 * (mine - wanted).abs().nan_to_num(torch.inf).amax() + op.atol
                    allowed += op.gradient_tolerance * wanted.abs().amax()
                    assert ((value - wanted).abs() <= allowed).all(), f"{case} on {side}"


def _with_leaves(op, given: dict, change=lambda t: t) -> list:
    """The arguments, floating-point tensors changed, and leaves where they have a gradient."""

    def changed(name):
        def each(t):
            if not t.is_floating_point():
                return t
            t = change(t).detach().clone()
            return t if name in op.constant else t.requires_grad_()

        return each

    return [opspec.each(value, changed(name)) for name, value in given.items()]


def _leaves(args) -> list[torch.Tensor]:
    return [t for t in opspec.tensors_of(args) if t.requires_grad]


def _of_leaves(op, args, *leaves):
    """The op of `args` with these tensors in the place of its leaves."""
    fresh = iter(leaves)
    args = [opspec.each(v, lambda t: next(fresh) if t.requires_grad else t) for v in args]
    return getattr(torch.ops.fastue, op.name)(*args)


def _gradients(op, args) -> list:
    outputs = getattr(torch.ops.fastue, op.name)(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    g = torch.Generator().manual_seed(3)
    weights = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in outputs]
    return list(torch.autograd.grad(outputs, _leaves(args), weights))
