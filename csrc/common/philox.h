// Philox-4x32-10 (Salmon et al. 2011), and the crop and flip keyed by it. Shared by the CPU and CUDA code; the twin of
// fastue/ops/_keyed.py. A draw is a pure function of its seed and its counter.
#pragma once

#include <cstdint>

#include "pictures.h"

namespace fastue {

struct Words {
  uint32_t v[4];
};

FASTUE_HD FASTUE_INLINE Words philox(Words c, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.v[0], b = uint64_t{0xCD9E8D57u} * c.v[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.v[1] ^ k0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.v[3] ^ k1, static_cast<uint32_t>(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

struct CropFlip {
  int32_t down, right;  // where the output starts in the picture; negative or beyond it is the black border
  bool mirrored;
};

// Of keyed draws; the table is in fastue/ops/_keyed.py.
constexpr uint32_t kPurposeCropFlip = 1;
constexpr uint32_t kPurposeDiffusionStart = 7, kPurposeDiffusionStep = 8, kPurposeDiffusionCopy = 9;

FASTUE_HD inline CropFlip crop_flip(int64_t id, uint64_t seed, int64_t epoch, int64_t pad, bool flip) {
  const uint64_t wide = static_cast<uint64_t>(id);
  const Words w = philox({{static_cast<uint32_t>(wide), static_cast<uint32_t>(wide >> 32),
                           static_cast<uint32_t>(epoch), kPurposeCropFlip}},
                         seed);
  const uint64_t n = static_cast<uint64_t>(2 * pad + 1);
  const int32_t border = static_cast<int32_t>(pad);
  return {static_cast<int32_t>(w.v[0] * n >> 32) - border, static_cast<int32_t>(w.v[1] * n >> 32) - border,
          flip && (w.v[2] >> 31) != 0};
}

}  // namespace fastue
