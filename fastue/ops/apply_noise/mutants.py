# ruff: noqa: E501  one mutant a line
"""Bugs planted in apply_noise, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "class of the neighbour": ("cpp", "csrc/apply_noise/apply_noise_cpu.cpp", "source.row = job.index[t.row]", "source.row = job.index[t.row ? t.row - 1 : 0]"),
    "no clamp to black": ("cpp", "csrc/apply_noise/apply_noise_cpu.cpp", "clamp(pixel(x[i]) + n[i], 0.0f, 1.0f)", "clamp(pixel(x[i]) + n[i], -1.0f, 1.0f)"),
    "crop off by one": ("cpp", "csrc/common/tile_cpu.cpp", "line = y + window.down;", "line = y + window.down + 1;"),
    "cuda: cropped pictures by fours": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "job.view.plain() && vector_ready", "vector_ready"),
    "cuda: border shows the picture": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "known && job.view.inside(source);", "known;"),
    "cuda: unknown row gives black": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "if (!known) v[c][q]", "if (false) v[c][q]"),
    "cuda: coarse noise read at the place of the pixel": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "value = job.view.block_at(source);", "value = from;"),
    "cuda: coarse bank as large as its pictures": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "      values = job.view.blocks();\n", ""),
    "cuda: noise stays where its picture moves": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "job.view.block_at(source)", "job.view.block_at({line, column})"),
    "cuda: unknown row read in a view": ("cuda", "csrc/apply_noise/apply_noise_kernel.cu", "visible = known && job.view.inside(source);", "visible = job.view.inside(source);"),
    "triton: a line of blocks short where grain does not divide": ("triton", "kernels/apply_noise.py", "wide: tl.constexpr = (WIDTH + GRAIN - 1) // GRAIN", "wide: tl.constexpr = WIDTH // GRAIN"),
    "triton: coarse noise stays where it is in a crop": ("triton", "kernels/apply_noise.py", "row // GRAIN * wide + column // GRAIN", "pixel // width // GRAIN * wide + pixel % width // GRAIN"),
}  # fmt: skip
