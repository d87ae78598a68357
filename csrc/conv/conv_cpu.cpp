// conv on CPUs with AMX: an implicit matrix product on 16 x 16 tiles, for NHWC tensors. The definition is
// fastue/ops/conv/reference.py.
//
// The left factor of a tile product is 16 pictures at one pixel, 32 channels of each: source rows of 32 pictures are copied
// into blocks [row][column][channels / 32][picture][32] that stay in the L2 cache while all output channels are computed
// from them, 32 at a time. So tiles are full however narrow a picture is, a stride costs nothing, and taps that fall on
// the padding are left out. The ReLU's derivative is applied on the way. A convolution, and the gradient of one with respect
// to its input, differ in which source pixel a tap takes; nothing else here knows which it is.
//
// float32 factors are split into three bf16 each, x = h + m + l, exact up to rounding in the last bit, and six of the
// nine products are summed: what is left out is below float32's own rounding (Henry, Tang, Heinecke: Leveraging the
// bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations, 2019).
#include "../common/stable.h"

#if defined(FASTUE_X86_CLONES)
#include <cpuid.h>
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC 12's own headers
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <new>
#include <numeric>

#define FASTUE_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))

namespace fastue {
namespace {

constexpr int64_t kRowBytes = 64;               // 32 bf16: a row of a tile
constexpr int64_t kTileBytes = 16 * kRowBytes;  // 16 rows
constexpr int64_t kPictures = 32;               // of a block: two tiles
constexpr int64_t kBlockBytes = kPictures * kRowBytes;
constexpr int64_t kBlocksBytes = int64_t{1} << 20;  // of all blocks of a thread, about: half of an L2 cache

struct Job {
  const char *x, *gate, *residual, *weight;
  const float* bias;
  char* out;
  bool f32, relu, transposed;
  int64_t batch, channels, height, width;  // of x
  int64_t out_channels, out_height, out_width;
  int64_t kh, kw, stride, padding;
  int64_t by_out, by_in, by_row, by_col;  // strides of the weight: output channel, channel of x, kernel row, column
  bool unfolded;  // few channels: a block holds the whole neighbourhood of an output, and there is one tap

  int64_t size() const { return f32 ? 4 : 2; }
  int64_t splits() const { return f32 ? 3 : 1; }
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

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that a thread keeps, aligned to cache lines.
struct Buffer {
  char* data = nullptr;
  int64_t bytes = 0;
  char* get(int64_t wanted) {
    if (wanted > bytes) {
      std::free(data);
      data = static_cast<char*>(std::aligned_alloc(4096, up(wanted, 4096) * 4096));
      bytes = data ? up(wanted, 4096) * 4096 : 0;
      if (!data) throw std::bad_alloc();
    }
    return data;
  }
  ~Buffer() { std::free(data); }
};

struct Split {
  __m512i h, m, l;  // of 16 numbers each, as float32 whose lower half is zero
};

FASTUE_AMX inline __m512i rounded(__m512 v) {
  return _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16);
}

FASTUE_AMX inline Split split(__m512 v) {
  Split s;
  s.h = rounded(v);
  // infinity and NaN have no remainder
  const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps((__m512)s.h), _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
  const __m512 rest = _mm512_maskz_sub_ps(finite, v, (__m512)s.h);
  s.m = rounded(rest);
  s.l = rounded(_mm512_sub_ps(rest, (__m512)s.m));
  return s;
}

// Two times 16 numbers to 32 bf16 next to each other.
FASTUE_AMX inline __m512i narrow(__m512i low, __m512i high) {
  const __m256i a = _mm512_cvtepi32_epi16(_mm512_srli_epi32(low, 16));
  const __m256i b = _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

// Write `row` (32 numbers of the source, zero beyond `count`) to a plane, times (gate > 0) where there is a gate.
FASTUE_AMX inline void copy_row(char* to, int64_t next_split, const char* row, const char* gate, int64_t count, bool f32) {
  const uint32_t mask = count >= 32 ? ~uint32_t{0} : (uint32_t{1} << count) - 1;
  if (!f32) {
    __mmask32 keep = mask;
    if (gate) {
      const __m512i g = _mm512_maskz_loadu_epi16(mask, gate);
      // > 0, or NaN of either sign: the reference multiplies by !(gate <= 0)
      const __m512i magnitude = _mm512_and_si512(g, _mm512_set1_epi16(0x7fff));
      keep = _mm512_mask_cmpgt_epi16_mask(mask, g, _mm512_setzero_si512()) |
             _mm512_mask_cmpgt_epi16_mask(mask, magnitude, _mm512_set1_epi16(0x7f80));
    }
    _mm512_store_si512(to, _mm512_maskz_loadu_epi16(keep, row));
    return;
  }
  Split parts[2];
  for (int half = 0; half < 2; ++half) {
    __mmask16 keep = static_cast<__mmask16>(mask >> (16 * half));
    if (gate) {
      const __m512 g = _mm512_maskz_loadu_ps(keep, gate + 64 * half);
      keep = _mm512_mask_cmp_ps_mask(keep, g, _mm512_setzero_ps(), _CMP_NLE_UQ);
    }
    parts[half] = split(_mm512_maskz_loadu_ps(keep, row + 64 * half));
  }
  _mm512_store_si512(to, narrow(parts[0].h, parts[1].h));
  _mm512_store_si512(to + next_split, narrow(parts[0].m, parts[1].m));
  _mm512_store_si512(to + 2 * next_split, narrow(parts[0].l, parts[1].l));
}

// The pictures and output rows that a thread works on, and its ring of source rows: row r lies at slot r % ring.
struct Work {
  int64_t picture, pictures, quads;  // `pictures` in `quads` blocks of 32 for each pixel
  int64_t ring;
  char* blocks;
  int64_t slot(int64_t row) const { return row % ring; }
};

int64_t pixel_bytes(const Job& job, const Work& work) { return job.blocks() * work.quads * kBlockBytes; }
int64_t split_bytes(const Job& job, const Work& work) { return work.ring * job.cols() * pixel_bytes(job, work); }

// Pixels whose blocks stay in the L1 cache while the pictures are gone through.
int64_t pixels_near(const Job& job, const Work& work) {
  return std::max<int64_t>(1, (int64_t{16} << 10) / (pixel_bytes(job, work) * job.splits()));
}

FASTUE_AMX void fill_row(const Job& job, const Work& work, int64_t row) {
  const int64_t size = job.size(), pixel = job.channels * size, per_pixel = pixel_bytes(job, work);
  const int64_t next_split = split_bytes(job, work), blocks = job.blocks();
  const int64_t bytes = job.height * job.width * pixel, near = pixels_near(job, work);
  for (int64_t first = 0; first < job.width; first += near)
    for (int64_t g = 0; g < work.pictures; ++g) {
      char* to = work.blocks + (work.slot(row) * job.width + first) * per_pixel + g * kRowBytes;
      const int64_t offset = (work.picture + g) * bytes + (row * job.width + first) * pixel;
      const char* from = job.x + offset;
      const char* gate = job.gate ? job.gate + offset : nullptr;
      for (int64_t c = std::min(near, job.width - first); c > 0; --c, to += per_pixel, from += pixel, gate += gate ? pixel : 0)
        for (int64_t b = 0; b < blocks; ++b)
          copy_row(to + b * work.quads * kBlockBytes, next_split, from + 32 * b * size, gate ? gate + 32 * b * size : nullptr,
                   job.channels - 32 * b, job.f32);
    }
}

// The same for an unfolded job: output pixel by output pixel its neighbourhood. `padded` has room for the kh source rows
// of each picture with their margins. A vector, 32 bf16 or 16 float32, is put together from pieces of those rows.
struct Piece {
  int64_t offset;  // in `padded`, of what would be the vector's first lane for the first output pixel
  uint32_t lanes;
};

FASTUE_AMX void fill_unfolded(const Job& job, const Work& work, int64_t row, char* padded) {
  const int64_t size = job.size(), pixel = job.channels * size, run = job.kw * job.channels, margin = job.padding * pixel;
  const int64_t width = job.width * pixel, pitch = width + 2 * margin, step = job.stride * pixel;
  const int64_t per_pixel = pixel_bytes(job, work), next_split = split_bytes(job, work), lanes = job.f32 ? 16 : 32;
  std::vector<Piece> pieces;
  std::vector<size_t> ends;
  for (int64_t first = 0; first < 32 * job.blocks(); first += lanes) {
    for (int64_t i = 0; i < job.kh; ++i) {
      const int64_t from = std::max(first, i * run), to = std::min(first + lanes, (i + 1) * run);
      if (from >= to) continue;
      const uint64_t mask = ((uint64_t{1} << (to - from)) - 1) << (from - first);
      pieces.push_back({i * pitch + (first - i * run) * size, static_cast<uint32_t>(mask)});
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
          char* block = to + b * work.quads * kBlockBytes;
          if (!job.f32) {
            __m512i v = _mm512_setzero_si512();
            for (; k < end[b]; ++k) v = _mm512_mask_loadu_epi16(v, all[k].lanes, hood + all[k].offset);
            _mm512_store_si512(block, v);
            continue;
          }
          __m512 v[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
          for (int half = 0; half < 2; ++half)
            for (; k < end[2 * b + half]; ++k)
              v[half] = _mm512_mask_loadu_ps(v[half], static_cast<__mmask16>(all[k].lanes), hood + all[k].offset);
          const Split low = split(v[0]), high = split(v[1]);
          _mm512_store_si512(block, narrow(low.h, high.h));
          _mm512_store_si512(block + next_split, narrow(low.m, high.m));
          _mm512_store_si512(block + 2 * next_split, narrow(low.l, high.l));
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

// 16 output channels from `n` on and 32 inputs from `k` on, as the right factor of a tile product: pairs of inputs.
FASTUE_AMX void pack_tile(const Job& job, int64_t tap, int64_t n, int64_t k, char* to, int64_t next_split) {
  const int64_t size = job.size(), depth = job.depth();
  const int64_t i = tap / job.kw, j = tap % job.kw;
  const int64_t outs = std::min<int64_t>(job.out_channels - n, 16);
  const __mmask16 lanes = static_cast<__mmask16>((1u << outs) - 1);
  const auto at = [&](int64_t input) {  // in elements
    if (!job.unfolded) return n * job.by_out + input * job.by_in + i * job.by_row + j * job.by_col;
    const int64_t place = input / job.channels;
    return n * job.by_out + input % job.channels * job.by_in + place / job.kw * job.by_row + place % job.kw * job.by_col;
  };
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i offsets = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(job.by_out * size)));
  const __m512i zero = _mm512_setzero_si512();
  if (!job.f32 && job.by_in == 1 && !job.unfolded) {
    const __mmask32 live = depth - k >= 32 ? ~__mmask32{0} : (__mmask32{1} << (depth - k)) - 1;
    __m512i rows[16];
    for (int64_t o = 0; o < 16; ++o)
      rows[o] = o < outs ? _mm512_maskz_loadu_epi16(live, job.weight + 2 * (at(k) + o * job.by_out)) : zero;
    transpose(rows);
    for (int64_t row = 0; row < 16; ++row) _mm512_store_si512(to + row * kRowBytes, rows[row]);
    return;
  }
  for (int64_t row = 0; row < 16; ++row, to += kRowBytes) {
    const int64_t k0 = k + 2 * row, k1 = k0 + 1;
    if (job.f32) {
      const __m512i a = k0 < depth ? _mm512_mask_i32gather_epi32(zero, lanes, offsets, job.weight + 4 * at(k0), 1) : zero;
      const __m512i b = k1 < depth ? _mm512_mask_i32gather_epi32(zero, lanes, offsets, job.weight + 4 * at(k1), 1) : zero;
      const Split first = split((__m512)a), second = split((__m512)b);
      _mm512_store_si512(to, _mm512_or_si512(_mm512_srli_epi32(first.h, 16), second.h));
      _mm512_store_si512(to + next_split, _mm512_or_si512(_mm512_srli_epi32(first.m, 16), second.m));
      _mm512_store_si512(to + 2 * next_split, _mm512_or_si512(_mm512_srli_epi32(first.l, 16), second.l));
    } else if (k1 < depth && job.by_out == 1) {
      const __m256i a = _mm256_maskz_loadu_epi16(lanes, job.weight + 2 * at(k0));
      const __m256i b = _mm256_maskz_loadu_epi16(lanes, job.weight + 2 * at(k1));
      _mm512_store_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16)));
    } else {
      alignas(64) uint16_t pairs[32] = {};
      for (int64_t o = 0; o < outs; ++o) {
        if (k0 < depth) std::memcpy(pairs + 2 * o, job.weight + 2 * (at(k0) + o * job.by_out), 2);
        if (k1 < depth) std::memcpy(pairs + 2 * o + 1, job.weight + 2 * (at(k1) + o * job.by_out), 2);
      }
      std::memcpy(to, pairs, 64);
    }
  }
}

// The right factor of 32 output channels is a panel: for each 32 inputs, tap and split a tile of 16 outputs, or two.
struct Panels {
  int64_t steps, bytes;  // of a panel with two tiles a step
};

int64_t tiles_of(const Job& job, int64_t panel) { return job.out_channels - 32 * panel > 16 ? 2 : 1; }

struct Tap {
  int64_t left, right;  // offsets of its first step in the blocks and in a panel
};

// GCC 12's tile intrinsics do not tell the compiler what memory they read and write.
FASTUE_INLINE void memory_is_read() { asm volatile("" ::: "memory"); }

#define FASTUE_LEFT(pointer) \
  _tile_loadd(4, (pointer), kRowBytes); \
  if constexpr (kLeft == 2) _tile_loadd(5, (pointer) + kTileBytes, kRowBytes);
#define FASTUE_RIGHT(pointer) \
  _tile_loadd(6, (pointer), kRowBytes); \
  if constexpr (kRight == 2) _tile_loadd(7, (pointer) + kTileBytes, kRowBytes);
#define FASTUE_MULTIPLY() \
  _tile_dpbf16ps(0, 4, 6); \
  if constexpr (kLeft == 2) _tile_dpbf16ps(2, 5, 6); \
  if constexpr (kRight == 2) _tile_dpbf16ps(1, 4, 7); \
  if constexpr (kLeft == 2 && kRight == 2) _tile_dpbf16ps(3, 5, 7);

// sums [2][2][16][16]: the products of one output pixel of kLeft x 16 pictures with kRight x 16 channels.
template <int kLeft, int kRight, bool kF32>
FASTUE_AMX void multiply(const Job& job, const char* left, int64_t left_step, int64_t split, const char* right,
                         const Tap* taps, const Tap* end, float* sums) {
  constexpr int64_t kStep = kRight * kTileBytes;
  const int64_t right_step = job.taps() * (kF32 ? 3 : 1) * kStep;
  memory_is_read();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t b = job.blocks(); b > 0; --b, left += left_step, right += right_step)
    for (const Tap* tap = taps; tap < end; ++tap) {
      const char *l = left + tap->left, *r = right + tap->right * kStep;
      FASTUE_LEFT(l)
      if constexpr (kF32) {
        FASTUE_RIGHT(r + 2 * kStep)
        FASTUE_MULTIPLY()  // h l
        FASTUE_RIGHT(r + kStep)
        FASTUE_MULTIPLY()  // h m
        FASTUE_LEFT(l + split)
        FASTUE_MULTIPLY()  // m m
        FASTUE_RIGHT(r)
        FASTUE_MULTIPLY()  // m h
        FASTUE_LEFT(l + 2 * split)
        FASTUE_MULTIPLY()  // l h
        FASTUE_LEFT(l)
      } else {
        FASTUE_RIGHT(r)
      }
      FASTUE_MULTIPLY()
    }
  _tile_stored(0, sums, kRowBytes);
  if constexpr (kRight == 2) _tile_stored(1, sums + 256, kRowBytes);
  if constexpr (kLeft == 2) _tile_stored(2, sums + 512, kRowBytes);
  if constexpr (kLeft == 2 && kRight == 2) _tile_stored(3, sums + 768, kRowBytes);
  memory_is_read();
}

// Bias, residual, ReLU and rounding of the sums of one pixel, 32 channels from `channel` on, of `pictures` pictures.
FASTUE_AMX void write_sums(const Job& job, const float* sums, int64_t picture, int64_t pictures, int64_t pixel, int64_t channel) {
  const int64_t count = std::min<int64_t>(job.out_channels - channel, 32);
  const __mmask32 mask = count == 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
  const __mmask16 low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
  const __m512 zero = _mm512_setzero_ps();
  __m512 bias0 = zero, bias1 = zero;
  if (job.bias) {
    bias0 = _mm512_maskz_loadu_ps(low, job.bias + channel);
    bias1 = _mm512_maskz_loadu_ps(high, job.bias + channel + 16);
  }
  const int64_t next = job.out_height * job.out_width * job.out_channels * job.size();
  int64_t offset = picture * next + (pixel * job.out_channels + channel) * job.size();
  for (int64_t i = 0; i < pictures; ++i, offset += next) {
    const float* sum = sums + i / 16 * 512 + i % 16 * 16;
    __m512 a = _mm512_add_ps(_mm512_load_ps(sum), bias0), b = _mm512_add_ps(_mm512_load_ps(sum + 256), bias1);
    if (job.residual) {
      const char* from = job.residual + offset;
      if (job.f32) {
        a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(low, from));
        b = _mm512_add_ps(b, _mm512_maskz_loadu_ps(high, from + 64));
      } else {
        const __m512i r = _mm512_maskz_loadu_epi16(mask, from);
        a = _mm512_add_ps(a, _mm512_cvtpbh_ps((__m256bh)_mm512_castsi512_si256(r)));
        b = _mm512_add_ps(b, _mm512_cvtpbh_ps((__m256bh)_mm512_extracti64x4_epi64(r, 1)));
      }
    }
    if (job.relu) {  // the second operand where one is NaN
      a = _mm512_max_ps(zero, a);
      b = _mm512_max_ps(zero, b);
    }
    char* to = job.out + offset;
    if (job.f32) {
      _mm512_mask_storeu_ps(to, low, a);
      _mm512_mask_storeu_ps(to + 64, high, b);
    } else {
      _mm512_mask_storeu_epi16(to, mask, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
  }
}

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

template <bool kF32>
FASTUE_AMX void multiply_any(int64_t pictures, int64_t tiles, const Job& job, const char* left, int64_t left_step,
                             int64_t split, const char* right, const Tap* taps, const Tap* end, float* sums) {
  if (pictures > 16) {
    tiles == 2 ? multiply<2, 2, kF32>(job, left, left_step, split, right, taps, end, sums)
               : multiply<2, 1, kF32>(job, left, left_step, split, right, taps, end, sums);
  } else {
    tiles == 2 ? multiply<1, 2, kF32>(job, left, left_step, split, right, taps, end, sums)
               : multiply<1, 1, kF32>(job, left, left_step, split, right, taps, end, sums);
  }
}

struct Rows {
  int64_t first, last;  // last + 1 is the first one behind
};

// The source rows that output rows [first, last) take.
Rows source_rows(const Job& job, int64_t first, int64_t last) {
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

// Output rows [first, last) of the pictures of `work`, `band` at a time.
FASTUE_AMX void run_rows(const Job& job, const Panels& panels, const char* packed, const Work& work, int64_t first,
                         int64_t last, int64_t band, char* padded) {
  std::vector<Tap> taps;
  std::vector<size_t> ends;  // of the taps of each output pixel of a band
  const int64_t per_pixel = pixel_bytes(job, work), split = split_bytes(job, work), left_step = work.quads * kBlockBytes;
  int64_t filled = 0;  // source rows up to this one have been
  alignas(64) float sums[4 * 256] = {};
  for (int64_t top = first; top < last; top += band) {
    const int64_t bottom = std::min(top + band, last);
    const Rows rows = source_rows(job, top, bottom);
    for (int64_t row = std::max(filled, rows.first); row < rows.last; ++row)
      job.unfolded ? fill_unfolded(job, work, row, padded) : fill_row(job, work, row);
    filled = std::max(filled, rows.last);

    taps.clear();
    ends.clear();
    for (int64_t h = top; h < bottom; ++h)
      for (int64_t w = 0; w < job.out_width; ++w) {
        if (job.unfolded) taps.push_back({(work.slot(h) * job.cols() + w) * per_pixel, 0});
        for (int64_t i = 0; i < job.kh && !job.unfolded; ++i) {
          const int64_t row = job.source(h, i, job.height);
          for (int64_t j = 0; j < job.kw && row >= 0; ++j) {
            const int64_t col = job.source(w, j, job.width);
            if (col >= 0) taps.push_back({(work.slot(row) * job.cols() + col) * per_pixel, (i * job.kw + j) * job.splits()});
          }
        }
        ends.push_back(taps.size());
      }

    for (int64_t panel = 0; panel * 32 < job.out_channels; ++panel) {
      const int64_t tiles = tiles_of(job, panel);
      const char* right = packed + panel * panels.bytes;
      for (size_t p = 0; p < ends.size(); ++p) {
        const Tap *begin = taps.data() + (p ? ends[p - 1] : 0), *end = taps.data() + ends[p];
        for (int64_t done = 0; done < work.pictures; done += kPictures) {
          const int64_t pictures = std::min(kPictures, work.pictures - done);
          const char* left = work.blocks + done * kRowBytes;
          job.f32 ? multiply_any<true>(pictures, tiles, job, left, left_step, split, right, begin, end, sums)
                  : multiply_any<false>(pictures, tiles, job, left, left_step, split, right, begin, end, sums);
          write_sums(job, sums, work.picture + done, pictures, top * job.out_width + static_cast<int64_t>(p), 32 * panel);
        }
      }
    }
  }
}

void run(const Job& job) {
  static thread_local Buffer packed_memory;
  Panels panels;
  const int64_t taps = job.taps(), count = up(job.out_channels, 32);
  panels.steps = taps * job.blocks();
  panels.bytes = panels.steps * job.splits() * 2 * kTileBytes;
  char* packed = packed_memory.get(count * panels.bytes);
  torch::stable::parallel_for(0, count * panels.steps, 16, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t panel = k / panels.steps, step = k % panels.steps, tiles = tiles_of(job, panel);
      char* to = packed + panel * panels.bytes + step * job.splits() * tiles * kTileBytes;
      for (int64_t t = 0; t < tiles; ++t)
        pack_tile(job, step % taps, 32 * panel + 16 * t, step / taps * 32, to + t * kTileBytes, tiles * kTileBytes);
    }
  });

  // Pictures in groups, output rows in as many segments as keep all threads busy, and those in bands.
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t row_bytes = job.cols() * job.blocks() * kBlockBytes * job.splits();  // of 32 pictures
  const int64_t all_rows = source_rows(job, 0, job.out_height).last;
  const int64_t all = up(job.batch, kPictures), room = kBlocksBytes / std::max<int64_t>(1, row_bytes * all_rows);
  const int64_t quads = std::clamp<int64_t>(room, 1, up(all, threads)), groups = up(all, quads);
  const int64_t segments = std::min(threads / std::gcd(groups, threads), job.out_height);
  const int64_t rows = up(job.out_height, segments);
  int64_t band = rows, ring = 0;
  const auto ring_of = [&](int64_t band) {  // source rows that a band takes, at most
    int64_t most = 1;
    for (int64_t top = 0; top < job.out_height; ++top) {
      const Rows r = source_rows(job, top, std::min(top + band, job.out_height));
      most = std::max(most, r.last - r.first);
    }
    return most;
  };
  while ((ring = ring_of(band)) * row_bytes * quads > kBlocksBytes && band > 1) band = up(band, 2);
  torch::stable::parallel_for(0, groups * segments, 1, [&](int64_t begin, int64_t end) {
    static thread_local Buffer blocks_memory;
    const UseTiles tiles;
    for (int64_t k = begin; k < end; ++k) {
      Work work{k / segments * quads * kPictures, 0, quads, ring, nullptr};
      work.pictures = std::min(quads * kPictures, job.batch - work.picture);
      const int64_t bytes = job.splits() * split_bytes(job, work);
      work.blocks = blocks_memory.get(bytes + quads * kPictures * job.kh * (job.width + 2 * job.padding) * job.channels * job.size());
      const int64_t first = k % segments * rows;
      run_rows(job, panels, packed, work, first, std::min(first + rows, job.out_height), band, work.blocks + bytes);
    }
  });
}

const char* nhwc(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.scalar_type() == x.scalar_type(), name, " must be four-dimensional, of the dtype of x");
  STD_TORCH_CHECK(t.numel() == 0 || dense(t, true), name, " must be channels_last");
  return static_cast<const char*>(t.data_ptr());
}

void conv(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> gate,
          std::optional<Tensor> residual, const Tensor& out, int64_t stride, int64_t padding, bool transposed, bool relu) {
  Job job{};
  job.x = nhwc(x, x, "x");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
                  "x must be float32 or bfloat16");
  job.f32 = x.scalar_type() == ScalarType::Float;
  job.out = const_cast<char*>(nhwc(out, x, "out"));
  const auto same = [](const Tensor& a, const Tensor& b) {
    for (int d = 0; d < 4; ++d)
      if (a.size(d) != b.size(d)) return false;
    return true;
  };
  if (gate) {
    job.gate = nhwc(*gate, x, "gate");
    STD_TORCH_CHECK(same(*gate, x), "gate and x differ in shape");
  }
  if (residual) {
    job.residual = nhwc(*residual, x, "residual");
    STD_TORCH_CHECK(same(*residual, out), "residual and out differ in shape");
  }
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == x.scalar_type(), "weight must be [O, I, h, w], of x's dtype");
  STD_TORCH_CHECK(weight.numel() < (int64_t{1} << 28), "weight is too large");
  job.weight = static_cast<const char*>(weight.data_ptr());
  job.relu = relu;
  job.batch = x.size(0), job.channels = x.size(1), job.height = x.size(2), job.width = x.size(3);
  job.out_channels = out.size(1), job.out_height = out.size(2), job.out_width = out.size(3);
  job.kh = weight.size(2), job.kw = weight.size(3), job.stride = stride, job.padding = padding;
  job.by_out = weight.stride(transposed ? 1 : 0), job.by_in = weight.stride(transposed ? 0 : 1);
  job.by_row = weight.stride(2), job.by_col = weight.stride(3);
  STD_TORCH_CHECK(out.size(0) == job.batch && weight.size(transposed ? 0 : 1) == job.channels &&
                      weight.size(transposed ? 1 : 0) == job.out_channels,
                  "x, weight and out differ in batch size or channels");
  STD_TORCH_CHECK(stride >= 1 && padding >= 0 && job.kh >= 1 && job.kw >= 1, "stride or padding is negative");
  const auto reached = [&](int64_t size, int64_t kernel) { return (size + 2 * padding - kernel) / stride + 1; };
  const Tensor &wide = transposed ? out : x, &deep = transposed ? x : out;
  STD_TORCH_CHECK(wide.size(2) + 2 * padding >= job.kh && wide.size(3) + 2 * padding >= job.kw &&
                      deep.size(2) == reached(wide.size(2), job.kh) && deep.size(3) == reached(wide.size(3), job.kw),
                  "out has the wrong height or width");
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->dim() == 1 && bias->is_contiguous() &&
                        bias->size(0) == job.out_channels, "bias must be float32 [O], contiguous");
    job.bias = static_cast<const float*>(bias->data_ptr());
  }
  if (out.numel() == 0) return;
  job.transposed = transposed;
  job.unfolded = job.channels < 16 && !gate && !transposed;
  run(job);
}

// Linux grants a process the tiles' registers when it asks.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  for (const bool have : {__builtin_cpu_supports("avx512bf16") != 0, __builtin_cpu_supports("avx512bw") != 0,
                          __builtin_cpu_supports("avx512dq") != 0, __builtin_cpu_supports("avx512vl") != 0})
    if (!have) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) {
  if (fastue::has_amx()) m.impl("conv", TORCH_BOX(&fastue::conv));
}
#endif
