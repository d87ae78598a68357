// Philox-4x32-10 with AVX2, for any op on the CPU: philox.h is its definition. By hand, for the reason that philox_v4.h
// names; three times as fast as what GCC 12 makes of philox.h. Behind `__builtin_cpu_supports("x86-64-v3")`.
#pragma once

#include "philox.h"
#include "tile.h"

#if defined(FASTUE_X86_CLONES)
#include <immintrin.h>

#define FASTUE_V3 __attribute__((target("arch=x86-64-v3")))

namespace fastue {

// N vectors of four counters, c[word][vector]. A word is the low half of 64 bits; what is in the high half does not
// matter, before or after.
template <int N>
FASTUE_V3 inline __attribute__((always_inline)) void philox_v3(__m256i (&c)[4][N], uint64_t seed) {
  const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1);
#pragma GCC unroll 16
    for (int h = 0; h < N; ++h) {
      const __m256i p = _mm256_mul_epu32(c[0][h], m0), q = _mm256_mul_epu32(c[2][h], m1);
      c[0][h] = _mm256_xor_si256(_mm256_srli_epi64(q, 32), _mm256_xor_si256(c[1][h], key0));
      c[2][h] = _mm256_xor_si256(_mm256_srli_epi64(p, 32), _mm256_xor_si256(c[3][h], key1));
      c[1][h] = q;
      c[3][h] = p;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Eight words from two vectors: those of the even lanes, and those of the odd lanes into the high halves.
FASTUE_V3 inline __attribute__((always_inline)) __m256i joined_v3(__m256i even, __m256i odd) {
  return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}

}  // namespace fastue
#endif
