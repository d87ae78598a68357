// Between torch's stable ABI and the CUDA launchers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "device.h"
#include "stable.h"

namespace fastue {

inline Layout layout_of(const Tensor& x, const Pictures& bank) {
  const int64_t area = x.size(2) * x.size(3), size = x.size(1) * area;
  STD_TORCH_CHECK(size < (int64_t{1} << 31), "a picture has too many pixels for this kernel");
  return {static_cast<uint32_t>(x.size(1)), static_cast<uint32_t>(area), static_cast<uint32_t>(size), bank.interleaved};
}

// A tensor that is both planar and interleaved (one channel, one pixel) is taken for planar, so look at the sizes too.
inline bool crossed(const Pictures& t, const Layout& l) {
  return t.data != nullptr && l.channels > 1 && l.area > 1 && t.interleaved != l.interleaved;
}

// Run on the device and the current stream of x; a failed launch is an error here, not later.
template <class F>
void on_stream_of(const Tensor& x, const F& launch) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  STD_CUDA_CHECK(launch(static_cast<cudaStream_t>(stream)));
}

// A grid has fewer than 2^31 blocks.
inline void check_grid(int64_t batch, const Layout& l) {
  STD_TORCH_CHECK(batch * blocks_per_picture(l) < (int64_t{1} << 31), "the batch is too large for one launch");
}

}  // namespace fastue
