# ruff: noqa: E501  one mutant a line
"""Bugs planted in conv3x3, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "winograd: the kernel turned round both ways": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "if (transposed) {", "if (true) {"),
    "winograd: a gate of zero is open": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "_CMP_NLE_UQ", "_CMP_NLT_UQ"),
    "winograd: a gate of NaN is closed": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "_CMP_NLE_UQ", "_CMP_GT_OQ"),
    "winograd: a tile at the edge writes on": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "rows = std::min(kSide, job.height - place.row)", "rows = kSide"),
    "winograd: the pixel beside the picture": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "col < job.width;", "col <= job.width;"),
    "winograd: ReLU swallows a NaN": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "_mm512_max_ps(zero, sum)", "_mm512_max_ps(sum, zero)"),
    "winograd: residual of the first pixel of a row": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "job.residual + to", "job.residual + at"),
    "winograd: bias of the first channels": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "job.bias + channel", "job.bias"),
    "winograd: last channel forgotten": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "(1u << count) - 1", "(1u << (count - 1)) - 1"),
    "winograd: first channels for all": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "pixels[i * 6 + j] + channel", "pixels[i * 6 + j]"),
    "winograd: wrong sign at a point": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "v[4] = _mm512_sub_ps(even_b, odd_b)", "v[4] = _mm512_add_ps(even_b, odd_b)"),
    "winograd: scale of another point": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "1 / (2 * kBB * (kBB - kAA))", "1 / (2 * kBB * (kBB + kAA))"),
    "winograd: last tiles of a group not multiplied": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "t < last - first; t += kRows", "t + kRows <= last - first; t += kRows"),
    "winograd: whole lines past the last channel": ("v4", "csrc/conv3x3/conv3x3_cpu.cpp", "job.out_channels % kLanes == 0 &&", "true &&"),
    "winograd: another panel's sums": ('v4', 'csrc/conv3x3/conv3x3_cpu.cpp', 'm + half * tiles * kLanes', 'm'),
}  # fmt: skip
