# ruff: noqa: E501  one mutant a line
"""Bugs planted in grad_cosine, which its cases must catch: (kind, file, the words there, what stands there instead)."""

CPU = "csrc/grad_cosine/grad_cosine_cpu.cpp"
MUTANTS = {
    "cosine: h itself for its difference from g": ("cpp", CPU, "difference = h[i + lane] - g[i + lane];", "difference = h[i + lane];"),
    "cosine: what is left of a piece forgotten": ("cpp", CPU, "i < t.elements; ++i) sums.add", "i < whole; ++i) sums.add"),
    "cosine: a piece counted twice": ("cpp", CPU, "first += kPiece)", "first += kPiece / 2)"),
    "cosine: sums in float32": ("cpp", "csrc/common/cosine.h", "n += target * target;", "n += static_cast<float>(target * target);"),
    "cosine: another dtype is read": ("cpp", "csrc/common/lists.h", "t.scalar_type() != as.scalar_type()", "false"),
    "cosine: lists of two lengths": ("cpp", "csrc/common/lists.h", "g.size() == h.size(), g.size()", "g.size() != 7777, g.size()"),
    "cosine avx2: product of the wrong pair": ("v3", CPU, "_mm256_fmadd_pd(target, difference, q[k])", "_mm256_fmadd_pd(difference, difference, q[k])"),
    "cosine cuda: last block by one": ("cuda", "csrc/grad_cosine/grad_cosine_kernel.cu", "== job.pieces - 1;", "== job.pieces;"),
    "cosine cuda: a launch's sums on top of another's": ("cuda", "csrc/grad_cosine/grad_cosine_kernel.cu", "job.sums[job.before + blockIdx.x]", "job.sums[blockIdx.x]"),
    "cosine cuda: alignment not looked at": ("cuda", "csrc/common/pieces.h", "15) == 0;", "0) == 0;"),
    "cosine cuda: rest of a piece forgotten": ("cuda", "csrc/common/pieces.h", "int64_t i = whole + threadIdx.x; i < size;", "int64_t i = whole + threadIdx.x; i < whole;"),
    "cosine triton: the tensor before the right one": ("triton", "kernels/_lists.py", "<= piece\n", "< piece\n"),
    "cosine triton: a mask too wide": ("triton", "kernels/_lists.py", "if first + BLOCK <= size:", "if first < size:"),
    "cosine triton: only the first sums of pieces": ("triton", "kernels/grad_cosine.py", "mask=j < pieces, other=0.0)", "mask=j < 1, other=0.0)"),
}  # fmt: skip
