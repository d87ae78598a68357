# ruff: noqa: E501  one mutant a line
"""Bugs planted in grad_cosine_backward, which its cases must catch: (kind, file, the words there, what stands there instead)."""

CPU = "csrc/grad_cosine_backward/grad_cosine_backward_cpu.cpp"
MUTANTS = {
    "cosine backward: weights of the other list": ("cpp", "csrc/common/cosine.h", "alpha(targets ?", "alpha(!targets ?"),
    "cosine backward: m's weight not doubled": ("cpp", "csrc/common/cosine.h", "grad[1] - 2 * grad[2] : 2 * grad[2])", "grad[1] - 2 * grad[2] : grad[2])"),
    "cosine backward: weights in float32": ("cpp", "csrc/common/cosine.h", "alpha * static_cast<double>(g)", "static_cast<float>(alpha) * static_cast<double>(g)"),
    "cosine backward: tile of the neighbour": ("cpp", CPU, "shape.tile(0, j - job.tiles[p])", "shape.tile(0, j % shape.tiles())"),
    "cosine backward: three weights not asked for": ("cpp", "csrc/common/lists.h", "grad.size(0) == 3", "grad.size(0) >= 2"),
    "cosine backward avx2: last elements forgotten": ("v3", CPU, "  for (; i < size; ++i) v[i] = weights.of(g[i], h[i]);\n}\n#endif", "}\n#endif"),
    "cosine backward cuda: first of four alone": ("cuda", "csrc/grad_cosine_backward/grad_cosine_backward_kernel.cu", "to_float(h.v[k])", "to_float(h.v[0])"),
    "cosine backward triton: targets as sources": ("triton", "kernels/grad_cosine_backward.py", "if TARGETS:", "if not TARGETS:"),
}  # fmt: skip
