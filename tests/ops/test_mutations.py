# ruff: noqa: E501  one mutant a line
"""The generic test must catch realistic bugs: each is planted in a copy of the project's kernels, on which the cases run.

A mutant is (backend, file, the words there, what stands there instead). C++ mutants are compiled into a library of their
own ("cpp": the portable code alone; "v4", "amx": with the hand-written AVX-512 or AMX code), CUDA ones, too, as C++
(cuda_host/), Triton ones become a package of their own, and a process of their own uses them instead of the real ones.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
LINF = "csrc/linf_step/linf_step_cpu.cpp"
APPLY = "csrc/apply_noise/apply_noise_cpu.cpp"
CLASS = "csrc/class_step/class_step_cpu.cpp"
L2 = "csrc/l2_step/l2_step_cpu.cpp"
TILE = "csrc/common/tile_cpu.cpp"
SHARED = "csrc/common/pictures.h"
AMX = "csrc/common/amx.h"
CONV = "csrc/conv/conv_cpu.cpp"
WINOGRAD = "csrc/conv3x3/conv3x3_cpu.cpp"
WEIGHTS = "csrc/conv_weights/conv_weights_cpu.cpp"

DEVICE = "csrc/common/device.h"
CUDA_LINF = "csrc/linf_step/linf_step_kernel.cu"
CUDA_APPLY = "csrc/apply_noise/apply_noise_kernel.cu"
CUDA_CLASS = "csrc/class_step/class_step_kernel.cu"
CUDA_L2 = "csrc/l2_step/l2_step_kernel.cu"
CUDA_COUNT = "csrc/count_correct/count_correct_kernel.cu"
CUDA_WEIGHTS = "csrc/weight_noise/weight_noise_kernel.cu"

HEALTHY = ("cpp", "csrc/bindings.cpp", "PyMODINIT_FUNC", "PyMODINIT_FUNC")
MUTANTS = {
    "wrong sign at zero": ("cpp", SHARED, "(g < 0.0f ? step : 0.0f)", "(g <= 0.0f ? step : 0.0f)"),
    "a NaN moves": ("cpp", SHARED, "(g > 0.0f ? step : 0.0f)", "(!(g <= 0.0f) ? step : 0.0f)"),
    "no clamp to the budget": ("cpp", LINF, "clamp(clamp(n - moved(g, step), -eps, eps)", "clamp((n - moved(g, step))"),
    "no clamp to white": ("cpp", LINF, "-p, 1.0f - p)", "-p, 1.0f)"),
    "min-max for min-min": ("cpp", LINF, "ascend ? -step : step", "ascend ? step : -step"),
    "budget in the wrong unit": ("cpp", LINF, "static_cast<float>(eps)", "static_cast<float>(eps * 255)"),
    "rounding truncates": ("cpp", LINF, "whole[i] = nearest(n * inverse);", "whole[i] = static_cast<float>((int)(n * inverse));"),
    "next input shows the state in the wrong unit": ("cpp", TILE, "static_cast<float>(stored[i]) * scale", "static_cast<float>(stored[i])"),
    "bf16 gradient read from the start": ("cpp", LINF, "job.grad.data) + job.shape.offset(t)", "job.grad.data)"),
    "avx512: last lanes forgotten": ("v4", LINF, "(1ull << (count - i)) - 1", "(1ull << (count - i - 1)) - 1"),
    "avx512: last lanes write on": ("v4", LINF, "_mm512_mask_storeu_epi8(stored + i, live, n);", "_mm512_storeu_si512(stored + i, n);"),
    "avx512: a NaN moves": ("v4", LINF, "_CMP_GT_OQ", "_CMP_NLE_UQ"),
    "avx512: a bf16 NaN moves": ("v4", LINF, "_mm512_set1_epi16(0x7F80)", "_mm512_set1_epi16(0x7FFF)"),
    "avx512: a negative bf16 NaN moves": ("v4", LINF, "_mm512_set1_epi16(-128)", "_mm512_set1_epi16(-1)"),
    "avx512: a bf16 minus zero moves": ("v4", LINF, "_mm512_cmpgt_epi16_mask(v, _mm512_set1_epi16(-32768))", "0xFFFFFFFFu"),
    "avx512: step wraps round": ("v4", LINF, "_mm512_mask_subs_epi8", "_mm512_mask_sub_epi8"),
    "avx512: white pixels taken for black": ("v4", LINF, "_mm512_xor_si512(pixels, _mm512_set1_epi8(-1))", "pixels"),
    "avx512: half of the table": ("v4", LINF, "high, second, i)", "high, first, i)"),
    "avx512: step rounded at a tie": ("v4", LINF, "clamp(static_cast<float>(s) - g * step, -most, most)) return false", "clamp(static_cast<float>(s) - g * step, -most, most)) continue"),
    "avx512: signs of the first 16 for all": ("v4", LINF, "g + 16 * k", "g"),
    "avx512: next input in the wrong unit": ("v4", TILE, "_mm512_mul_ps(s, unit)", "s"),
    "avx512: next input's last lanes forgotten": ("v4", TILE, "(1 << (count - i)) - 1", "(1 << (count - i - 1)) - 1"),
    "stale noise in the next input": ("cpp", LINF, "clamp(pixel(x[i]) + n[i], 0.0f, 1.0f)", "clamp(pixel(x[i]), 0.0f, 1.0f)"),
    "row of the batch for row of the bank": ("cpp", LINF, "target.row = job.index[t.row]", "target.row = t.row"),
    "mask of the first picture for all": ("cpp", LINF, "job.mask_shared ? 0 : t.row", "job.mask_shared ? 0 : 0 * t.row"),
    "last tile too short": ("cpp", "csrc/common/tile.h", "std::min(tile_pixels(), area - first)", "std::min(tile_pixels(), area - first - 1)"),
    "last tile writes on": ("cpp", "csrc/common/tile.h", "std::min(tile_pixels(), area - first)", "tile_pixels()"),
    "channels_last read as contiguous": ("cpp", TILE, "  if (in_place(from, s)) {\n    data += s.offset(t);\n    for", "  if (true) {\n    data += s.offset(t);\n    for"),
    "mean and std of the wrong channel": ("cpp", TILE, "norm.mean[j % 3]", "norm.mean[2 - j % 3]"),
    "std applied before mean": ("cpp", TILE, "(v[i + j] - mean[j]) * inverse[j]", "v[i + j] * inverse[j] - mean[j]"),
    "bf16 truncated": ("cpp", TILE, "(bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16", "bits >> 16"),
    "class of the neighbour": ("cpp", APPLY, "source.row = job.index[t.row]", "source.row = job.index[t.row ? t.row - 1 : 0]"),
    "no clamp to black": ("cpp", APPLY, "clamp(pixel(x[i]) + n[i], 0.0f, 1.0f)", "clamp(pixel(x[i]) + n[i], -1.0f, 1.0f)"),
    "crop off by one": ("cpp", APPLY, "const int64_t source_y = y + crop.down", "const int64_t source_y = y + crop.down + 1"),
    "never mirrored": ("cpp", "csrc/common/philox.h", "(w.v[2] >> 31) != 0", "(w.v[2] >> 31) == 2"),
    "nine rounds of Philox": ("cpp", "csrc/common/philox.h", "round < 10", "round < 9"),
    "row out of range is not refused": ("cpp", "csrc/common/stable.h", "p[i] >= 0 && p[i] < rows", "p[i] >= 0 && p[i] <= rows"),
    "mean over the batch instead of the class": ("cpp", CLASS, "static_cast<float>(job.start[k + 1] - job.start[k])", "static_cast<float>(job.samples.size())"),
    "class sum in another order": ("cpp", CLASS, "t.row = job.samples[s];", "t.row = job.samples[job.start[k] + job.start[k + 1] - 1 - s];"),
    "class noise overwritten while it is read": ("cpp", CLASS, "total[i] += clamp(", "n[i] = total[i] += clamp("),
    "norm of the batch for norm of the sample": ("cpp", L2, "    Squares of_grad, of_noise;\n", "    static Squares of_grad; Squares of_noise;\n"),
    "no projection to the ball": ("cpp", L2, "reached > job.eps ?", "reached > 1e9 ?"),
    "amx: a tap beside the right one": ("amx", AMX, "o * stride - padding + k;", "o * stride - padding + k + 1;"),
    "amx: a stride forgotten on the way back": ("amx", AMX, "if (at < 0 || at % stride) return -1;", "if (at < 0) return -1;"),
    "amx: gate ignored": ("amx", AMX, "  if (gate) {", "  if (false) {"),
    "amx: a gate of zero is open": ("amx", AMX, "_mm512_mask_cmpgt_epi16_mask(mask, g, _mm512_setzero_si512())", "_mm512_mask_cmpge_epi16_mask(mask, g, _mm512_setzero_si512())"),
    "amx: a gate of NaN is closed": ("amx", AMX, "_mm512_set1_epi16(0x7f80)", "_mm512_set1_epi16(0x7fff)"),
    "amx: last channels of a block forgotten": ("amx", AMX, "(__mmask32{1} << count) - 1;", "(__mmask32{1} << (count - 1)) - 1;"),
    "amx: neighbourhood off by a channel": ("amx", AMX, "(first - i * run) * 2,", "(first - i * run) * 2 + 2,"),
    "amx: a row of a later band not filled": ("amx", CONV, "filled = std::max(filled, rows.last);", "filled = std::max(filled, rows.last + 1);"),
    "amx: a ring one row short": ("amx", CONV, "while ((ring = ring_of(job, band))", "while ((ring = std::max<int64_t>(1, ring_of(job, band) - 1))"),
    "amx: last picture not written": ("amx", CONV, "for (int64_t i = 0; i < pictures; ++i, offset", "for (int64_t i = 0; i < pictures - 1; ++i, offset"),
    "amx: pictures past the last written": ("amx", CONV, "for (int64_t i = 0; i < pictures; ++i, offset", "for (int64_t i = 0; i < up(pictures, 16) * 16; ++i, offset"),
    "amx: sums of the first pictures for the others": ("amx", CONV, "sums + i / 16 * 512", "sums"),
    "amx: bias of the first channels": ("amx", CONV, "job.bias + channel + 16", "job.bias + channel"),
    "amx: residual of the first pixel": ("amx", CONV, "job.residual + offset", "job.residual"),
    "amx: ReLU swallows a NaN": ("amx", CONV, "_mm512_max_ps(zero, a)", "_mm512_max_ps(a, zero)"),
    "amx: weights packed past the last input": ("amx", CONV, "depth - k >= 32 ?", "true ?"),
    "amx: odd input forgotten": ("amx", CONV, "if (k0 < depth) std::memcpy", "if (k1 < depth) std::memcpy"),
    "amx: panel of the neighbour": ("amx", CONV, "packed + panel * panels.bytes;\n      for", "packed + (panel ? panel - 1 : 0) * panels.bytes;\n      for"),
    "amx: pictures that are not there add up": ("amx", WEIGHTS, "i < valid ?", "i < 32 ?"),
    "amx: pairs of the first channels": ("amx", WEIGHTS, "order[1][2 * n] = n + 16", "order[1][2 * n] = n"),
    "amx: only the last group of pictures": ("amx", WEIGHTS, "_mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(part + i))", "_mm512_load_ps(part + i)"),
    "amx: taps of the neighbour": ("amx", WEIGHTS, "pairs.data() + ends[tap], sets", "pairs.data() + ends[0], sets"),
    "amx: sums written transposed": ("amx", WEIGHTS, "sums[(i / 16 * 2 + k / 16)", "sums[(k / 16 * 2 + i / 16)"),
    "winograd: the kernel turned round both ways": ("v4", WINOGRAD, "if (transposed) {", "if (true) {"),
    "winograd: a gate of zero is open": ("v4", WINOGRAD, "_CMP_NLE_UQ", "_CMP_NLT_UQ"),
    "winograd: a gate of NaN is closed": ("v4", WINOGRAD, "_CMP_NLE_UQ", "_CMP_GT_OQ"),
    "winograd: a tile at the edge writes on": ("v4", WINOGRAD, "rows = std::min(kSide, job.height - place.row)", "rows = kSide"),
    "winograd: the pixel beside the picture": ("v4", WINOGRAD, "col < job.width;", "col <= job.width;"),
    "winograd: ReLU swallows a NaN": ("v4", WINOGRAD, "_mm512_max_ps(zero, sum)", "_mm512_max_ps(sum, zero)"),
    "winograd: residual of the first pixel of a row": ("v4", WINOGRAD, "job.residual + to", "job.residual + at"),
    "winograd: bias of the first channels": ("v4", WINOGRAD, "job.bias + channel", "job.bias"),
    "winograd: last channel forgotten": ("v4", WINOGRAD, "(1u << count) - 1", "(1u << (count - 1)) - 1"),
    "winograd: first channels for all": ("v4", WINOGRAD, "pixels[i * 6 + j] + channel", "pixels[i * 6 + j]"),
    "winograd: wrong sign at a point": ("v4", WINOGRAD, "v[4] = _mm512_sub_ps(even_b, odd_b)", "v[4] = _mm512_add_ps(even_b, odd_b)"),
    "winograd: scale of another point": ("v4", WINOGRAD, "1 / (2 * kBB * (kBB - kAA))", "1 / (2 * kBB * (kBB + kAA))"),
    "winograd: last tiles of a group not multiplied": ("v4", WINOGRAD, "t < last - first; t += kRows", "t + kRows <= last - first; t += kRows"),
    "winograd: whole lines past the last channel": ("v4", WINOGRAD, "job.out_channels % kLanes == 0 &&", "true &&"),
    "winograd: another panel's sums": ("v4", WINOGRAD, "m + half * tiles * kLanes", "m"),
    "triton: last block unmasked": ("triton", "kernels/linf_step.py", "known = (e < C * area) & (row >= 0)", "known = (e >= 0) & (row >= 0)"),
    "triton: pixel counted in the wrong layout": ("triton", "kernels/_common.py", "return e % C, e // C", "return e // area, e % area"),
    "triton: missing clamp to valid pixels": ("triton", "kernels/linf_step.py", "-eps, eps), -p, 1.0 - p)", "-eps, eps), -1.0, 1.0)"),
    "triton: bf16 truncated": ("triton", "kernels/_common.py", "if dtype == tl.bfloat16:", "if dtype == tl.float64:"),
    "triton: crop from the wrong side": ("triton", "kernels/apply_noise.py", "width - 1 - column", "width - column"),
    "triton: class mean forgets a sample": ("triton", "kernels/class_step.py", "range(first, last)", "range(first + 1, last)"),
    "cuda: no barrier before the sums of warps are read": ("cuda", CUDA_CLASS, "__popc(in_warp);\n    __syncthreads();", "__popc(in_warp);"),
    "cuda: no barrier before the sums of warps are overwritten": ("cuda", CUDA_CLASS, "    __syncthreads();  // before the next round overwrites of_warp\n", ""),
    "cuda: a barrier in divergent code": ("cuda", CUDA_CLASS, "    if (mine) job.order[at] = i;\n    __syncthreads();", "    if (mine) {\n      job.order[at] = i;\n      __syncthreads();\n    }"),
    "cuda: only the first 256 of a batch listed": ("cuda", CUDA_CLASS, "const bool mine = i < job.batch && job.y[i] == k;", "const bool mine = i < job.batch && i < kThreads && job.y[i] == k;"),
    "cuda: labels past the batch read": ("cuda", CUDA_CLASS, "i < job.batch && job.y[i] == k;", "job.y[i] == k;"),
    "cuda: bounds never written": ("cuda", CUDA_CLASS, "  if (threadIdx.x == 0) {", "  if (threadIdx.x == kThreads) {"),
    "cuda: samples fetched ahead past the list": ("cuda", CUDA_CLASS, "      if (s + a >= end) continue;\n      const int64_t i", "      const int64_t i"),
    "cuda: no barrier before the parts are overwritten": ("cuda", CUDA_L2, "  __syncthreads();\n  parts[threadIdx.x] = v;", "  parts[threadIdx.x] = v;"),
    "cuda: no barrier before the parts are added": ("cuda", CUDA_L2, "  parts[threadIdx.x] = v;\n  __syncthreads();", "  parts[threadIdx.x] = v;"),
    "cuda: no barrier between the halves": ("cuda", CUDA_L2, "parts[threadIdx.x + half];\n    __syncthreads();", "parts[threadIdx.x + half];"),
    "cuda: threads outside do not help to add": ("cuda", CUDA_L2, "  const bool inside = first < job.area;", "  const bool inside = first < job.area;\n  if (!inside) return;"),
    "cuda: sums of the first picture for all": ("cuda", CUDA_L2, "job.sums + i * 2 * gridDim.y", "job.sums"),
    "cuda: one piece of the picture forgotten": ("cuda", CUDA_L2, "p = threadIdx.x; p < pieces;", "p = threadIdx.x; p < pieces - 1;"),
    "cuda: pictures of the first group for all": ("cuda", CUDA_L2, "const int64_t i = picture + blockIdx.x,", "const int64_t i = blockIdx.x,"),
    "cuda: large pictures by a small block": ("cuda", CUDA_L2, "? kThreads : kMostThreads;", "? kThreads : kThreads;"),
    "cuda: alignment not looked at": ("cuda", DEVICE, " && reinterpret_cast<uintptr_t>(t.data) % bytes == 0", ""),
    "cuda: fours where the area has no fours": ("cuda", DEVICE, "area % kPixels<true> == 0 &&", "true &&"),
    "cuda: interleaved packs a picture apart": ("cuda", DEVICE, "interleaved ? P : area; }", "area; }"),
    "cuda: interleaved pixels start as planar ones": ("cuda", DEVICE, "interleaved ? first * C : first; }", "first; }"),
    "cuda: an interleaved value in another register": ("cuda", DEVICE, "packs[i / P].v[i % P] = narrowed<T>(v);", "packs[c].v[q] = narrowed<T>(v);"),
    "cuda: mean and std of the wrong channel": ("cuda", DEVICE, "(v[c][q] - norm.mean[c]) * norm.inverse[c]", "(v[c][q] - norm.mean[q % C]) * norm.inverse[q % C]"),
    "cuda: half as bfloat16 in the next input": ("cuda", DEVICE, "default: return store_input<__half>", "default: return store_input<__nv_bfloat16>"),
    "cuda: threads past the picture write": ("cuda", CUDA_LINF, "first >= job.area || row", "row"),
    "cuda: row out of range not skipped": ("cuda", CUDA_LINF, " || row < 0 || row >= job.rows) return;", ") return;"),
    "cuda: mask of the first pixel for all four": ("cuda", CUDA_LINF, "first + q];", "first];"),
    "cuda: mask of the first picture for all": ("cuda", CUDA_LINF, "job.mask_shared ? 0 : i * job.area", "0"),
    "cuda: only the first piece of a picture": ("cuda", CUDA_LINF, "(blockIdx.y * kThreads + threadIdx.x) * P", "threadIdx.x * P"),
    "cuda: next input without the unit of the state": ("cuda", CUDA_LINF, "kCompact ? n * job.scale : n", "n"),
    "cuda: cropped pictures by fours": ("cuda", CUDA_APPLY, "job.ids == nullptr && vector_ready", "vector_ready"),
    "cuda: border shows the picture": ("cuda", CUDA_APPLY, " && x >= 0 && x < job.width", ""),
    "cuda: unknown row gives black": ("cuda", CUDA_APPLY, "if (!known) v[c][q]", "if (false) v[c][q]"),
    "cuda: a block of logits adds each warp's": ("cuda", CUDA_COUNT, "if (threadIdx.x == 0 && count > 0)", "if (threadIdx.x % 32 == 0 && count > 0)"),
    "cuda: logits after the first 32 not looked at": ("cuda", CUDA_COUNT, "j < job.classes; j += 32", "j < 32; j += 32"),
    "cuda: draw of the neighbour": ("cuda", CUDA_WEIGHTS, "job.draws[k]", "job.draws[k ? k - 1 : 0]"),
    "cuda: draws on top of each other": ("cuda", CUDA_WEIGHTS, " + k * job.size;", ";"),
}  # fmt: skip

# Uses the mutant's ops instead of the real ones and runs every case. The first one caught: exit 3. None: exit 0.
RUNNER = """
import sys, types
import torch
kind, place, *absent = sys.argv[1:]
from fastue.core import native
if kind == "cpp":
    torch.ops.load_library(place)
    native._load = lambda device: "" if device == "cpu" else "not available: mutant"
else:
    package = types.ModuleType("fastue.kernels")
    package.__path__ = [place]
    sys.modules["fastue.kernels"] = package
from tests.ops import checks
for op in checks.OPS.values():
    backend = next((b for b in op.backends if b.name == kind), None)
    if backend is None or op.name in absent:
        continue
    assert op.function(backend)[0] is not None, op.function(backend)[1]
    for dtype in op.dtypes:
        for name, args in checks.cases(op, dtype).items():
            try:
                checks.compare(op, args, kind)
            except Exception as error:
                print(op.name, dtype, name, type(error).__name__, error)
                sys.exit(3)
    for name, args in op.bad(checks.generator()).items():
        try:
            checks.run(op, args, kind)
        except (ValueError, TypeError, IndexError, RuntimeError):
            continue
        print(op.name, name, "is not refused")
        sys.exit(3)
"""

# The same for CUDA kernels compiled as C++, by the functions that test the real ones.
CUDA_RUNNER = """
import sys
from pathlib import Path
import pytest
from tests.ops import test_cuda_host as tests
from tests.ops.cuda_host import harness
csrc, cache, op = sys.argv[1:]
library = harness.load(Path(csrc), Path(cache), op)
jobs = [(tests.test_values, p) for p in tests.CASES]
jobs += [(tests.test_glue_alone_keeps_memory_safe, p) for p in tests.BAD]
jobs += [(tests.test_an_unknown_row_gives_nan, pytest.param(tests.OPS["apply_noise"]))]
for test, p in jobs:
    if op not in ("*", p.values[0].name):
        continue
    try:
        test(*p.values, library)
    except Exception as error:
        print(test.__name__, p.id, type(error).__name__, error)
        sys.exit(3)
"""


def copy_with(mutant, folder: Path) -> Path:
    """csrc/ and kernels/ in `folder`, one of them wrong."""
    _, path, words, instead = mutant
    for part in ("csrc", "kernels"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / path).read_text()
    assert words in text, f"{path} no longer holds {words!r}: bring the mutant up to date"
    (folder / path).write_text(text.replace(words, instead))
    return folder


def compile_sources(folder: Path, only: str | None = None, baseline: bool = True) -> dict[str, Path]:
    """The C++ files of `folder`, or one of them, as objects without a Python module; barely optimised, for one test."""
    home = Path(torch.__file__).parent
    bindings = folder / "csrc" / "bindings.cpp"
    bindings.write_text(bindings.read_text().split("PyMODINIT_FUNC")[0].replace("#include <Python.h>\n", ""))
    flags = [
        "-c",
        "-O1",
        *(["-DFASTUE_BASELINE"] if baseline else []),
        "-std=c++20",
        "-fPIC",
        "-ffp-contract=off",
        f"-I{home / 'include'}",
    ]
    flags.append("-DTORCH_TARGET_VERSION=0x020a000000000000")
    made = {}
    for source in [*folder.glob("csrc/*/*_cpu.cpp"), bindings]:
        name = str(source.relative_to(folder))
        if only is None or name == only:
            made[name] = source.with_suffix(".o")
            subprocess.run(["g++", *flags, source, "-o", made[name]], check=True, capture_output=True, text=True)
    return made


@pytest.fixture(scope="session")
def objects(tmp_path_factory) -> Callable[[bool], dict[str, Path]]:
    """Without a bug, portable code alone or all of it; a mutant of one C++ file takes the others from here."""

    @functools.cache
    def compiled(baseline: bool) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("healthy")
        return compile_sources(copy_with(HEALTHY, folder), baseline=baseline)

    return compiled


@pytest.fixture(scope="session")
def cuda_objects(tmp_path_factory) -> Path:
    """Compiled CUDA files, those of the mutants, too: each is compiled once."""
    return tmp_path_factory.mktemp("cuda_objects")


def build(mutant, folder: Path, objects: Callable[[bool], dict[str, Path]]) -> Path:
    """The mutant's ops as a library."""
    path = mutant[1]
    mine = objects(mutant[0] == "cpp") | compile_sources(
        folder, path if path.endswith(".cpp") else None, baseline=mutant[0] == "cpp"
    )
    library = folder / "mutant.so"
    command = ["g++", "-shared", *mine.values(), "-o", library, f"-L{Path(torch.__file__).parent / 'lib'}"]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True, capture_output=True, text=True)
    return library


def judge(mutant, folder: Path, objects: Callable, cuda_objects: Path) -> subprocess.CompletedProcess:
    """The mutant's cases, run in a process of their own."""
    if mutant[0] == "cuda":
        op = Path(mutant[1]).parent.name  # who is concerned
        return run_python(
            CUDA_RUNNER, folder / "csrc", cuda_objects, op if (ROOT / "fastue/ops" / op).is_dir() else "*"
        )
    kind = "triton" if mutant[0] == "triton" else "cpp"
    place = folder / "kernels" if kind == "triton" else build(mutant, folder, objects)
    by_hand = mutant[0] in ("v4", "amx")
    absent = [] if by_hand else ["conv3x3"]  # no portable code
    absent += [] if by_hand and torch.cpu._is_amx_tile_supported() else ["conv", "conv_weights"]
    return run_python(RUNNER, kind, place, *absent)


def run_python(code: str, *args) -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name, tmp_path, objects, cuda_objects):
    mutant = MUTANTS[name]
    if mutant[0] == "v4" and not torch.cpu._is_avx512_supported():
        pytest.skip("this CPU has no AVX-512")
    if mutant[0] == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this CPU has no AMX")
    found = judge(mutant, copy_with(mutant, tmp_path), objects, cuda_objects)
    # A crash counts too: that is how reading beyond a buffer shows in Triton's interpreter.
    assert found.returncode == 3 or found.returncode < 0, f"{name}: nothing noticed\n{found.stdout}{found.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpp", "v4", "triton", "cuda"])
def test_without_a_bug_nothing_is_caught(kind, tmp_path, objects, cuda_objects):
    """Else the test above would prove nothing."""
    mutant = (kind, *HEALTHY[1:])
    found = judge(mutant, copy_with(mutant, tmp_path), objects, cuda_objects)
    assert found.returncode == 0, found.stdout + found.stderr
