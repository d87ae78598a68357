# ruff: noqa: E501  one mutant a line
"""Bugs planted in ghost_pair_backward, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "ghost backward: m counts once": ("cpp", "csrc/ghost_pair_backward/ghost_pair_backward_cpu.cpp", "const Scale scale{job.grad[j / tiles * 3 + 1], 2 * ", "const Scale scale{job.grad[j / tiles * 3 + 1], "),
    "ghost backward: clean errors for perturbed ones": ("cpp", "csrc/ghost_pair_backward/ghost_pair_backward_cpu.cpp", "scale.m2 * (x + d)", "scale.m2 * x"),
    "ghost backward: nothing added to the first block of places": ("cpp", "csrc/ghost_pair_backward/ghost_pair_backward_cpu.cpp", "of_errors, tile > 0)", "of_errors, false)"),
    "ghost backward: places t for places u": ("cpp", "csrc/ghost_pair_backward/ghost_pair_backward_cpu.cpp", "pack<I>(x.side, u, k", "pack<I>(x.side, t, k"),
    "ghost backward: only the last rows of a Gram matrix": ("cpp", "csrc/ghost_pair_backward/ghost_pair_backward_cpu.cpp", "of_inputs, k > 0)", "of_inputs, false)"),
    "ghost backward: as many rows as [x | d] alone allows": ("cpp", "csrc/ghost_pair_backward/ghost_pair_backward_cpu.cpp", "kPacked / 4 / std::max(width, cols)", "kPacked / width"),
    "ghost backward: one place: gradient of the neighbour": ("cpp", "csrc/ghost_pair_backward/ghost_pair_backward_cpu.cpp", "scale{job.grad[i * 3 + 1]", "scale{job.grad[0 * 3 + 1]"),
    "cuda: ghost backward: no barrier before the tiles are read": ("cuda", "csrc/ghost_pair_backward/ghost_pair_backward_kernel.cu", "u, job.places);\n      __syncthreads();\n", "u, job.places);\n"),
    "cuda: ghost backward: only the last tile of places": ("cuda", "csrc/ghost_pair_backward/ghost_pair_backward_kernel.cu", "u == 0 ? v[c] : out + v[c]", "v[c]"),
    "cuda: ghost backward: transposed Gram": ("cuda", "csrc/ghost_pair_backward/ghost_pair_backward_kernel.cu", "near[j][col_of(c)]", "near[col_of(c)][j]"),
    "triton: ghost backward: only the last tile of places": ("triton", "kernels/ghost_pair_backward.py", "ADD=tile > 0", "ADD=False"),
    "triton: ghost backward: change of the errors forgotten": ("triton", "kernels/ghost_pair_backward.py", "q * wide + m2 * other", "q * wide"),
}  # fmt: skip
