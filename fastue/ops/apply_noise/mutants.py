# ruff: noqa: E501  one mutant a line
"""Bugs planted in apply_noise, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "class of the neighbour": ("cpp", "csrc/apply_noise/apply_noise_cpu.cpp", "source.row = job.index[t.row]", "source.row = job.index[t.row ? t.row - 1 : 0]"),
    "no clamp to black": ("cpp", "csrc/apply_noise/apply_noise_cpu.cpp", "clamp(pixel(x[i]) + n[i], 0.0f, 1.0f)", "clamp(pixel(x[i]) + n[i], -1.0f, 1.0f)"),
    "crop off by one": ("cpp", "csrc/apply_noise/apply_noise_cpu.cpp", "const int64_t source_y = y + crop.down", "const int64_t source_y = y + crop.down + 1"),
    "cuda: cropped pictures by fours": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "job.ids == nullptr && vector_ready", "vector_ready"),
    "cuda: border shows the picture": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", " && x >= 0 && x < job.width", ""),
    "cuda: unknown row gives black": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "if (!known) v[c][q]", "if (false) v[c][q]"),
    "triton: a line of blocks short where grain does not divide": ("triton", "kernels/apply_noise.py", "wide: tl.constexpr = (WIDTH + GRAIN - 1) // GRAIN", "wide: tl.constexpr = WIDTH // GRAIN"),
    "triton: coarse noise stays where it is in a crop": ("triton", "kernels/apply_noise.py", "row // GRAIN * wide + column // GRAIN", "pixel // width // GRAIN * wide + pixel % width // GRAIN"),
}  # fmt: skip
