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
  View view;
};

cudaError_t launch_apply_noise(const ApplyNoise& job, cudaStream_t stream);

}  // namespace fastue
