// For CPUs with AMX: pictures in blocks whose rows are rows of a tile. Source rows of 32 pictures are copied into
// blocks [row][column][channels / 32][picture][32 channels] of bf16, so that a tile is 16 pictures at one pixel: full
// however narrow a picture is, whatever the stride.
#pragma once

#include "conv.h"

#if defined(FASTUE_X86_CLONES)
#include <cpuid.h>
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC 12's own headers
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <numeric>

#define FASTUE_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))

namespace fastue {

constexpr int64_t kRowBytes = 64;               // 32 bf16: a row of a tile
constexpr int64_t kTileBytes = 16 * kRowBytes;  // 16 rows
constexpr int64_t kPictures = 32;               // of a block: two tiles
constexpr int64_t kBlockBytes = kPictures * kRowBytes;
constexpr int64_t kBlocksBytes = int64_t{1} << 20;  // of all blocks of a thread, about: half of an L2 cache

struct Job {
  const char *x, *gate, *residual, *weight;
  const float* bias;
  char* out;
  bool relu, transposed;
  int64_t batch, channels, height, width;  // of x
  int64_t out_channels, out_height, out_width;
  int64_t kh, kw, stride, padding;
  int64_t by_out, by_in, by_row, by_col;  // strides of the weight: output channel, channel of x, kernel row, column
  bool unfolded;  // few channels: a block holds the whole neighbourhood of an output, and there is one tap

  int64_t depth() const { return unfolded ? kh * kw * channels : channels; }  // summed over, for each tap
  int64_t blocks() const { return (depth() + 31) / 32; }
  int64_t taps() const { return unfolded ? 1 : kh * kw; }
  int64_t cols() const { return unfolded ? out_width : width; }  // of the blocks

  // Which source row or column output `o` takes at place `k` of the kernel; -1 for none or padding.
  int64_t source(int64_t o, int64_t k, int64_t size) const {
    int64_t at = transposed ? o + padding - k : o * stride - padding + k;
    if (transposed) {
      if (at < 0 || at % stride) return -1;
      at /= stride;
    }
    return at >= 0 && at < size ? at : -1;
  }
};

// Write `row` (32 numbers of the source, zero beyond `count`) to a row of a block, times (gate > 0) if there is a gate.
FASTUE_AMX inline void copy_row(char* to, const char* row, const char* gate, int64_t count) {
  const __mmask32 mask = count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
  __mmask32 keep = mask;
  if (gate) {
    const __m512i g = _mm512_maskz_loadu_epi16(mask, gate);
    // > 0, or NaN of either sign: the reference multiplies by !(gate <= 0)
    const __m512i magnitude = _mm512_and_si512(g, _mm512_set1_epi16(0x7fff));
    keep = _mm512_mask_cmpgt_epi16_mask(mask, g, _mm512_setzero_si512()) |
           _mm512_mask_cmpgt_epi16_mask(mask, magnitude, _mm512_set1_epi16(0x7f80));
  }
  _mm512_store_si512(to, _mm512_maskz_loadu_epi16(keep, row));
}

// The pictures and output rows that a thread works on, and its ring of source rows: row r lies at slot r % ring.
struct Work {
  int64_t picture, pictures, sets;  // from `picture` on, in sets of 32: a pixel has `sets` blocks for each 32 channels
  int64_t ring;
  char* blocks;
  int64_t slot(int64_t row) const { return row % ring; }
};

inline int64_t pixel_bytes(const Job& job, const Work& work) { return job.blocks() * work.sets * kBlockBytes; }
inline int64_t blocks_bytes(const Job& job, const Work& work) {
  return work.ring * job.cols() * pixel_bytes(job, work);
}

// Room that fill_unfolded needs.
inline int64_t padded_bytes(const Job& job, const Work& work) {
  return work.pictures * job.kh * (job.width + 2 * job.padding) * job.channels * 2;
}

// Pixels whose blocks stay in the L1 cache while the pictures are gone through.
inline int64_t pixels_near(const Job& job, const Work& work) {
  return std::max<int64_t>(1, (int64_t{16} << 10) / pixel_bytes(job, work));
}

FASTUE_INLINE void prefetch(const char* from, int64_t bytes) {
  for (int64_t k = 0; k < bytes; k += kRowBytes) _mm_prefetch(from + k, _MM_HINT_T0);
}

FASTUE_AMX inline void fill_row(const Job& job, const Work& work, int64_t row) {
  const int64_t pixel = job.channels * 2, per_pixel = pixel_bytes(job, work), blocks = job.blocks();
  const int64_t bytes = job.height * job.width * pixel, near = pixels_near(job, work);
  for (int64_t first = 0; first < job.width; first += near)
    for (int64_t g = 0; g < work.pictures; ++g) {
      char* to = work.blocks + (work.slot(row) * job.width + first) * per_pixel + g * kRowBytes;
      const int64_t offset = (work.picture + g) * bytes + (row * job.width + first) * pixel;
      const char* from = job.x + offset;
      const char* gate = job.gate ? job.gate + offset : nullptr;
      const int64_t count = std::min(near, job.width - first), gate_pixel = gate ? pixel : 0;
      if (g + 4 < work.pictures) {  // a few hundred bytes of each picture: the CPU does not see what comes next
        prefetch(from + 4 * bytes, count * pixel);
        if (gate) prefetch(gate + 4 * bytes, count * pixel);
      }
      for (int64_t c = 0; c < count; ++c, to += per_pixel, from += pixel, gate += gate_pixel)
        for (int64_t b = 0; b < blocks; ++b)
          copy_row(to + b * work.sets * kBlockBytes, from + b * kRowBytes, gate ? gate + b * kRowBytes : nullptr,
                   job.channels - 32 * b);
    }
}

// The same for an unfolded job: output pixel by output pixel its neighbourhood. `padded` has room for the kh source
// rows of each picture with their margins. 32 numbers are put together from pieces of those rows.
struct Piece {
  int64_t offset;  // in `padded`, of what would be the vector's first lane for the first output pixel
  uint32_t lanes;
};

FASTUE_AMX inline void fill_unfolded(const Job& job, const Work& work, int64_t row, char* padded) {
  const int64_t pixel = job.channels * 2, run = job.kw * job.channels, margin = job.padding * pixel;
  const int64_t width = job.width * pixel, pitch = width + 2 * margin, step = job.stride * pixel;
  const int64_t per_pixel = pixel_bytes(job, work);
  std::vector<Piece> pieces;
  std::vector<size_t> ends;
  for (int64_t first = 0; first < 32 * job.blocks(); first += 32) {
    for (int64_t i = 0; i < job.kh; ++i) {
      const int64_t from = std::max(first, i * run), to = std::min(first + 32, (i + 1) * run);
      if (from >= to) continue;
      const uint64_t mask = ((uint64_t{1} << (to - from)) - 1) << (from - first);
      pieces.push_back({i * pitch + (first - i * run) * 2, static_cast<uint32_t>(mask)});
    }
    ends.push_back(pieces.size());
  }
  for (int64_t g = 0; g < work.pictures; ++g)
    for (int64_t i = 0; i < job.kh; ++i) {
      const int64_t from = row * job.stride - job.padding + i;
      char* to = padded + (g * job.kh + i) * pitch;
      if (from < 0 || from >= job.height) {
        std::memset(to, 0, pitch);
        continue;
      }
      std::memset(to, 0, margin);
      std::memcpy(to + margin, job.x + ((work.picture + g) * job.height + from) * width, width);
      std::memset(to + margin + width, 0, margin);
    }
  const int64_t near = pixels_near(job, work), blocks = job.blocks();
  const Piece* all = pieces.data();
  const size_t* end = ends.data();
  for (int64_t first = 0; first < job.out_width; first += near)
    for (int64_t g = 0; g < work.pictures; ++g) {
      char* to = work.blocks + (work.slot(row) * job.out_width + first) * per_pixel + g * kRowBytes;
      const char* hood = padded + g * job.kh * pitch + first * step;
      for (int64_t c = std::min(near, job.out_width - first); c > 0; --c, to += per_pixel, hood += step) {
        size_t k = 0;
        for (int64_t b = 0; b < blocks; ++b) {
          __m512i v = _mm512_setzero_si512();
          for (; k < end[b]; ++k) v = _mm512_mask_loadu_epi16(v, all[k].lanes, hood + all[k].offset);
          _mm512_store_si512(to + b * work.sets * kBlockBytes, v);
        }
      }
    }
}

// 16 rows of 16 words, transposed.
FASTUE_AMX inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // r[i + k]: words 4*lane + k of rows i to i + 3
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int k = 0; k < 4; ++k) {
    t[k] = _mm512_shuffle_i32x4(r[k], r[k + 4], 0x88);
    t[k + 4] = _mm512_shuffle_i32x4(r[k], r[k + 4], 0xdd);
    t[k + 8] = _mm512_shuffle_i32x4(r[k + 8], r[k + 12], 0x88);
    t[k + 12] = _mm512_shuffle_i32x4(r[k + 8], r[k + 12], 0xdd);
  }
  for (int k = 0; k < 4; ++k) {
    r[k] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0x88);
    r[k + 8] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0xdd);
    r[k + 4] = _mm512_shuffle_i32x4(t[k + 4], t[k + 12], 0x88);
    r[k + 12] = _mm512_shuffle_i32x4(t[k + 4], t[k + 12], 0xdd);
  }
}

struct Rows {
  int64_t first, last;  // last + 1 is the first one behind
};

// The source rows that output rows [first, last) take.
inline Rows source_rows(const Job& job, int64_t first, int64_t last) {
  if (job.unfolded) return {first, last};
  Rows rows{job.height, 0};
  for (int64_t o = first; o < last; ++o)
    for (int64_t k = 0; k < job.kh; ++k) {
      const int64_t at = job.source(o, k, job.height);
      if (at < 0) continue;
      rows.first = std::min(rows.first, at);
      rows.last = std::max(rows.last, at + 1);
    }
  return rows;
}

// Source rows that a band of output rows takes, at most: what a ring has to hold.
inline int64_t ring_of(const Job& job, int64_t band) {
  int64_t most = 1;
  for (int64_t top = 0; top < job.out_height; ++top) {
    const Rows r = source_rows(job, top, std::min(top + band, job.out_height));
    most = std::max(most, r.last - r.first);
  }
  return most;
}

// GCC 12's tile intrinsics do not tell the compiler what memory they read and write.
FASTUE_INLINE void memory_is_read() { asm volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles of this shape while it lives; what another library had set is set again.
struct UseTiles {
  TileConfig before;
  FASTUE_AMX UseTiles() {
    const TileConfig mine;
    memory_is_read();
    _tile_storeconfig(&before);
    _tile_loadconfig(&mine);
    memory_is_read();
  }
  FASTUE_AMX ~UseTiles() {
    if (before.palette) {
      _tile_loadconfig(&before);
    } else {
      _tile_release();
    }
  }
};

// Linux grants a process the tiles' registers when it asks.
inline bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  for (const bool have : {__builtin_cpu_supports("avx512bf16") != 0, __builtin_cpu_supports("avx512bw") != 0,
                          __builtin_cpu_supports("avx512dq") != 0, __builtin_cpu_supports("avx512vl") != 0})
    if (!have) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace fastue

#pragma GCC diagnostic pop
#endif
