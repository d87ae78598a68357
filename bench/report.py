"""Make docs/BENCHMARKS.md from the CSV files in bench/results: `python -m bench.report`."""

import csv
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "BENCHMARKS.md"
HEAD = """# Benchmarks

Made by `python -m bench.report` from the rows in `bench/results/`; do not edit. A row is one run in
which all sides took turns on the same inputs, after each had passed the op's cases. `chain` is what
people run today in eager PyTorch (`bench/chains.py`), `copy` is torch's own `copy_` of 256 MiB,
bytes read plus bytes written. Compare ratios within a run, not milliseconds between machines. Of
several runs of the same thing the newest is shown. Loaders, memory and many pictures: docs/SCALE.md.

"""
NO_GPU = """## GPU

Not measured on a GPU. On a machine with one, `python -m bench.ops`, `python -m bench.methods` and
`python -m bench.certify` add the rows.
"""
NOTES = {
    "certify": """`tuned` is competent PyTorch for the same draws, `times_tuned` is over it in the same arithmetic,
`cpu_s` are seconds of all cores. A CPU without AVX-512 and AMX runs oneDNN's convolutions on both
sides: what fastue can win there is the ReLU inside of them, the noise, the folding and autograd's
time. Whether its own kernels reach 1.8 times tuned on ResNet-18 in float32, and 1.5 times in bf16
on AMX, is not measured: `python -m bench.certify --pictures 500` on such a machine adds the rows.
Several copies of a small network as grouped convolutions were slower than one after the other on
this CPU, so a core has a draw of its own; on a GPU `--compile` asks for CUDA graphs.

""",
}
TITLES = {
    "methods": "Methods, a whole EMN iteration",
    "certify": "Certify, seconds for a noisy copy of a network",
}
OPS = (
    "op", "case", "dtype", "backend", "p50_ms", "GB_per_s", "percent_of_copy", "times_chain", "times_reference",
    "peak_MiB", "load", "commit",
)  # fmt: skip
METHODS = (
    "method", "mode", "side", "precision", "arch", "pictures", "steps", "p50_s", "times_published", "times_tuned",
    "load", "commit",
)  # fmt: skip

CERTIFY = (
    "side", "arch", "arithmetic", "compiled", "pictures", "sigma", "draws", "rounds", "p50_s", "cpu_s",
    "times_published", "times_tuned", "GFLOP_per_s", "matmul_GFLOP_per_s", "counts", "load", "commit",
)  # fmt: skip


def newest(rows: list[dict], key: tuple[str, ...]) -> list[dict]:
    """The last row of each key, in order of first appearance."""
    kept: dict[tuple, dict] = {}
    for row in rows:
        kept[tuple(row[k] for k in key)] = row
    return list(kept.values())


def last_run(rows: list[dict], key: tuple[str, ...]) -> list[dict]:
    """The rows of the last run of each key: sides of different runs must not stand side by side."""
    times = {tuple(row[k] for k in key): row["time"] for row in rows}
    return [row for row in rows if times[tuple(row[k] for k in key)] == row["time"]]


def table(rows: list[dict], columns: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(c) or "-" for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n\n"


def main() -> None:
    text, gpu, notes = HEAD, False, dict(NOTES)
    for path in sorted(RESULTS.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or "triton" not in rows[0]:  # accuracies and memory: other pages
            continue
        first = rows[-1]
        kind = path.name.split("-")[0]
        gpu |= any(row.get("backend") in ("cuda", "triton") for row in rows)
        text += f"## {TITLES.get(kind, 'Ops')}: {first['device']}\n\n"
        text += f"{first['threads']} threads, torch {first['torch']}, triton {first['triton'] or 'not installed'}, "
        text += f"{first['time'][:10]}\n\n"
        text += notes.pop(kind, "")  # once
        if kind == "methods":
            text += table(last_run(rows, ("arch", "pictures", "steps", "mode")), METHODS)
        elif kind == "certify":
            text += table(last_run(rows, ("arch", "pictures")), CERTIFY)
        else:
            text += table(newest(rows, ("op", "case", "dtype", "backend")), OPS)
    PAGE.write_text(text if gpu else text + NO_GPU)
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
