// Four standard normal numbers from the four words of a Philox counter, by Box and Muller. Shared by the CPU and CUDA
// code; kernels/_common.py has the twin, fastue/ops/_keyed.py the definition. No branch and no libm: it vectorises, and
// with each operation rounded on its own (no contraction) every backend gives the same bits.
//
// The polynomials were fitted in float64 (weighted least squares, reweighted until the error is level: minimax), then
// rounded to float32 from the lowest power on, the rest fitted again after each. Error of z against the definition: at
// most 3.1 units in the last place of z over 2^26 draws, 8e-7 at most in absolute terms.
#pragma once

#include <cmath>
#include <cstring>

#include "philox.h"

namespace fastue {

FASTUE_HD FASTUE_INLINE uint32_t as_bits(float v) {
  uint32_t out;
  std::memcpy(&out, &v, 4);
  return out;
}
FASTUE_HD FASTUE_INLINE float as_float(uint32_t v) {
  float out;
  std::memcpy(&out, &v, 4);
  return out;
}

FASTUE_HD FASTUE_INLINE float square_root(float v) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(v);
#else
  return std::sqrt(v);
#endif
}

// sqrt(-2 ln u), u = a 2^-32 + ((b & 255) + 1/2) 2^-40: 40 bits, so that the tail is right to |z| = 7.5.
FASTUE_HD FASTUE_INLINE float radius(uint32_t a, uint32_t b) {
  // t = 2u, or above u = 1/2 what float32 can hold near there: 2(1 - u), from the same bits turned.
  const uint32_t turned = static_cast<uint32_t>(static_cast<int32_t>(a) >> 31);
  const float t = static_cast<float>(static_cast<int32_t>(a ^ turned)) * 0x1p-31f +
                  (static_cast<float>(static_cast<int32_t>((b ^ turned) & 255u)) + 0.5f) * 0x1p-39f;
  // u = 2^e (1 - y/2) with y in [0, 1] and e <= 0, so that nothing cancels below.
  const uint32_t bits = as_bits(t);
  const float y = turned != 0 ? t : 2.0f - as_float((bits & 0x7FFFFFu) | 0x3F800000u);
  const float e = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
  const float whole = turned != 0 ? 0.0f : e * -1.3862943649291992f;  // -2 ln 2
  // -2 ln(1 - y/2) = y + y^2 q(y), q in pairs: shorter chains than Horner's.
  const float y2 = y * y;
  const float q01 = 0.24999761581420898f + 0.08340787887573242f * y;
  const float q23 = 0.03046148084104061f + 0.0164763443171978f * y;
  const float q45 = -0.0056458450853824615f + 0.018875950947403908f * y;
  const float q67 = -0.012803182005882263f + 0.005524084437638521f * y;
  const float q = (q01 + q23 * y2) + (q45 + q67 * y2) * (y2 * y2);
  return square_root(whole + (y + y2 * q));
}

// cos and sin of the angle (b >> 8) / 2^24 of a full turn.
FASTUE_HD FASTUE_INLINE void turn(uint32_t b, float& cosine, float& sine) {
  // The nearest quarter turn is in the top two bits; x in [-1/2, 1/2) quarter turns is left over, exactly.
  const uint32_t quarter = b + 0x20000000u;
  const float x = as_float((quarter >> 7 & 0x7FFFFEu) | 0x3F800000u) - 1.5f;
  const float g = x * x;
  const float s = x * (((-0.004628783091902733f * g + 0.07969201356172562f) * g - 0.6459649801254272f) * g +
                       1.5707963705062866f);
  const float c = (((0.0008943388820625842f * g - 0.02085557021200657f) * g + 0.25366854667663574f) * g -
                   1.2337005138397217f) * g + 1.0f;
  const bool odd = (quarter & 0x40000000u) != 0;
  cosine = as_float(as_bits(odd ? s : c) ^ ((quarter + 0x40000000u) & 0x80000000u));
  sine = as_float(as_bits(odd ? c : s) ^ (quarter & 0x80000000u));
}

struct Normals {
  float v[4];
};

FASTUE_HD FASTUE_INLINE Normals normals(const Words& w) {
  Normals z;
  for (int i = 0; i < 4; i += 2) {
    float cosine, sine;
    turn(w.v[i + 1], cosine, sine);
    const float r = radius(w.v[i], w.v[i + 1]);
    z.v[i] = r * cosine;
    z.v[i + 1] = r * sine;
  }
  return z;
}

// Weight noise: a counter makes elements lane, lane + 16, lane + 32 and lane + 48 of a block of 64 parameters, so that
// 16 neighbouring counters write 16 neighbours.
constexpr int64_t kBlock = 64, kLanes = 16;

// `entry` of the table: parameter << 32 | block within the parameter.
FASTUE_HD FASTUE_INLINE Words weight_counter(int64_t entry, uint32_t lane, uint32_t draw, uint32_t purpose) {
  const uint64_t wide = static_cast<uint64_t>(entry);
  const uint32_t first = static_cast<uint32_t>(wide) * static_cast<uint32_t>(kLanes);
  return {{first + lane, static_cast<uint32_t>(wide >> 32), draw, purpose}};
}

}  // namespace fastue
