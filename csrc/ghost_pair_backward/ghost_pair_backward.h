// ghost_pair_backward on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

// One side: x are the inputs and y the errors, or the other way round.
struct GhostPairBackward {
  const double* grad;            // [B, 3]
  const float *x, *x2, *y, *y2;  // [B, rows, places], [B, others, places]
  float* out;                    // [B, rows, places]
  int64_t batch, rows, others, places;
};

cudaError_t launch_ghost_pair_backward(const GhostPairBackward& job, cudaStream_t stream);

}  // namespace fastue
