// Philox-4x32-10 with AVX-512, for any op on the CPU: philox.h is its definition. By hand, because GCC 12 makes a product
// of 64 by 64 bits out of one of 32 by 32. Behind `__builtin_cpu_supports("x86-64-v4")`.
#pragma once

#include "philox.h"
#include "tile.h"

#if defined(FASTUE_X86_CLONES)
#include <immintrin.h>

namespace fastue {

// N vectors of eight counters, c[word][vector]. A word is the low half of 64 bits; what is in the high half does not
// matter, before or after. Take N large enough (six) that there is something to do while a product is on its way.
template <int N>
FASTUE_V4 inline __attribute__((always_inline)) void philox_v4(__m512i (&c)[4][N], uint64_t seed) {
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const __m512i key0 = _mm512_set1_epi64(k0), key1 = _mm512_set1_epi64(k1);
#pragma GCC unroll 16
    for (int h = 0; h < N; ++h) {
      const __m512i p = _mm512_mul_epu32(c[0][h], m0), q = _mm512_mul_epu32(c[2][h], m1);
      c[0][h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(q, 32), c[1][h], key0, 0x96);  // xor
      c[2][h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p, 32), c[3][h], key1, 0x96);
      c[1][h] = q;
      c[3][h] = p;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Sixteen words from two vectors: those of the even lanes, and those of the odd lanes into the high halves.
FASTUE_V4 inline __attribute__((always_inline)) __m512i joined_v4(__m512i even, __m512i odd) {
  return _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA);
}

}  // namespace fastue
#endif
