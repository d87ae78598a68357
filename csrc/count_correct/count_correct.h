// count_correct on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

struct CountCorrect {
  Pictures logits;
  const int64_t* y;
  int64_t* count;  // of the slot
  int64_t batch, classes;
};

constexpr int64_t kRows = kThreads / 32;  // of a block: a warp has a row

cudaError_t launch_count_correct(const CountCorrect& job, cudaStream_t stream);

}  // namespace fastue
