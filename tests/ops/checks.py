"""What the generic tests ask of any op: how its inputs are guarded, run on a backend and
compared."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

import fastue.ops
from fastue.core import env, opspec

GUARD = 64  # elements of poison before and behind each tensor
OPS = {name: op for name, op in opspec.registry().items() if hasattr(fastue.ops, name)}


class Side(NamedTuple):
    """A backend, and the device that it is tested on."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"reference-{self.device}" if self == ("reference", "cuda") else self.backend


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def device_of(backend: opspec.Backend) -> str:
    """Its own, but interpreted Triton runs on the CPU."""
    return "cpu" if backend.interpretable and env.triton_interprets() else backend.device


def why_absent(op: opspec.OpSpec, backend: opspec.Backend) -> str:
    """Why nothing of this backend can be tested here, "" where it can."""
    device = device_of(backend)
    return op.function(backend)[1] or (
        "" if device in devices() else f"not available: no {device} device"
    )


def tested(op: opspec.OpSpec) -> list[Side]:
    """The backends that run here or that FASTUE_REQUIRE names; the run's header lists the
    others."""
    why = {b: why_absent(op, b) for b in op.backends}
    absent = {b for b, reason in why.items() if reason and b.name not in env.required_backends()}
    # nothing could be installed
    absent |= {b for b, reason in why.items() if "this CPU lacks" in reason}
    sides = [Side(b.name, device_of(b)) for b in op.backends if b not in absent]
    return sides + [Side("reference", device) for device in devices()]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@functools.cache
def cases(op: opspec.OpSpec, dtype: torch.dtype) -> dict[str, dict]:
    """The op's cases; shared between tests, which work on copies."""
    return dict(op.cases(generator(), dtype))


def poison(dtype: torch.dtype, written: bool):
    """Beside what is only read NaN, so that reading on shows; a kernel that writes on would keep
    it, so not there."""
    if dtype.is_floating_point:
        return 173.25 if written else torch.nan
    return (
        True
        if dtype == torch.bool
        else {torch.uint8: 173, torch.int8: 99, torch.int64: 2**40}.get(dtype, 2**14)
    )


def used(t: torch.Tensor) -> int:
    """Elements from the first of t to its last."""
    return (
        1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    )


def misalignment(t: torch.Tensor) -> int:
    """Elements between a multiple of 16 bytes and the first of t."""
    return t.data_ptr() % 16 // t.element_size()


def guarded(t: torch.Tensor, written: bool = False, device: str = "cpu") -> torch.Tensor:
    """A copy of t, same strides and alignment, inside a larger buffer of poison."""
    lead = GUARD + misalignment(t)
    buffer = torch.full(
        (lead + used(t) + GUARD,), poison(t.dtype, written), dtype=t.dtype, device=device
    )
    return buffer.as_strided(t.shape, t.stride(), lead).copy_(t)


def on(device: str) -> Callable:
    """`guarded` on that device."""
    return functools.partial(guarded, device=device)


def guards_intact(t: torch.Tensor, written: bool = False) -> bool:
    """Whether everything beside t in its buffer is still poison, bit for bit."""
    zone, first = t._base, t.storage_offset() - t._base.storage_offset()
    same = zone.view(torch.uint8) == torch.full_like(zone, poison(t.dtype, written)).view(
        torch.uint8
    )
    same = same.view(len(zone), t.element_size())
    return bool(same[:first].all() and same[first + used(t) :].all())


def names_written(op: opspec.OpSpec) -> set[str]:
    return {op.arguments[i].name for i in op.mutated}


def named(args: dict) -> dict[str, torch.Tensor]:
    """The tensors of arguments by name, those of a list by name[place]."""
    lists = [({k: v} if not isinstance(v, list) else
              {f"{k}[{i}]": t for i, t in enumerate(v)}) for k, v in args.items()]  # fmt: skip
    return {k: v for part in lists for k, v in part.items() if isinstance(v, torch.Tensor)}


def copied(op: opspec.OpSpec, args: dict, convert=lambda t: t, place: Callable = guarded) -> dict:
    """The arguments with fresh tensors, placed in memory by `place(tensor, whether the op writes
    it)`."""
    written = names_written(op)
    return {
        k: opspec.each(v, lambda t, k=k: place(convert(t), k in written)) for k, v in args.items()
    }


def to_float64(t: torch.Tensor) -> torch.Tensor:
    return t.double() if t.is_floating_point() else t


def run(op: opspec.OpSpec, args: dict, backend: str) -> dict[str, torch.Tensor]:
    """Run on a backend; everything the op wrote or returned, by name. An op that torch does not
    know is called."""
    known = opspec.registry().get(op.name) is op
    with opspec.use_backend(backend):
        result = (getattr(torch.ops.fastue, op.name) if known else op)(*args.values())
    written = named({k: args[k] for k in args if k in names_written(op)})
    results = () if result is None else result if isinstance(result, tuple) else (result,)
    return written | {f"result{i}": r for i, r in enumerate(results)}


def moved(args: dict, device: str) -> list:
    return [opspec.each(v, lambda t: t.to(device)) for v in args.values()]


def why_not(op: opspec.OpSpec, side: Side, args: dict) -> list[str]:
    """Every reason why a side cannot run these arguments; empty when it can."""
    backend = next((b for b in op.backends if b.name == side.backend), None)
    if backend is None:
        return []  # the reference
    absent = why_absent(op, backend)
    return [absent] if absent else op.why_not(backend, moved(args, side.device))


def need(op: opspec.OpSpec, side: Side, args: dict) -> None:
    """Skip, saying why, where a backend cannot run; fail where FASTUE_REQUIRE names it."""
    reasons = why_not(op, side, args)
    if reasons and side.backend in env.required_backends():
        pytest.fail(f"FASTUE_REQUIRE names {side.backend}, but {'; '.join(reasons)}")
    if reasons:
        pytest.skip(f"{side.backend}: {'; '.join(reasons)}")


def looks_good(op: opspec.OpSpec, args: dict) -> bool:
    """Whether the checks that read no value of a tensor let the arguments pass."""
    try:
        op.check(*args.values())
    except (ValueError, TypeError, IndexError):
        return False
    return True


def compare(op: opspec.OpSpec, args: dict, backend: str, place: Callable = guarded) -> None:
    """A backend against the reference in float64: at most twice what the reference loses in this
    dtype, plus atol.

    In whole numbers exact; inside the band that the op names, one step of the band's size more.
    `place` puts the backend's arguments on its device and into memory; the definition's values
    always come from the CPU.
    """
    given = copied(op, args, place=place)
    before = {k: v.clone() for k, v in named(given).items()}
    results = run(op, given, backend)
    got = {k: v.cpu() for k, v in results.items()}
    exact = run(op, copied(op, args, to_float64), "reference")
    own = run(op, copied(op, args), "reference")
    band = (op.band(exact, **args) if op.band else None) or {}
    for name, value in got.items():
        wanted = exact[name]
        assert value.shape == wanted.shape and value.dtype == own[name].dtype, (
            f"{name}: {value.dtype} {value.shape}"
        )
        strides = results[name].stride()
        assert strides == own[name].stride(), f"{name}: strides {strides}, not {own[name].stride()}"
        assert bool((value.isnan() == wanted.isnan()).all()), (
            f"{name}: {int(value.isnan().sum())} NaN"
        )
        if op.bitwise:
            different = _distance(value, own[name]) > 0
            assert not different.any(), (
                f"{name}: {int(different.sum())} values are not the reference's, bit for bit"
            )
        mask, unit = band.get(name, (torch.zeros_like(wanted, dtype=torch.bool), 0.0))
        # Inside the band the reference itself may be a step away; what it loses beyond is rounding.
        loss = (_distance(own[name], wanted) - mask * unit).clamp(min=0)
        floor = op.atol if value.dtype.is_floating_point else 0.0
        allowed = 2 * loss.max().item() + floor if loss.numel() else floor
        error = _distance(value, wanted) - mask * unit
        if error.numel():
            worst = error.max().item()
            assert worst <= allowed, (
                f"{name}: off by {worst:.3g} at {_where(error)}, allowed {allowed:.3g}"
            )
    for name, value in named(given).items():
        assert guards_intact(value, name in got), f"{name}: memory beside it was written"
        if name not in got:
            assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), (
                f"{name}: an input was changed"
            )


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Elementwise |a - b| in float64; equal infinities and two NaN are no distance."""
    a, b = a.double(), b.double()
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())


def _where(error: torch.Tensor) -> list[int]:
    return [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
