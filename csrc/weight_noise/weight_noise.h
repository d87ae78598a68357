// weight_noise on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

struct WeightNoise {
  const float* base;
  const int64_t *table, *draws;
  Pictures out;
  int64_t size, count;  // parameters with padding, draws
  float sigma;
  uint64_t seed;
  uint32_t purpose;
};

constexpr int64_t kPerBlock = kThreads * 4;  // parameters: a thread makes four

cudaError_t launch_weight_noise(const WeightNoise& job, cudaStream_t stream);

}  // namespace fastue
