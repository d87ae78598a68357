// CUDA building blocks for lists of tensors: a block owns a piece of a pair.
#pragma once

#include "cosine.h"
#include "lists_cuda.h"

namespace fastue {

// The elements that a block works on.
template <class T>
struct Piece {
  static constexpr int kPack = 16 / sizeof(T);
  const T *g, *h;
  T* out;
  int64_t size;
  bool packs;  // whether they can be read 16 bytes at a time

  __device__ FASTUE_INLINE Piece(const Tensors& all, uint32_t piece) {
    int low = 0, high = all.tensors - 1;  // the last tensor whose first piece is not behind
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (all.first[middle] <= piece) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const int64_t first = int64_t{piece - all.first[low]} * kPiece, rest = all.size[low] - first;
    g = static_cast<const T*>(all.g[low]) + first;
    h = static_cast<const T*>(all.h[low]) + first;
    out = static_cast<T*>(all.out[low]) + first;
    size = rest < kPiece ? rest : kPiece;
    packs = ((reinterpret_cast<uintptr_t>(g) | reinterpret_cast<uintptr_t>(h) | reinterpret_cast<uintptr_t>(out)) &
             15) == 0;
  }

  // f(first element, elements side by side), which is kPack or 1, for all that are this thread's.
  template <class F>
  __device__ FASTUE_INLINE void each(const F& f) const {
    const int64_t whole = packs ? size / kPack * kPack : 0;
#pragma unroll 4
    for (int64_t i = int64_t{threadIdx.x} * kPack; i < whole; i += kThreads * kPack)
      f(i, std::integral_constant<int, kPack>{});
    for (int64_t i = whole + threadIdx.x; i < size; i += kThreads) f(i, std::integral_constant<int, 1>{});
  }
};

template <class T, int N>
__device__ FASTUE_INLINE Pack<T, N> load_pack(const T* from) {
  Pack<T, N> pack;
  const auto word = __ldca(reinterpret_cast<const Word<sizeof(T) * N>*>(from));
  memcpy(&pack, &word, sizeof(word));
  return pack;
}

}  // namespace fastue
