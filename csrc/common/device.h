// CUDA building blocks. A thread owns a few neighbouring pixels of one picture with all their channels. In that shape a
// planar and an interleaved tensor are both read in order, their values meet in registers, and no index is divided.
//
// Every dtype and the number of channels are template arguments: a switch between two loads would make the second wait
// for the first one's conversion. Layouts are not: they change addresses and the place in a register, no more.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <type_traits>

#include "pictures.h"

namespace fastue {

FASTUE_HD FASTUE_INLINE float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
FASTUE_HD FASTUE_INLINE float to_float(__half v) { return __half2float(v); }

}  // namespace fastue

#include "view.h"  // its templates call the to_float above

namespace fastue {

constexpr int kThreads = 256;

// Pixels a thread owns: four where rows of four can be read at once, else one.
template <bool VECTOR>
constexpr int kPixels = VECTOR ? 4 : 1;

// float32 to T, to nearest, ties to even; int8 takes whole numbers in its range.
template <class T>
__device__ FASTUE_INLINE T narrowed(float v) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(v);
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(v);
  if constexpr (std::is_same_v<T, int8_t>) return static_cast<int8_t>(static_cast<int>(v));
  if constexpr (std::is_same_v<T, float>) return v;
}

// P elements, and a word of so many bytes.
template <class T, int P>
struct alignas(sizeof(T) * P) Pack {
  T v[P];
};

template <int BYTES>
using Word = std::conditional_t<BYTES == 16, uint4,
                                std::conditional_t<BYTES == 8, uint2,
                                                   std::conditional_t<BYTES == 4, uint32_t,
                                                                      std::conditional_t<BYTES == 2, uint16_t, uint8_t>>>>;

// What a thread owns of one tensor: P pixels from pixel `first` on, C channels each. In registers it lies as in memory.
// Read and written by intrinsics: nvcc 13 splits some assignments of a uint4 into four (`make compile` looks).
template <class T, int C, int P>
struct Share {
  Pack<T, P> packs[C] = {};
  bool interleaved = false;

  Share() = default;
  __device__ FASTUE_INLINE Share(const Pictures& t, int64_t row, uint32_t area, uint32_t first) {
    interleaved = t.interleaved;
    const T* from = static_cast<const T*>(t.data) + row * C * area + start(first);
#pragma unroll
    for (int k = 0; k < C; ++k) {
      const auto word = __ldca(reinterpret_cast<const Word<sizeof(T) * P>*>(from + k * step(area)));
      memcpy(&packs[k], &word, sizeof(word));
    }
  }
  __device__ FASTUE_INLINE void store(const Pictures& t, int64_t row, uint32_t area, uint32_t first) const {
    T* to = static_cast<T*>(t.data) + row * C * area + start(first);
#pragma unroll
    for (int k = 0; k < C; ++k) {
      Word<sizeof(T) * P> word;
      memcpy(&word, &packs[k], sizeof(word));
      __stwb(reinterpret_cast<Word<sizeof(T) * P>*>(to + k * step(area)), word);
    }
  }
  // Channel c of the thread's pixel q.
  __device__ FASTUE_INLINE float get(int c, int q) const {
    const int i = q * C + c;
    return to_float(interleaved ? packs[i / P].v[i % P] : packs[c].v[q]);
  }
  __device__ FASTUE_INLINE void set(int c, int q, float v) {
    const int i = q * C + c;
    if (interleaved) {
      packs[i / P].v[i % P] = narrowed<T>(v);
    } else {
      packs[c].v[q] = narrowed<T>(v);
    }
  }

 private:
  __device__ FASTUE_INLINE uint32_t start(uint32_t first) const { return interleaved ? first * C : first; }
  __device__ FASTUE_INLINE uint32_t step(uint32_t area) const { return interleaved ? P : area; }
};

// Model input of a thread's pixels, normalised, in the type and layout of `out`.
template <class T, int C, int P>
__device__ FASTUE_INLINE void store_input(const float (&v)[C][P], const Normalisation& norm, const Pictures& out,
                                          int64_t row, uint32_t area, uint32_t first) {
  Share<T, C, P> share;
  share.interleaved = out.interleaved;
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int q = 0; q < P; ++q) share.set(c, q, norm.on ? (v[c][q] - norm.mean[c]) * norm.inverse[c] : v[c][q]);
  }
  share.store(out, row, area, first);
}

// The next input of a step. It is the last thing a thread does, so here a switch keeps nobody waiting.
template <int C, int P>
__device__ FASTUE_INLINE void store_next(const float (&v)[C][P], const Normalisation& norm, const Pictures& out,
                                         int64_t row, uint32_t area, uint32_t first) {
  switch (out.type) {
    case Type::f32: return store_input<float>(v, norm, out, row, area, first);
    case Type::bf16: return store_input<__nv_bfloat16>(v, norm, out, row, area, first);
    default: return store_input<__half>(v, norm, out, row, area, first);
  }
}

inline int64_t bytes_of(Type type) {
  return type == Type::f32 ? 4 : type == Type::bf16 || type == Type::f16 ? 2 : 1;
}

// Whether a tensor, null or not, can be read four pixels at a time.
inline bool vector_ready(const Pictures& t, int64_t area) {
  const int64_t bytes = kPixels<true> * bytes_of(t.type);
  return t.data == nullptr || (area % kPixels<true> == 0 && reinterpret_cast<uintptr_t>(t.data) % bytes == 0);
}

// A block has a piece of a picture (or of a class): x counts pictures, y pieces.
inline dim3 grid_of(int64_t pictures, int64_t area, int64_t pixels_per_block) {
  return dim3(static_cast<unsigned>(pictures), static_cast<unsigned>((area + pixels_per_block - 1) / pixels_per_block));
}

// From values to template arguments: f is called with a value or a std::integral_constant of what is at hand.
template <class F>
cudaError_t by_bank(Type type, const F& f) {
  return type == Type::s8 ? f(int8_t{}) : f(float{});
}

template <class F>
cudaError_t by_float(Type type, const F& f) {
  switch (type) {
    case Type::f32: return f(float{});
    case Type::bf16: return f(__nv_bfloat16{});
    default: return f(__half{});
  }
}

template <class F>
cudaError_t by_shape(uint32_t channels, bool vector, const F& f) {
  using One = std::integral_constant<int, 1>;
  using Three = std::integral_constant<int, 3>;
  if (vector) return channels == 1 ? f(One{}, std::true_type{}) : f(Three{}, std::true_type{});
  return channels == 1 ? f(One{}, std::false_type{}) : f(Three{}, std::false_type{});
}

}  // namespace fastue
