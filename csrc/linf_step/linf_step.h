// linf_step on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

struct LinfStep {
  Pictures noise, grad, x, out;  // out.data null: no next input
  uint32_t channels, area;       // area = H*W
  const int64_t* index;
  int64_t batch, rows;
  float step, eps, scale, inverse;  // step < 0 ascends; inverse = 1/scale
  const bool* mask;                 // null: none; [1 or batch, 1, h, w], of the bank's size
  bool mask_shared;
  Normalisation norm;
  View view;
};

cudaError_t launch_linf_step(const LinfStep& job, cudaStream_t stream);

}  // namespace fastue
