# ruff: noqa: E501  one mutant a line
"""Bugs planted in conv_weights, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "amx: pictures that are not there add up": ("amx", "csrc/conv_weights/conv_weights_cpu.cpp", "i < valid ?", "i < 32 ?"),
    "amx: pairs of the first channels": ("amx", "csrc/conv_weights/conv_weights_cpu.cpp", "order[1][2 * n] = n + 16", "order[1][2 * n] = n"),
    "amx: only the last group of pictures": ("amx", "csrc/conv_weights/conv_weights_cpu.cpp", "_mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(part + i))", "_mm512_load_ps(part + i)"),
    "amx: taps of the neighbour": ("amx", "csrc/conv_weights/conv_weights_cpu.cpp", "pairs.data() + ends[tap], sets", "pairs.data() + ends[0], sets"),
    "amx: sums written transposed": ("amx", "csrc/conv_weights/conv_weights_cpu.cpp", "sums[(i / 16 * 2 + k / 16)", "sums[(k / 16 * 2 + i / 16)"),
}  # fmt: skip
