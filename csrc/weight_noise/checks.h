// What weight_noise asks of its tensors on the CPU and on CUDA, as far as memory safety needs it.
#pragma once

#include "../common/normal.h"
#include "../common/stable.h"

namespace fastue {

// The number of parameters with padding.
inline int64_t check_weights(const Tensor& base, const Tensor& table, const Tensor& draws, const Tensor& out) {
  STD_TORCH_CHECK(base.scalar_type() == ScalarType::Float && base.dim() == 1 && base.is_contiguous() &&
                      base.numel() % kBlock == 0,
                  "base must be float32 [D], contiguous, D a multiple of ", kBlock);
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Long && table.dim() == 1 && table.is_contiguous() &&
                      table.numel() * kBlock == base.numel(),
                  "table must be int64 [D/", kBlock, "], contiguous");
  STD_TORCH_CHECK(draws.scalar_type() == ScalarType::Long && draws.dim() == 1 && draws.is_contiguous(),
                  "draws must be int64 [K], contiguous");
  STD_TORCH_CHECK((out.scalar_type() == ScalarType::Float || out.scalar_type() == ScalarType::BFloat16) &&
                      out.dim() == 2 && out.size(0) == draws.size(0) && out.size(1) == base.numel() &&
                      out.is_contiguous(),
                  "out must be float32 or bfloat16 [K, D], contiguous");
  return base.numel();
}

}  // namespace fastue
