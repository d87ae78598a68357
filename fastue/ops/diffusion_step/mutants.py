# ruff: noqa: E501  one mutant a line
"""Bugs planted in diffusion_step, which its cases must catch: (kind, file, the words there, what stands there instead)."""

MUTANTS = {
    "x0 not clipped": ("cpp", "csrc/diffusion_step/diffusion_step_cpu.cpp", "clamp(a * x[i] - b * to_float(eps[i]), -1.0f, 1.0f)", "a * x[i] - b * to_float(eps[i])"),
    "x0 guided before the clip": ("cpp", "csrc/diffusion_step/diffusion_step_cpu.cpp", "      if (GUIDE == Guide::of_x0) x0 = x0 + pull * (aim(y[i]) - x0);\n", "      if (GUIDE == Guide::of_x0) x0 = clamp((a * x[i] - b * to_float(eps[i])) + pull * (aim(y[i]) - (a * x[i] - b * to_float(eps[i]))), -1.0f, 1.0f);\n"),
    "noise of a start taken for that of a step": ("cpp", "csrc/diffusion_step/checks.h", "eps.has_value() ? kPurposeDiffusionStep : kPurposeDiffusionStart", "kPurposeDiffusionStep"),
    "high word of an id dropped": ("cpp", "csrc/common/normal.h", "static_cast<uint32_t>(wide >> 32), use}};", "0, use}};"),
    "the next tile draws the first one's numbers": ("cpp", "csrc/diffusion_step/diffusion_step_cpu.cpp", "* job.quads() + t.first / 4;", "* job.quads();"),
    "channels share their last four pixels": ("cpp", "csrc/diffusion_step/diffusion_step.h", "(int64_t{area} + 3) / 4", "int64_t{area} / 4"),
    "interleaved numbers in the order of planes": ("cpp", "csrc/diffusion_step/diffusion_step_cpu.cpp", "z[3 * p + c] = planes", "z[c * pixels + p] = planes"),
    "avx2: odd counters before even ones": ("v3", "csrc/diffusion_step/diffusion_step_cpu.cpp", "h % 2 ? odd : even", "h % 2 ? even : odd"),
    "avx2: keys not stepped": ("v3", "csrc/common/philox_v3.h", "    k1 += 0xBB67AE85u;\n", ""),
    "triton: pairs of normal numbers swapped": ("triton", "kernels/diffusion_step.py", "tl.join(tl.join(z0, z2), tl.join(z1, z3))", "tl.join(tl.join(z0, z1), tl.join(z2, z3))"),
    "triton: last pixels of a channel written on": ("triton", "kernels/diffusion_step.py", "& (pixel < AREA)", "& (pixel >= 0)"),
    "cuda: third of four numbers for the second": ("cuda", "csrc/diffusion_step/diffusion_step_kernel.cu", "(q == 0 ? n.v[0] : n.v[1])", "(q == 0 ? n.v[0] : n.v[2])"),
    "cuda: the noisy copy has the step's noise": ("cuda", "csrc/diffusion_step/diffusion_step_kernel.cu", "job.copy, c, first, copy", "job.own, c, first, copy"),
}  # fmt: skip
