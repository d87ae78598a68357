// Four standard normal numbers from the four words of a Philox counter, by Box and Muller. Shared by the CPU and CUDA
// code; kernels/_common.py has the twin, fastue/ops/_keyed.py the definition. No branch and no libm: it vectorises, and
// with each operation rounded on its own (no contraction) every backend gives the same bits.
//
// The polynomials were fitted in float64 (weighted least squares, reweighted until the error is level: minimax), then
// rounded to float32 from the lowest power on, the rest fitted again after each; relative errors 2^-25.3 (logarithm),
// 2^-25.1 (sine), 2^-31 (cosine). Measured against the definition over 2^26 values: z is off by at most 3.6 units in
// its last place and by at most 7.3e-7, 4.7e-8 in the root mean square.
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

struct Normals {
  float v[4];
};

// (w0, w1) gives z0 and z1, (w2, w3) gives z2 and z3. Both pairs are made side by side, a few operations of the one,
// then of the other: GCC keeps this order, and it hides the time that each operation takes (a fifth of the whole).
FASTUE_HD FASTUE_INLINE Normals normals(const Words& w) {
  uint32_t quarter[2];
  float t[2], y[2], y2[2], whole[2], low[2], high[2], x[2], g[2], s[2], c[2];
  // Radius: r = sqrt(-2 ln u), u = w0 2^-32 + ((w1 & 255) + 1/2) 2^-40; 40 bits make the tail right to |z| = 7.5.
  // t = 2u, or above u = 1/2 what float32 can hold near there: 2(1 - u), from the same bits turned.
  // u = 2^e (1 - y/2) with y in [0, 1] and e <= 0, so that nothing cancels. whole = -2 ln 2^e.
  for (int i = 0; i < 2; ++i) {
    const uint32_t turned = static_cast<uint32_t>(static_cast<int32_t>(w.v[2 * i]) >> 31);
    t[i] = static_cast<float>(static_cast<int32_t>(w.v[2 * i] ^ turned)) * 0x1p-31f +
           (static_cast<float>(static_cast<int32_t>((w.v[2 * i + 1] ^ turned) & 255u)) + 0.5f) * 0x1p-39f;
    const uint32_t bits = as_bits(t[i]);
    y[i] = turned != 0 ? t[i] : 2.0f - as_float((bits & 0x7FFFFFu) | 0x3F800000u);
    const float e = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
    whole[i] = turned != 0 ? 0.0f : e * -1.3862943649291992f;
  }
  // Angle: (w1 >> 8) / 2^24 of a full turn. The nearest quarter turn is in the top two bits of `quarter`; x in
  // [-1/2, 1/2) quarter turns is left over, exactly.
  for (int i = 0; i < 2; ++i) {
    quarter[i] = w.v[2 * i + 1] + 0x20000000u;
    x[i] = as_float((quarter[i] >> 7 & 0x7FFFFEu) | 0x3F800000u) - 1.5f;
    y2[i] = y[i] * y[i];
    g[i] = x[i] * x[i];
  }
  // -2 ln(1 - y/2) = y + y^2 q(y), q in pairs; s = sin, c = cos.
  for (int i = 0; i < 2; ++i) {
    low[i] = (0.24999761581420898f + 0.08340787887573242f * y[i]) +
             (0.03046148084104061f + 0.0164763443171978f * y[i]) * y2[i];
    s[i] = -0.004628783091902733f * g[i] + 0.07969201356172562f;
    c[i] = 0.0008943388820625842f * g[i] - 0.02085557021200657f;
  }
  for (int i = 0; i < 2; ++i) {
    high[i] = (-0.0056458450853824615f + 0.018875950947403908f * y[i]) +
              (-0.012803182005882263f + 0.005524084437638521f * y[i]) * y2[i];
    s[i] = s[i] * g[i] - 0.6459649801254272f;
    c[i] = c[i] * g[i] + 0.25366854667663574f;
  }
  float r[2];
  for (int i = 0; i < 2; ++i) {
    r[i] = square_root(whole[i] + (y[i] + y2[i] * (low[i] + high[i] * (y2[i] * y2[i]))));
    s[i] = s[i] * g[i] + 1.5707963705062866f;
    c[i] = c[i] * g[i] - 1.2337005138397217f;
  }
  Normals z;
  for (int i = 0; i < 2; ++i) {
    s[i] = x[i] * s[i];
    c[i] = c[i] * g[i] + 1.0f;
    const bool odd = (quarter[i] & 0x40000000u) != 0;
    z.v[2 * i] = r[i] * as_float(as_bits(odd ? s[i] : c[i]) ^ ((quarter[i] + 0x40000000u) & 0x80000000u));
    z.v[2 * i + 1] = r[i] * as_float(as_bits(odd ? c[i] : s[i]) ^ (quarter[i] & 0x80000000u));
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

// Pictures of a diffusion model: a counter makes four neighbouring pixels of a channel, `quad` of them from the picture's
// first on, each channel's last four filled up. `use` is purpose + 2^8 iteration + 2^16 t.
FASTUE_HD FASTUE_INLINE Words picture_counter(uint32_t quad, int64_t id, uint32_t use) {
  const uint64_t wide = static_cast<uint64_t>(id);
  return {{quad, static_cast<uint32_t>(wide), static_cast<uint32_t>(wide >> 32), use}};
}
FASTUE_HD FASTUE_INLINE uint32_t picture_use(uint32_t purpose, int64_t iteration, int64_t t) {
  return purpose | static_cast<uint32_t>(iteration) << 8 | static_cast<uint32_t>(t) << 16;
}

}  // namespace fastue
