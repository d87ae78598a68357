// grad_cosine_backward on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/lists_cuda.h"

namespace fastue {

struct GradCosineBackward {
  Tensors list;
  const double* grad;  // [3]
  bool targets;
};

cudaError_t launch_grad_cosine_backward(const GradCosineBackward& job, cudaStream_t stream);

}  // namespace fastue
