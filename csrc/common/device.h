// CUDA building blocks. A thread has kVec consecutive elements of one picture, in the memory order of the bank. Where
// every tensor has the bank's layout and is aligned they are read and written 16 bytes at a time, else one by one.
// Types are looked at inside: a branch that all threads take alike costs nothing beside memory, and binaries stay small.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "pictures.h"

namespace fastue {

constexpr int kVec = 8;
constexpr int kThreads = 256;

// The pictures' common shape; `crossed` of a tensor says that its layout is not the bank's. Within a picture 32 bits do
// (the glue checks), which spares the kernels 64-bit divisions; where a picture starts is 64-bit.
struct Layout {
  uint32_t channels, area, size;  // area = H*W, size = C*H*W
  bool interleaved;               // the bank

  __device__ uint32_t channel(uint32_t e) const { return interleaved ? e % channels : e / area; }
  __device__ uint32_t pixel_of(uint32_t e) const { return interleaved ? e / channels : e % area; }
  // Where element e of the bank's order lies in a tensor that may have the other layout.
  __device__ uint32_t place(uint32_t e, bool crossed) const { return crossed ? other(channel(e), pixel_of(e)) : e; }
  __device__ uint32_t other(uint32_t c, uint32_t p) const { return interleaved ? c * area + p : p * channels + c; }
};

__device__ FASTUE_INLINE int64_t bytes_of(Type type) {
  return type == Type::f32 ? 4 : type == Type::bf16 || type == Type::f16 ? 2 : 1;
}

__device__ FASTUE_INLINE float get(const Pictures& t, int64_t at) {
  switch (t.type) {
    case Type::f32: return static_cast<const float*>(t.data)[at];
    case Type::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(t.data)[at]);
    case Type::f16: return __half2float(static_cast<const __half*>(t.data)[at]);
    case Type::s8: return static_cast<float>(static_cast<const int8_t*>(t.data)[at]);
    default: return static_cast<float>(static_cast<const uint8_t*>(t.data)[at]);
  }
}

__device__ FASTUE_INLINE void set(const Pictures& t, int64_t at, float v) {
  switch (t.type) {
    case Type::f32: static_cast<float*>(t.data)[at] = v; break;
    case Type::bf16: static_cast<__nv_bfloat16*>(t.data)[at] = __float2bfloat16_rn(v); break;
    case Type::f16: static_cast<__half*>(t.data)[at] = __float2half_rn(v); break;
    default: static_cast<int8_t*>(t.data)[at] = static_cast<int8_t>(static_cast<int>(v)); break;
  }
}

// kVec values at an aligned place.
__device__ FASTUE_INLINE void get_vec(const Pictures& t, int64_t at, float (&v)[kVec]) {
  const char* from = static_cast<const char*>(t.data) + at * bytes_of(t.type);
  if (t.type == Type::f32) {
    const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else if (t.type == Type::bf16 || t.type == Type::f16) {
    const uint4 w = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    for (int j = 0; j < kVec; ++j) {
      const uint16_t bits = static_cast<uint16_t>(words[j / 2] >> (j % 2 * 16));
      v[j] = t.type == Type::bf16 ? __bfloat162float(__ushort_as_bfloat16(bits)) : __half2float(__ushort_as_half(bits));
    }
  } else {
    const uint2 w = *reinterpret_cast<const uint2*>(from);
    for (int j = 0; j < kVec; ++j) {
      const uint8_t bits = static_cast<uint8_t>((j < 4 ? w.x : w.y) >> (j % 4 * 8));
      v[j] = t.type == Type::s8 ? static_cast<float>(static_cast<int8_t>(bits)) : static_cast<float>(bits);
    }
  }
}

__device__ FASTUE_INLINE void set_vec(const Pictures& t, int64_t at, const float (&v)[kVec]) {
  char* to = static_cast<char*>(t.data) + at * bytes_of(t.type);
  if (t.type == Type::f32) {
    reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else if (t.type == Type::bf16 || t.type == Type::f16) {
    uint32_t words[4];
    for (int j = 0; j < kVec; j += 2) {
      const bool b = t.type == Type::bf16;
      const uint32_t low = b ? __bfloat16_as_ushort(__float2bfloat16_rn(v[j])) : __half_as_ushort(__float2half_rn(v[j]));
      const uint32_t high =
          b ? __bfloat16_as_ushort(__float2bfloat16_rn(v[j + 1])) : __half_as_ushort(__float2half_rn(v[j + 1]));
      words[j / 2] = low | high << 16;
    }
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
    uint32_t words[2] = {0, 0};
    for (int j = 0; j < kVec; ++j)
      words[j / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(static_cast<int8_t>(static_cast<int>(v[j]))))
                      << (j % 4 * 8);
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  }
}

// Up to kVec values from element e of picture `row` on; VECTOR promises alignment and the bank's layout.
template <bool VECTOR>
__device__ FASTUE_INLINE void read(const Pictures& t, const Layout& l, int64_t row, uint32_t e, bool crossed,
                                   float (&v)[kVec]) {
  if constexpr (VECTOR) {
    get_vec(t, row * l.size + e, v);
  } else {
    for (int j = 0; j < kVec; ++j) v[j] = e + j < l.size ? get(t, row * l.size + l.place(e + j, crossed)) : 0.0f;
  }
}

template <bool VECTOR>
__device__ FASTUE_INLINE void write(const Pictures& t, const Layout& l, int64_t row, uint32_t e, bool crossed,
                                    const float (&v)[kVec]) {
  if constexpr (VECTOR) {
    set_vec(t, row * l.size + e, v);
  } else {
    for (int j = 0; j < kVec; ++j)
      if (e + j < l.size) set(t, row * l.size + l.place(e + j, crossed), v[j]);
  }
}

__device__ FASTUE_INLINE void normalise(float (&v)[kVec], const Normalisation& n, const Layout& l, uint32_t e) {
  for (int j = 0; j < kVec; ++j) {
    const uint32_t c = l.channel(e + j < l.size ? e + j : e);
    const float mean = c == 0 ? n.mean[0] : c == 1 ? n.mean[1] : n.mean[2];
    const float inverse = c == 0 ? n.inverse[0] : c == 1 ? n.inverse[1] : n.inverse[2];
    v[j] = (v[j] - mean) * inverse;
  }
}

// Whether a tensor, null or not, allows 16-byte accesses in the bank's order.
inline bool vector_ready(const Pictures& t, const Layout& l, bool crossed) {
  return t.data == nullptr || (!crossed && l.size % kVec == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0);
}

inline int64_t blocks_per_picture(const Layout& l) {
  return (int64_t{l.size} + kVec * kThreads - 1) / (kVec * kThreads);
}

}  // namespace fastue
