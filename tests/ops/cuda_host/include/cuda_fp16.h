// Stands in for CUDA's header of that name: half precision as its 16 bits, rounded to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <limits>

#include "cuda_runtime_api.h"

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline float __half2float(__half v) {
  const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  float size = std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
  if (exponent == 31) size = fraction ? std::numeric_limits<float>::quiet_NaN() : INFINITY;
  return v.bits >> 15 ? -size : size;
}
inline __half __float2half_rn(float v) {
  if (v != v) return {0x7FFF};
  const unsigned sign = std::bit_cast<uint32_t>(v) >> 31 << 15;
  const float size = std::fabs(v);
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00)};
  // Whole steps of this power of two; subnormal numbers have those of 2^-14. A carry moves on to the exponent.
  const int power = size < 0x1p-14f ? -14 : std::ilogb(size);
  const unsigned steps = static_cast<unsigned>(std::nearbyint(std::ldexp(size, 10 - power)));
  return {static_cast<uint16_t>(sign | (static_cast<unsigned>(power + 14) << 10) + steps)};
}
inline __half __float2half(float v) { return __float2half_rn(v); }
