// class_step on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

struct ClassStep {
  Pictures noise, grad, x;
  uint32_t channels, area;  // area = H*W
  const int64_t* y;
  int64_t *order, *bounds;  // scratch: [batch] and [2 * classes]
  int64_t batch, classes;
  float step, eps;  // step < 0 ascends
  View view;
};

cudaError_t launch_class_step(const ClassStep& job, cudaStream_t stream);

}  // namespace fastue
