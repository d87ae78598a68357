// Lists of tensors on CUDA. What a launch is told of them goes by value: nothing is copied, nothing waits, and a graph can
// be captured. Lists of more tensors than that takes are several launches.
#pragma once

#include "device.h"

namespace fastue {

constexpr int kTensors = 104;                 // of a launch: 4 KiB of arguments
constexpr int64_t kPiece = int64_t{1} << 13;  // elements of a tensor that a block works on

struct Tensors {
  const void *g[kTensors], *h[kTensors];
  void* out[kTensors];
  int64_t size[kTensors];
  uint32_t first[kTensors];  // pieces before the tensor, in this launch
  int tensors;
  uint32_t pieces;
  Type type;
};

}  // namespace fastue
