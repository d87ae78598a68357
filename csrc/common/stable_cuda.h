// Between torch's stable ABI and the CUDA launchers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "device.h"
#include "stable.h"

namespace fastue {

// Pixels of a picture. Within one 32 bits do, and a grid has fewer than 2^31 pictures and 2^16 pieces.
inline uint32_t area_of(const Tensor& x, int64_t pictures) {
  const int64_t area = x.size(2) * x.size(3);
  STD_TORCH_CHECK(area * x.size(1) < (int64_t{1} << 31) && area <= int64_t{65535} * 64,
                  "a picture has too many pixels for this kernel: ", area);
  STD_TORCH_CHECK(pictures < (int64_t{1} << 31), "too many pictures for one launch: ", pictures);
  return static_cast<uint32_t>(area);
}

// Run on the device and the current stream of x; a failed launch is an error here, not later.
template <class F>
void on_stream_of(const Tensor& x, const F& launch) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  STD_CUDA_CHECK(launch(static_cast<cudaStream_t>(stream)));
}

}  // namespace fastue
