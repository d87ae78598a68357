// Two lists of tensors, gone through in one pass: between torch's stable ABI and the loops of grad_cosine and
// grad_cosine_backward. Both tensors of a pair have their elements in one order, so that a pair is two plain arrays.
#pragma once

#include "stable.h"

namespace fastue {

// A pair, and the tensor to write beside it where there is one.
struct Pair {
  const void *g, *h;
  void* out;
  int64_t size;
};

inline bool same_order(const Tensor& t, const Tensor& as) {
  if (t.dim() != as.dim() || t.scalar_type() != as.scalar_type()) return false;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) != as.size(d)) return false;
  if (t.is_contiguous() && as.is_contiguous()) return true;
  return t.dim() == 4 && dense(t, true) && dense(as, true);
}

// The pairs that have elements, and their type; `out` is empty or as long as g and h.
struct Lists {
  std::vector<Pair> pairs;
  Type type = Type::f32;

  Lists(const std::vector<Tensor>& g, const std::vector<Tensor>& h, const std::vector<Tensor>& out) {
    STD_TORCH_CHECK(g.size() == h.size(), g.size(), " tensors in g, ", h.size(), " in h");
    STD_TORCH_CHECK(out.empty() || out.size() == g.size(), g.size(), " tensors in g, ", out.size(), " in out");
    for (size_t i = 0; i < g.size(); ++i) {
      const Tensor* const row[] = {&h[i], out.empty() ? &h[i] : &out[i]};
      for (const Tensor* t : row) {
        STD_TORCH_CHECK(same_order(*t, g[i]), "tensors ", i, " differ in shape, dtype or order in memory");
        STD_TORCH_CHECK(t->get_device_index() == g[0].get_device_index() && t->is_cuda() == g[0].is_cuda(),
                        "tensors ", i, " are on another device than the first");
      }
      const Type own = type_of(g[i], "g");
      STD_TORCH_CHECK(own != Type::s8 && own != Type::u8 && (i == 0 || own == type),
                      "g must be float32, bfloat16 or float16, all tensors the same");
      type = own;
      if (g[i].numel() == 0) continue;
      pairs.push_back({g[i].data_ptr(), h[i].data_ptr(), out.empty() ? nullptr : out[i].data_ptr(), g[i].numel()});
    }
  }
};

// The gradient in (n, q, m), three numbers that stay where they are.
inline const double* checked_grad(const Tensor& grad) {
  STD_TORCH_CHECK(grad.scalar_type() == ScalarType::Double && grad.dim() == 1 && grad.size(0) == 3 &&
                      grad.is_contiguous(),
                  "grad must be float64 [3], contiguous");
  return grad.const_data_ptr<double>();
}

}  // namespace fastue
