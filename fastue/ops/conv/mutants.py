# ruff: noqa: E501  one mutant a line
"""Bugs planted in conv, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "amx: a row of a later band not filled": ("amx", "csrc/conv/conv_cpu.cpp", "filled = std::max(filled, rows.last);", "filled = std::max(filled, rows.last + 1);"),
    "amx: a ring one row short": ("amx", "csrc/conv/conv_cpu.cpp", "while ((ring = ring_of(job, band))", "while ((ring = std::max<int64_t>(1, ring_of(job, band) - 1))"),
    "amx: last picture not written": ("amx", "csrc/conv/conv_cpu.cpp", "for (int64_t i = 0; i < pictures; ++i, offset", "for (int64_t i = 0; i < pictures - 1; ++i, offset"),
    "amx: pictures past the last written": ("amx", "csrc/conv/conv_cpu.cpp", "for (int64_t i = 0; i < pictures; ++i, offset", "for (int64_t i = 0; i < up(pictures, 16) * 16; ++i, offset"),
    "amx: sums of the first pictures for the others": ("amx", "csrc/conv/conv_cpu.cpp", "sums + i / 16 * 512", "sums"),
    "amx: bias of the first channels": ("amx", "csrc/conv/conv_cpu.cpp", "job.bias + channel + 16", "job.bias + channel"),
    "amx: residual of the first pixel": ("amx", "csrc/conv/conv_cpu.cpp", "job.residual + offset", "job.residual"),
    "amx: ReLU swallows a NaN": ("amx", "csrc/conv/conv_cpu.cpp", "_mm512_max_ps(zero, a)", "_mm512_max_ps(a, zero)"),
    "amx: weights packed past the last input": ("amx", "csrc/conv/conv_cpu.cpp", "depth - k >= 32 ?", "true ?"),
    "amx: odd input forgotten": ("amx", "csrc/conv/conv_cpu.cpp", "if (k0 < depth) std::memcpy", "if (k1 < depth) std::memcpy"),
    "amx: panel of the neighbour": ("amx", "csrc/conv/conv_cpu.cpp", "packed + panel * panels.bytes;\n      for", "packed + (panel ? panel - 1 : 0) * panels.bytes;\n      for"),
}  # fmt: skip
