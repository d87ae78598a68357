// l2_step on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

struct L2Step {
  Pictures noise, grad, x, out;  // out.data null: no next input
  uint32_t channels, area;       // area = H*W
  const int64_t* index;
  int64_t batch, rows;
  double step, eps;  // step < 0 descends
  double* sums;      // scratch [batch, 2, pieces]; null where a picture fits one block
  Normalisation norm;
  View view;
};

// Pieces that a picture is worked on in; 1: a block reads it once and keeps it.
int64_t pieces_of(const L2Step& job);

cudaError_t launch_l2_step(const L2Step& job, cudaStream_t stream);

}  // namespace fastue
