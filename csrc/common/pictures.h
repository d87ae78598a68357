// What the CPU and the CUDA code share: how pictures lie in memory, and arithmetic that gives the reference's bits.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTUE_HD __host__ __device__
#define FASTUE_INLINE __forceinline__
#else
#define FASTUE_HD
#define FASTUE_INLINE inline __attribute__((always_inline))
#endif

namespace fastue {

enum class Type { f32, bf16, f16, s8, u8 };

// A batch or bank of pictures [N, C, H, W] in memory, contiguous or channels_last.
struct Pictures {
  void* data = nullptr;
  Type type = Type::f32;
  bool interleaved = false;  // channels_last
};

// Mean and 1/std of each channel.
struct Normalisation {
  bool on = false;
  float mean[3] = {0, 0, 0}, inverse[3] = {1, 1, 1};
};

FASTUE_HD FASTUE_INLINE float to_float(float v) { return v; }
FASTUE_HD FASTUE_INLINE float to_float(int8_t v) { return static_cast<float>(v); }
FASTUE_HD FASTUE_INLINE float to_float(uint8_t v) { return static_cast<float>(v); }

// v / 255 to the last bit for all 256 values (a test looks), without the division, which would set the pace: 1/255 in
// two parts, of which the first, 257/65536, has an exact product.
constexpr float kPixelHigh = 0x1.01p-8f, kPixelLow = 0x1.010102p-24f;
FASTUE_HD FASTUE_INLINE float pixel(uint8_t v) {
  const float f = static_cast<float>(v);
  return f * kPixelHigh + f * kPixelLow;
}
// To the nearest whole number, ties to even, for |v| < 2^22: there the sum keeps no fraction. No libm call to vectorise.
FASTUE_HD FASTUE_INLINE float nearest(float v) { return (v + 12582912.0f) - 12582912.0f; }
FASTUE_HD FASTUE_INLINE float clamp(float v, float low, float high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

// step * sign(g); a NaN moves nothing.
FASTUE_HD FASTUE_INLINE float moved(float g, float step) { return (g > 0.0f ? step : 0.0f) - (g < 0.0f ? step : 0.0f); }

}  // namespace fastue
