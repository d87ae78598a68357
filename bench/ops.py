"""Time the ops: `python -m bench.ops [--op X] [--case PART] [--backend a,b] [--rounds N]`.

Runs an op's test cases on each backend first and refuses to time a red one. Then all sides of a
case take turns (A B C A B C), so that a busy machine hurts them alike: each backend, `reference`
(plain PyTorch), `chain` (the eager calls people run today, bench/chains.py) and `copy` (torch's own
copy_ of 256 MiB of float32, bytes read plus bytes written), which is the measure of GB/s. Rows are
appended to bench/results/<device>.csv. Interpreted Triton is never timed. A case named `call` times
one small call beside its bare kernel: what Python costs.
"""

import argparse
import contextlib
import csv
import datetime
import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

import fastue.ops  # noqa: F401  registers the ops
from bench import chains
from fastue.core import env, info, opspec

ROOT = Path(__file__).parent.parent
COPY_ELEMENTS = 64 << 20
CALLS = 1000  # timed together
FIELDS = (
    "op", "case", "shape", "dtype", "backend", "p20_ms", "p50_ms", "p80_ms", "peak_MiB", "GB_per_s", "copy_GB_per_s",
    "percent_of_copy", "times_chain", "times_reference", "rounds", "device", "threads", "load", "torch", "triton",
    "fastue", "commit", "time",
)  # fmt: skip
LINE = (
    "{op:<12} {case:<26} {backend:<9} p20 {p20_ms:>8} p50 {p50_ms:>8} p80 {p80_ms:>8} ms {GB_per_s:>6} GB/s "
    "{percent_of_copy:>4}% of copy {times_chain:>6}x chain {times_reference:>6}x reference peak {peak_MiB:>4} MiB "
    "load {load}"
)


def left_out(op: opspec.OpSpec, device: torch.device) -> dict[str, str]:
    """Backends that are not timed on this device, and why."""
    why = {}
    for b in op.backends:
        if b.device != device.type:
            why[b.name] = f"runs on {b.device}"
        elif op.function(b)[1]:
            why[b.name] = op.function(b)[1]
        elif b.interpretable and env.triton_interprets():
            why[b.name] = "is interpreted"
    return why


def why_not(op: opspec.OpSpec, backend: str, args: dict) -> list[str]:
    """Reasons why a backend cannot run these arguments; empty when it can."""
    return [
        reason
        for b in op.backends
        if b.name == backend
        for reason in op.why_not(b, list(args.values()))
    ]


def on_device(args: dict, device: torch.device) -> dict:
    return {k: opspec.each(v, lambda t: t.to(device)) for k, v in args.items()}


def red_cases(op: opspec.OpSpec, backend: str, device: torch.device) -> list[str]:
    """The op's cases that a backend gets wrong on this device, of those that it can run."""
    from tests.ops import checks

    red = []
    for dtype in op.dtypes:
        for name, args in checks.cases(op, dtype).items():
            if why_not(op, backend, on_device(args, device)):
                continue
            try:
                checks.compare(op, args, backend, checks.on(str(device)))
            except (AssertionError, RuntimeError) as error:
                red.append(
                    f"{op.name} {backend} {str(dtype)[6:]} {name}: {str(error).splitlines()[0]}"
                )
    return red


def once(side, device: torch.device) -> float:
    """Milliseconds of one call."""
    if device.type == "cpu":
        start = time.perf_counter()
        side()
        return (time.perf_counter() - start) * 1e3
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    side()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


@contextlib.contextmanager
def quiet():
    """Without the profiler's lines on stderr, which it writes past Python."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def peak_mib(side, device: torch.device) -> float:
    """Most memory that one call holds at a time on top of its arguments."""
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with (
        quiet(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        side()
    now = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


def quantiles(times: list[float]) -> tuple[float, float, float]:
    ordered = sorted(times)
    return tuple(ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.2, 0.5, 0.8))


def sides_of(op: opspec.OpSpec, args: dict, backends: list[str], device: torch.device) -> dict:
    """What takes turns: {name: call without arguments}."""
    function = getattr(torch.ops.fastue, op.name)

    def on(backend):
        def run():
            with opspec.use_backend(backend):
                function(*args.values())

        return run

    sides = {name: on(name) for name in backends}
    chain = getattr(chains, op.name, None)
    known = inspect.signature(chain).parameters if chain else {}
    # Most eager chains know no grain and no crops on the way back.
    plain = args.get("grain", 1) == 1 and ("ids" in known or args.get("ids") is None)
    if chain and plain:
        with torch.device(device):
            sides["chain"] = chain(**{name: args[name] for name in known})
    source = torch.rand(COPY_ELEMENTS, device=device)
    target = torch.empty_like(source)
    sides["copy"] = lambda: target.copy_(source)
    return sides


def measure(
    op: opspec.OpSpec, case: str, args: dict, backends: list[str], rounds: int, about: dict
) -> list[dict]:
    """Rows of one case."""
    device = opspec.tensors_of(args.values())[0].device
    sides = sides_of(op, args, backends, device)
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(once(side, device))
    copy = 2 * 4 * COPY_ELEMENTS / quantiles(times["copy"])[1] / 1e6
    shown = largest(args)
    traffic = op.traffic(*args.values()) if op.traffic else None
    rows = []
    for name in [*backends, *(["chain"] if "chain" in sides else [])]:
        p20, p50, p80 = quantiles(times[name])
        row = dict(op=op.name, case=case, shape="x".join(map(str, shown.shape)), dtype=str(shown.dtype)[6:],
                   backend=name, p20_ms=f"{p20:.3f}", p50_ms=f"{p50:.3f}", p80_ms=f"{p80:.3f}",
                   peak_MiB=f"{peak_mib(sides[name], device):.0f}", copy_GB_per_s=f"{copy:.1f}", rounds=rounds,
                   times_reference=f"{quantiles(times['reference'])[1] / p50:.2f}",
                   load=f"{os.getloadavg()[0]:.1f}", **about)  # fmt: skip
        if name != "chain" and traffic is not None:  # it moves far more bytes than the op has to
            speed = traffic / p50 / 1e6
            row |= {"GB_per_s": f"{speed:.1f}", "percent_of_copy": f"{100 * speed / copy:.0f}"}
        if "chain" in times:
            row["times_chain"] = f"{quantiles(times['chain'])[1] / p50:.2f}"
        rows.append({field: row.get(field, "") for field in FIELDS})
    return rows


def measure_call(op: opspec.OpSpec, args: dict, rounds: int, about: dict) -> list[dict]:
    """Rows of what a call costs beside its kernel: `bare`, the native op, and `public`, the
    function people call."""
    native = op.choose(list(args.values()))
    public = getattr(fastue.ops, op.name)
    values = list(args.values())
    sides = {"bare": lambda: native(*values), "public": lambda: public(**args)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(max(rounds, 2)):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                side()
            times[name].append((time.perf_counter() - start) * 1e3 / CALLS)
    shown = largest(args)
    rows = []
    for name in sides:
        p20, p50, p80 = quantiles(times[name][1:])  # the first is the warm-up
        row = dict(op=op.name, case="call", shape="x".join(map(str, shown.shape)), dtype=str(shown.dtype)[6:],
                   backend=name, p20_ms=f"{p20:.5f}", p50_ms=f"{p50:.5f}", p80_ms=f"{p80:.5f}", rounds=rounds,
                   load=f"{os.getloadavg()[0]:.1f}", **about)  # fmt: skip
        rows.append({field: row.get(field, "") for field in FIELDS})
    more = 1e3 * (quantiles(times["public"][1:])[1] - quantiles(times["bare"][1:])[1])
    print(f"{op.name}: a call costs {more:.1f} us more than its kernel")
    return rows


def largest(args: dict) -> torch.Tensor:
    """The tensor that stands for a case in a row: the gradient, result or logits, else the
    largest."""
    tensors = {k: v for k, v in args.items() if isinstance(v, torch.Tensor)}
    named = [tensors[k] for k in ("grad", "out", "logits") if k in tensors]
    return named[0] if named else max(opspec.tensors_of(args.values()), key=torch.numel)


def facts(device: torch.device) -> dict:
    """What a number depends on beside the code."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return dict(
        device=info.device_name(device.type), threads=torch.get_num_threads(), torch=torch.__version__,
        triton=info.version("triton") or "", fastue=info.version("fastue") or "", commit=commit.stdout.strip(),
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def write(rows: list[dict], name: str, fields: tuple[str, ...] = FIELDS) -> Path:
    """Append to bench/results/<name>.csv; rows of before a column was added keep it empty."""
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{''.join(c if c.isalnum() else '-' for c in name).strip('-')}.csv"
    if path.exists():
        with path.open(newline="") as file:
            rows = [*csv.DictReader(file), *rows]
    with open(path.with_suffix(".new"), "w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".new").replace(path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ops", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--op", help="one op (default: all)")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--backend", help="comma-separated (default: all that run here)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="print, write no CSV")
    given = parser.parse_args()
    if env.triton_interprets():
        print("TRITON_INTERPRET is set: interpreted kernels are not timed")
    device, about = torch.device(given.device), facts(torch.device(given.device))
    print("  ".join(f"{k} {v}" for k, v in about.items()), f" load {os.getloadavg()[0]:.1f}")
    names = [given.op] if given.op else sorted(opspec.registry())
    for name in names:
        op = opspec.registry()[name]
        asked = given.backend.split(",") if given.backend else list(op.backend_names)
        absent = left_out(op, device)
        backends = [
            b for b in op.backend_names if b == "reference" or b in asked and b not in absent
        ]
        for b in sorted(absent.keys() & asked):
            print(f"{name}: {b} is left out: {absent[b]}")
        red = [line for backend in backends for line in red_cases(op, backend, device)]
        if red:
            print("wrong results, nothing is timed:", *red, sep="\n  ")
            return 1
        for case, make in op.bench().items():
            if given.case not in case:
                continue
            args = on_device(make(), device)
            cannot = {b: reasons for b in backends if (reasons := why_not(op, b, args))}
            for b, reasons in cannot.items():
                print(f"{name} {case}: {b} is left out: {'; '.join(reasons)}")
            able = [b for b in backends if b not in cannot]
            if case != "call":
                rows = measure(op, case, args, able, given.rounds, about)
            elif able[0] in ("cpp", "cuda") and not given.backend:
                rows = measure_call(op, args, given.rounds, about)
            else:
                continue
            for row in rows:
                print(LINE.format(**row), flush=True)
            if not given.dry_run:
                path = write(rows, about["device"])
    if not given.dry_run:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
