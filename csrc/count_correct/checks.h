// What count_correct asks of its tensors on the CPU and on CUDA, as far as memory safety needs it.
#pragma once

#include "../common/stable.h"

namespace fastue {

inline void check_count(const Tensor& logits, const Tensor& y, const Tensor& counts, int64_t slot) {
  const Type type = type_of(logits, "logits");
  STD_TORCH_CHECK(type != Type::u8 && type != Type::s8 && logits.dim() == 2 && logits.is_contiguous(),
                  "logits must be float32, bfloat16 or float16 [B, K], contiguous");
  STD_TORCH_CHECK(logits.size(1) > 0, "logits need at least one class");
  numbers(y, logits, "y");
  STD_TORCH_CHECK(counts.scalar_type() == ScalarType::Long && counts.dim() == 1 && counts.is_contiguous(),
                  "counts must be int64 [S], contiguous");
  STD_TORCH_CHECK(slot >= 0 && slot < counts.size(0), "slot ", slot, " is outside of [0, ", counts.size(0), ")");
}

}  // namespace fastue
