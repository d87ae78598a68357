"""What the generic tests ask of any op: how its inputs are guarded, run on a backend and compared."""

import functools

import pytest
import torch

import fastue.ops
from fastue.core import env, opspec

GUARD = 64  # elements of poison before and behind each tensor
OPS = {name: op for name, op in opspec.registry().items() if hasattr(fastue.ops, name)}


def tested(op: opspec.OpSpec) -> list[str]:
    """The backends that are installed here or that FASTUE_REQUIRE names; the run's header lists the others."""
    why = {b.name: op.function(b)[1] for b in op.backends}
    absent = {name for name, reason in why.items() if reason} - env.required_backends()
    absent |= {name for name, reason in why.items() if "this CPU lacks" in reason}  # nothing could be installed
    return [name for name in op.backend_names if name not in absent]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@functools.cache
def cases(op: opspec.OpSpec, dtype: torch.dtype) -> dict[str, dict]:
    """The op's cases; shared between tests, which work on copies."""
    return dict(op.cases(generator(), dtype))


def poison(dtype: torch.dtype):
    if dtype.is_floating_point:
        return torch.nan
    return True if dtype == torch.bool else {torch.uint8: 173, torch.int8: 99}.get(dtype, 2**40)


def guarded(t: torch.Tensor) -> torch.Tensor:
    """A copy of t, same strides, inside a larger buffer of poison."""
    used = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    buffer = torch.full((used + 2 * GUARD,), poison(t.dtype), dtype=t.dtype, device=t.device)
    return buffer.as_strided(t.shape, t.stride(), GUARD).copy_(t)


def guards_intact(t: torch.Tensor) -> bool:
    zone = t._base
    wanted = torch.full_like(zone, poison(t.dtype))
    same = (zone == wanted) | (zone != zone)
    return bool(same[:GUARD].all() and same[len(zone) - GUARD :].all())


def copied(args: dict, convert=lambda t: t) -> dict:
    """The arguments with fresh guarded tensors."""
    return {k: guarded(convert(v)) if isinstance(v, torch.Tensor) else v for k, v in args.items()}


def to_float64(t: torch.Tensor) -> torch.Tensor:
    return t.double() if t.is_floating_point() else t


def run(op: opspec.OpSpec, args: dict, backend: str) -> dict[str, torch.Tensor]:
    """Run on a backend; everything the op wrote or returned, by name."""
    with opspec.use_backend(backend):
        result = getattr(torch.ops.fastue, op.name)(*args.values())
    written = {op.arguments[i].name: args[op.arguments[i].name] for i in op.mutated}
    written = {k: v for k, v in written.items() if v is not None}
    results = () if result is None else result if isinstance(result, tuple) else (result,)
    return written | {f"result{i}": r for i, r in enumerate(results)}


def need(op: opspec.OpSpec, name: str, args: dict) -> None:
    """Skip, saying why, where a backend cannot run; fail where FASTUE_REQUIRE names it."""
    if name == "reference":
        return
    backend = next(b for b in op.backends if b.name == name)
    reasons = op.why_not(backend, list(args.values()))
    if reasons and name in env.required_backends():
        pytest.fail(f"FASTUE_REQUIRE names {name}, but {'; '.join(reasons)}")
    if reasons:
        pytest.skip(f"{name}: {'; '.join(reasons)}")


def compare(op: opspec.OpSpec, args: dict, backend: str) -> None:
    """A backend against the reference in float64: at most twice what the reference loses in this dtype, plus atol.

    In whole numbers exact; inside the band that the op names, one step of the band's size more.
    """
    given = copied(args)
    before = {k: v.clone() for k, v in given.items() if isinstance(v, torch.Tensor)}
    got = run(op, given, backend)
    exact = run(op, copied(args, to_float64), "reference")
    own = run(op, copied(args), "reference")
    band = (op.band(exact, **args) if op.band else None) or {}
    for name, value in got.items():
        wanted = exact[name]
        assert value.shape == wanted.shape and value.dtype == own[name].dtype, f"{name}: {value.dtype} {value.shape}"
        assert value.stride() == own[name].stride(), f"{name}: strides {value.stride()}, not {own[name].stride()}"
        assert bool((value.isnan() == wanted.isnan()).all()), f"{name}: {int(value.isnan().sum())} NaN"
        if op.bitwise:
            different = _distance(value, own[name]) > 0
            assert not different.any(), f"{name}: {int(different.sum())} values are not the reference's, bit for bit"
        mask, unit = band.get(name, (torch.zeros_like(wanted, dtype=torch.bool), 0.0))
        loss = _distance(own[name], wanted)
        floor = op.atol if value.dtype.is_floating_point else 0.0
        allowed = 2 * loss[~mask].max().item() + floor if (~mask).any() else floor
        error = _distance(value, wanted) - mask * unit
        if error.numel():
            worst = error.max().item()
            assert worst <= allowed, f"{name}: off by {worst:.3g} at {_where(error)}, allowed {allowed:.3g}"
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            assert guards_intact(value), f"{name}: memory beside it was written"
            if name not in got:
                assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), f"{name}: an input was changed"


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Elementwise |a - b| in float64; equal infinities and two NaN are no distance."""
    a, b = a.double(), b.double()
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())


def _where(error: torch.Tensor) -> list[int]:
    return [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
