// grad_cosine on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/cosine.h"
#include "../common/lists_cuda.h"

namespace fastue {

struct GradCosine {
  Tensors list;
  Triple* sums;      // scratch [pieces of all launches]
  unsigned* done;    // scratch, 0 before the first launch: pieces that are summed
  uint32_t before;   // pieces of earlier launches
  uint32_t pieces;   // of all launches
  double* out;       // [3]
};

cudaError_t launch_grad_cosine(const GradCosine& job, cudaStream_t stream);

}  // namespace fastue
