// l2_step on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

struct L2Step {
  Pictures noise, grad, x, out;  // out.data null: no next input
  bool grad_crossed, x_crossed, out_crossed;
  Layout layout;
  const int64_t* index;
  int64_t batch, rows;
  double step, eps;  // step < 0 descends
  Normalisation norm;
};

cudaError_t launch_l2_step(const L2Step& job, cudaStream_t stream);

}  // namespace fastue
