// What ghost_pair and its backward ask of their tensors on the CPU and on CUDA, as far as memory safety needs it.
#pragma once

#include "../common/stable.h"

namespace fastue {

struct PairShape {
  int64_t batch, inputs, outputs, places;  // B, d, p, T
};

inline PairShape check_pair(const Tensor& a, const Tensor& e, const Tensor& a2, const Tensor& e2) {
  const auto checked = [&](const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.dim() == 3 && t.is_contiguous(), name,
                    " must be float32 [B, rows, T], contiguous");
    STD_TORCH_CHECK(t.get_device_index() == a.get_device_index(), name, " and a are on different devices");
    STD_TORCH_CHECK(t.size(0) == a.size(0) && t.size(2) == a.size(2), name, " and a differ in batch size or places");
  };
  checked(a, "a"), checked(e, "e"), checked(a2, "a2"), checked(e2, "e2");
  STD_TORCH_CHECK(a2.size(1) == a.size(1), "a2 and a differ in shape");
  STD_TORCH_CHECK(e2.size(1) == e.size(1), "e2 and e differ in shape");
  return {a.size(0), a.size(1), e.size(1), a.size(2)};
}

inline void check_gradient(const Tensor& grad, const Tensor& a) {
  STD_TORCH_CHECK(grad.scalar_type() == ScalarType::Double && grad.dim() == 2 && grad.is_contiguous(),
                  "grad must be float64 [B, 3], contiguous");
  STD_TORCH_CHECK(grad.size(0) == a.size(0) && grad.size(1) == 3, "grad must be [B, 3]");
  STD_TORCH_CHECK(grad.get_device_index() == a.get_device_index(), "grad and a are on different devices");
}

}  // namespace fastue
