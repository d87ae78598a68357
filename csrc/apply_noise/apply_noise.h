// apply_noise on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

struct ApplyNoise {
  Pictures x, noise, out;
  uint32_t channels, area;  // area = H*W
  const int64_t* index;
  int64_t batch, rows;
  float scale;
  Normalisation norm;
  const int64_t* ids;  // null: no crop and flip
  uint64_t seed;
  int64_t epoch, pad;
  uint32_t height, width;
  bool flip;
};

cudaError_t launch_apply_noise(const ApplyNoise& job, cudaStream_t stream);

}  // namespace fastue
