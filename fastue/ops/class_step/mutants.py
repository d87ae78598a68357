# ruff: noqa: E501  one mutant a line
"""Bugs planted in class_step, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "mean over the batch instead of the class": ("cpp", "csrc/class_step/class_step_cpu.cpp", "static_cast<float>(job.start[k + 1] - job.start[k])", "static_cast<float>(job.samples.size())"),
    "class sum in another order": ("cpp", "csrc/class_step/class_step_cpu.cpp", "t.row = job.samples[s];", "t.row = job.samples[job.start[k] + job.start[k + 1] - 1 - s];"),
    "class noise overwritten while it is read": ("cpp", "csrc/class_step/class_step_cpu.cpp", "total[i] += clamp(", "n[i] = total[i] += clamp("),
    "triton: class mean forgets a sample": ("triton", "kernels/class_step.py", "range(first, last,", "range(first + 1, last,"),
    "cuda: no barrier before the sums of warps are read": ("cuda", "csrc/class_step/class_step_kernel.cu", "__popc(in_warp);\n    __syncthreads();", "__popc(in_warp);"),
    "cuda: no barrier before the sums of warps are overwritten": ("cuda", "csrc/class_step/class_step_kernel.cu", "    __syncthreads();  // before the next round overwrites of_warp\n", ""),
    "cuda: a barrier in divergent code": ("cuda", "csrc/class_step/class_step_kernel.cu", "    if (mine) job.order[at] = i;\n    __syncthreads();", "    if (mine) {\n      job.order[at] = i;\n      __syncthreads();\n    }"),
    "cuda: only the first 256 of a batch listed": ("cuda", "csrc/class_step/class_step_kernel.cu", "const bool mine = i < job.batch && job.y[i] == k;", "const bool mine = i < job.batch && i < kThreads && job.y[i] == k;"),
    "cuda: labels past the batch read": ("cuda", "csrc/class_step/class_step_kernel.cu", "i < job.batch && job.y[i] == k;", "job.y[i] == k;"),
    "cuda: bounds never written": ("cuda", "csrc/class_step/class_step_kernel.cu", "  if (threadIdx.x == 0) {", "  if (threadIdx.x == kThreads) {"),
    "cuda: samples fetched ahead past the list": ("cuda", "csrc/class_step/class_step_kernel.cu", "      if (s + a >= end) continue;\n      const int64_t i", "      const int64_t i"),
    "triton: pixels beyond the edge in the mean of a block": ("triton", "kernels/class_step.py", "tl.where(real, v, 0.0)", "v"),
    "triton: window of the place in the class": ("triton", "kernels/class_step.py", "window(ids_ptr, i, seed_low", "window(ids_ptr, s, seed_low"),
    "coarse noise: mean over the samples, not their pixels": ("cpp", "csrc/class_step/class_step_cpu.cpp", "samples * view.block(static_cast<int32_t>(b)).pixels()", "samples"),
    "coarse noise: window of the first sample for all": ("cpp", "csrc/class_step/class_step_cpu.cpp", "view.window(i)", "view.window(0)"),
    "cuda: coarse noise: mean over the samples, not their pixels": ("cuda", "csrc/class_step/class_step_kernel.cu", "(end - start) * block.pixels()", "end - start"),
    "cuda: no barrier before the samples are added": ("cuda", "csrc/class_step/class_step_kernel.cu", "channel, block, n);\n    __syncthreads();", "channel, block, n);"),
    "cuda: no barrier before the samples are overwritten": ("cuda", "csrc/class_step/class_step_kernel.cu", "    __syncthreads();  // before the next round overwrites of_sample\n", ""),
    "cuda: samples of a class past its list added": ("cuda", "csrc/class_step/class_step_kernel.cu", "w < kWarps && s + w < end", "w < kWarps"),
    "cuda: values past the bank stepped by class": ("cuda", "csrc/class_step/class_step_kernel.cu", "value < blocks * channels;", "true;"),
    "cuda: every warp of values for the first class": ("cuda", "csrc/class_step/class_step_kernel.cu", "blockIdx.x / pieces", "blockIdx.x / pieces * 0"),
}  # fmt: skip
