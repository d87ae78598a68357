# ruff: noqa: E501  one mutant a line
"""Bugs planted in count_correct, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "cuda: a block of logits adds each warp's": ('cuda', 'csrc/count_correct/count_correct_kernel.cu', 'if (threadIdx.x == 0 && count > 0)', 'if (threadIdx.x % 32 == 0 && count > 0)'),
    "cuda: logits after the first 32 not looked at": ("cuda", "csrc/count_correct/count_correct_kernel.cu", "j < job.classes; j += 32", "j < 32; j += 32"),
}  # fmt: skip
