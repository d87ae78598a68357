# ruff: noqa: E501  one mutant a line
"""Bugs planted in weight_noise, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "cuda: draw of the neighbour": ("cuda", "csrc/weight_noise/weight_noise_kernel.cu", "job.draws[k]", "job.draws[k ? k - 1 : 0]"),
    "cuda: draws on top of each other": ("cuda", "csrc/weight_noise/weight_noise_kernel.cu", " + k * job.size;", ";"),
    "triton: every block is the first": ("triton", "kernels/weight_noise.py", "table_ptr + block", "table_ptr + block * 0"),
}  # fmt: skip
