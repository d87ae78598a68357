# ruff: noqa: E501  one mutant a line
"""Bugs planted in ghost_pair, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "ghost: |dE|^2 forgotten in |D|^2": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", " + gg * xx)", ")"),
    "ghost: clean errors for perturbed ones": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "(yy + yg + gy + gg) * dd", "yy * dd"),
    "ghost: transposed Gram in |D|^2": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "(yg + gg) * dx + (gy + gg) * xd", "(yg + gg) * xd + (gy + gg) * dx"),
    "ghost: transposed Gram in <G, D>": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "xd * yg + dx * gy", "xd * gy + dx * yg"),
    "ghost: a place with itself counts twice": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "t == u ? 0.5 : 1.0", "t == u ? 1.0 : 1.0"),
    "ghost: both triangles of a block with itself": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "u = col == 0 ? t : 0", "u = 0"),
    "ghost: d.x not mirrored": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "  if (same)\n    for", "  if (false)\n    for"),
    "ghost: only the last rows of a Gram matrix": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "gram.row, k > 0);", "gram.row, false);"),
    "ghost: only the first pair of blocks": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "j < (i + 1) * job.pairs(); ++j", "j < i * job.pairs() + 1; ++j"),
    "ghost: sums of the first sample for all": ("cpp", "csrc/ghost_pair/ghost_pair_cpu.cpp", "j = i * job.pairs();", "j = 0;"),
    "ghost: x2 for its change": ("cpp", "csrc/common/gram.h", "p[at.count + t] = x2[t] - x[t];", "p[at.count + t] = x2[t];"),
    "ghost: vectors: rows of the neighbour": ("v3", "csrc/common/gram.h", "a[r * by_row]", "a[(r ^ 1) * by_row]"),
    "ghost: last rows of a vector forgotten": ("v3", "csrc/common/gram.h", "for (; k < last; ++k) {", "for (; k < last - 1; ++k) {"),
    "cuda: ghost: tiles half of the way apart count twice": ("cuda", "csrc/ghost_pair/ghost_pair_kernel.cu", "step == 0 || 2 * step == tiles ? 0.5", "step == 0 ? 0.5"),
    "cuda: ghost: no barrier before the rows are read": ("cuda", "csrc/ghost_pair/ghost_pair_kernel.cu", "places);\n    __syncthreads();\n", "places);\n"),
    "cuda: ghost: no barrier before the rows are overwritten": ("cuda", "csrc/ghost_pair/ghost_pair_kernel.cu", "    __syncthreads();\n    left.load", "    left.load"),
    "cuda: ghost: one block's sum forgotten": ("cuda", "csrc/ghost_pair/ghost_pair_kernel.cu", "p < pieces; ++p", "p < pieces - 1; ++p"),
    "cuda: ghost: places behind the last one": ("cuda", "csrc/ghost_pair/tiles.h", "row < rows && place < places", "row < rows"),
    "triton: ghost: |D|^2 without the change of the errors": ("triton", "kernels/ghost_pair.py", " + gg * xx)", ")"),
    "triton: ghost: tiles half of the way apart count twice": ("triton", "kernels/ghost_pair.py", "(step == 0) | (2 * step == tiles)", "step == 0"),
    "triton: ghost: transposed Gram": ("triton", "kernels/ghost_pair.py", "(yg + gg) * dx + (gy + gg) * xd", "(yg + gg) * xd + (gy + gg) * dx"),
}  # fmt: skip
