# ruff: noqa: E501  one mutant a line
"""Bugs planted in l2_step, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "norm of the batch for norm of the sample": ("cpp", "csrc/l2_step/l2_step_cpu.cpp", "    Squares of_grad, of_noise;\n", "    static Squares of_grad; Squares of_noise;\n"),
    "no projection to the ball": ("cpp", "csrc/l2_step/l2_step_cpu.cpp", "of_noise.root();\n    const float shrink = reached > job.eps ?", "of_noise.root();\n    const float shrink = reached > 1e9 ?"),
    "cuda: no barrier before the parts are overwritten": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "  __syncthreads();\n  parts[threadIdx.x] = v;", "  parts[threadIdx.x] = v;"),
    "cuda: no barrier before the parts are added": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "  parts[threadIdx.x] = v;\n  __syncthreads();", "  parts[threadIdx.x] = v;"),
    "cuda: no barrier between the halves": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "parts[threadIdx.x + half];\n    __syncthreads();", "parts[threadIdx.x + half];"),
    "cuda: threads outside do not help to add": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "  const bool inside = first < job.area;", "  const bool inside = first < job.area;\n  if (!inside) return;"),
    "cuda: sums of the first picture for all": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "job.sums + i * 2 * gridDim.y", "job.sums"),
    "cuda: one piece of the picture forgotten": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "p = threadIdx.x; p < pieces;", "p = threadIdx.x; p < pieces - 1;"),
    "cuda: pictures of the first group for all": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "const int64_t i = picture + blockIdx.x,", "const int64_t i = blockIdx.x,"),
    "cuda: large pictures by a small block": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "kPixels<VECTOR> ? kThreads : kMostThreads;", "kPixels<VECTOR> ? kThreads : kThreads;"),
    "triton: last piece's sum forgotten": ('triton', 'kernels/l2_step.py', 'mask=j < PIECES', 'mask=j < PIECES - 1'),
    "triton: pictures of the first group for all": ("triton", "kernels/l2_step.py", "i = (first + tl", "i = (first * 0 + tl"),
    "triton: norm of the gradient for that of the step": ("triton", "kernels/l2_step.py", "_squares(n))", "_squares(g))"),
    "triton: a block counts once in a norm": ("triton", "kernels/l2_step.py", "tl.sum(wide * wide * count, 0)", "tl.sum(wide * wide, 0)"),
    "triton: sum of a block for its mean": ("triton", "kernels/l2_step.py", "tl.div_rn(g, count)", "g"),
    "coarse noise: norm of the bank for that of the picture": ("cpp", "csrc/l2_step/l2_step_cpu.cpp", " * static_cast<double>(block.pixels())", ""),
    "coarse noise: no projection to the ball": ("cpp", "csrc/l2_step/l2_step_cpu.cpp", "std::sqrt(of_noise);\n  const float shrink = reached > job.eps ?", "std::sqrt(of_noise);\n  const float shrink = reached > 1e9 ?"),
    "cuda: coarse noise: norm of the bank for that of the picture": ("cuda", "csrc/l2_step/l2_step_kernel.cu", " * static_cast<double>(block.pixels())", ""),
    "cuda: coarse noise: sum of the gradient for its mean": ("cuda", "csrc/l2_step/l2_step_kernel.cu", " / static_cast<float>(block.pixels())", ""),
    "cuda: only the first values of a picture in a view": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "value += blockDim.x)", "value += 1 << 30)"),
    "cuda: row out of range not skipped in a view by l2": ("cuda", "csrc/l2_step/l2_step_kernel.cu", "  if (row < 0 || row >= job.rows) return;  // all threads alike\n  const CropFlip", "  const CropFlip"),
}  # fmt: skip
