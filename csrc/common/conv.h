// What the convolutions share.
#pragma once

#include <cstdlib>
#include <new>

#include "stable.h"

namespace fastue {

inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that a thread keeps, aligned to cache lines.
struct Buffer {
  char* data = nullptr;
  int64_t bytes = 0;
  char* get(int64_t wanted) {
    if (wanted > bytes) {
      std::free(data);
      data = static_cast<char*>(std::aligned_alloc(4096, up(wanted, 4096) * 4096));
      bytes = data ? up(wanted, 4096) * 4096 : 0;
      if (!data) throw std::bad_alloc();
    }
    return data;
  }
  ~Buffer() { std::free(data); }
};

inline bool same_shape(const Tensor& a, const Tensor& b) {
  for (int d = 0; d < 4; ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

template <class T>
T* nhwc(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.scalar_type() == x.scalar_type(), name, " must be 4-dimensional, of the dtype of x");
  STD_TORCH_CHECK(t.numel() == 0 || dense(t, true), name, " must be channels_last");
  return static_cast<T*>(t.data_ptr());
}

// Height and width of a convolution from `wide` to `deep` with a kernel like that of `weight`.
inline void check_sizes(const Tensor& wide, const Tensor& deep, const Tensor& weight, int64_t stride, int64_t padding) {
  STD_TORCH_CHECK(stride >= 1 && padding >= 0, "needs stride >= 1 and padding >= 0");
  for (int d = 2; d < 4; ++d) {
    const int64_t over = wide.size(d) + 2 * padding - weight.size(d);
    STD_TORCH_CHECK(weight.size(d) >= 1 && over >= 0 && deep.size(d) == over / stride + 1,
                    "the output has the wrong height or width");
  }
}

}  // namespace fastue
