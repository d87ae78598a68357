// diffusion_step on the CPU and on CUDA: what a kernel is told. Raw pointers only.
#pragma once

#include "../common/normal.h"

namespace fastue {

struct DiffusionStep {
  Pictures x, eps, y, grad;  // data null where there is none, but of x
  const int64_t* ids;
  int64_t batch;
  uint32_t channels, area;  // area = H*W
  float a, b;               // x0 = a x - b eps
  float keep, spread;       // of the noisy copy
  float c0, cx, pull, push, sigma;
  bool noisy;
  uint64_t seed;
  uint32_t own, copy;  // last words of the counters of x's own noise and of the noisy copy's

  FASTUE_HD int64_t quads() const { return (int64_t{area} + 3) / 4; }  // of a channel
};

// y in the unit of x.
FASTUE_HD FASTUE_INLINE float aim(uint8_t y) { return pixel(y) * 2.0f - 1.0f; }

}  // namespace fastue
