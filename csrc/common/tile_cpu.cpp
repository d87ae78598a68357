// Conversions between tensors and tiles; see tile.h.
#include "tile.h"

#include <type_traits>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastue {
namespace {

FASTUE_INLINE void from_float(float v, float& out) { out = v; }
FASTUE_INLINE void from_float(float v, f16& out) { out = static_cast<f16>(v); }
FASTUE_INLINE void from_float(float v, bf16& out) {  // to nearest, ties to even; a NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(v != v ? 0x7FC0u : rounded);
}

// For each (memory index, tile index) of a tile in a tensor of the *other* layout. C is a constant inside, for the
// compiler's shuffles.
template <int C, class F>
FASTUE_INLINE void each_crossed(const Shape& s, const Tile& t, F f) {
  const int64_t base = t.row * C * s.area;
  if (s.interleaved) {
    for (int c = 0; c < C; ++c)
      for (int64_t p = 0; p < t.pixels; ++p) f(base + c * s.area + t.first + p, p * C + c);
  } else {
    for (int64_t p = 0; p < t.pixels; ++p) f(base + (t.first + p) * C + t.channel, p);
  }
}

// Copy a tile out of `from` and convert it to floats.
template <class From>
FASTUE_INLINE void load_as(const Pictures& from, const Shape& s, const Tile& t, float* __restrict to) {
  const From* data = static_cast<const From*>(from.data);
  if (in_place(from, s)) {
    data += s.offset(t);
    for (int64_t i = 0; i < t.elements; ++i) to[i] = to_float(data[i]);
  } else {
    each_crossed<3>(s, t, [&](int64_t m, int64_t i) { to[i] = to_float(data[m]); });
  }
}

}  // namespace

FASTUE_CLONES const float* load(const Pictures& from, const Shape& s, const Tile& t, float* scratch) {
  if (from.type == Type::f32 && in_place(from, s))
    return static_cast<const float*>(from.data) + s.offset(t);
  if (from.type == Type::f32) load_as<float>(from, s, t, scratch);
  if (from.type == Type::bf16) load_as<bf16>(from, s, t, scratch);
  if (from.type == Type::f16) load_as<f16>(from, s, t, scratch);
  return scratch;
}

FASTUE_CLONES const uint8_t* load_bytes(const Pictures& from, const Shape& s, const Tile& t, uint8_t* scratch) {
  if (in_place(from, s))
    return static_cast<const uint8_t*>(from.data) + s.offset(t);
  const uint8_t* data = static_cast<const uint8_t*>(from.data);
  uint8_t* __restrict to = scratch;  // bytes may alias anything, unless told
  each_crossed<3>(s, t, [&](int64_t m, int64_t i) { to[i] = data[m]; });
  return scratch;
}

namespace {

// Write n values past the cache where that is asked for and possible.
template <class T>
FASTUE_INLINE void put(T* to, const T* from, int64_t n, bool stream) {
#if defined(__SSE2__)
  if (stream && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    constexpr int64_t lanes = 16 / sizeof(T);
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    to += i, from += i, n -= i;
  }
#endif
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
}

template <class T>
FASTUE_INLINE void store_as(const float* from, const Pictures& to, const Shape& s, const Tile& t, bool stream) {
  T* data = static_cast<T*>(to.data);
  if (in_place(to, s)) {
    data += s.offset(t);
    if constexpr (std::is_same_v<T, float>) {
      put(data, from, t.elements, stream);
    } else {
      alignas(64) T narrow[kTile];
      for (int64_t i = 0; i < t.elements; ++i) from_float(from[i], narrow[i]);
      put(data, narrow, t.elements, stream);
    }
  } else {
    each_crossed<3>(s, t, [&](int64_t m, int64_t i) { from_float(from[i], data[m]); });
  }
}

}  // namespace

FASTUE_CLONES void store(const float* from, const Pictures& to, const Shape& s, const Tile& t, bool stream) {
  if (to.type == Type::f32) store_as<float>(from, to, s, t, stream);
  if (to.type == Type::bf16) store_as<bf16>(from, to, s, t, stream);
  if (to.type == Type::f16) store_as<f16>(from, to, s, t, stream);
}

void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

namespace {

FASTUE_CLONES void add_portable(float* __restrict v, const int8_t* __restrict stored, float scale,
                                const uint8_t* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    v[i] = clamp(pixel(x[i]) + static_cast<float>(stored[i]) * scale, 0.0f, 1.0f);
}

#if defined(FASTUE_X86_CLONES)

// By hand: GCC 12 spends more on widening bytes than on the sum. Asks ahead; an address past the end does no harm.
FASTUE_V4 void add_v4(float* v, const int8_t* stored, float scale, const uint8_t* x, int64_t count) {
  const __m512 high = _mm512_set1_ps(kPixelHigh), low = _mm512_set1_ps(kPixelLow), unit = _mm512_set1_ps(scale);
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 live = count - i >= 16 ? 0xFFFF : (1 << (count - i)) - 1;
    if (i % 64 == 0) {
      __builtin_prefetch(x + i + 1024);
      __builtin_prefetch(stored + i + 1024);
    }
    const __m512 f = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(live, x + i)));
    const __m512 s = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(live, stored + i)));
    const __m512 p = _mm512_add_ps(_mm512_mul_ps(f, high), _mm512_mul_ps(f, low));
    const __m512 sum = _mm512_add_ps(p, _mm512_mul_ps(s, unit));
    _mm512_mask_storeu_ps(v + i, live, _mm512_min_ps(_mm512_max_ps(sum, zero), one));
  }
}

#endif

}  // namespace

void add_bytes(float* v, const int8_t* stored, float scale, const uint8_t* x, int64_t count) {
#if defined(FASTUE_X86_CLONES)
  if (__builtin_cpu_supports("x86-64-v4")) return add_v4(v, stored, scale, x, count);
#endif
  add_portable(v, stored, scale, x, count);
}

FASTUE_CLONES void normalise(float* v, const Normalisation& norm, const Shape& s, const Tile& t) {
  if (!s.interleaved || s.channels == 1) {
    const float one = norm.mean[t.channel], scale = norm.inverse[t.channel];
    for (int64_t i = 0; i < t.elements; ++i) v[i] = (v[i] - one) * scale;
    return;
  }
  constexpr int64_t kPeriod = 48;  // 3 channels x 16 lanes: no division to find the channel
  alignas(64) float mean[kPeriod], inverse[kPeriod];
  for (int64_t j = 0; j < kPeriod; ++j) {
    mean[j] = norm.mean[j % 3];
    inverse[j] = norm.inverse[j % 3];
  }
  int64_t i = 0;
  for (; i + kPeriod <= t.elements; i += kPeriod)
    for (int64_t j = 0; j < kPeriod; ++j) v[i + j] = (v[i + j] - mean[j]) * inverse[j];
  for (int64_t j = 0; i < t.elements; ++i, ++j) v[i] = (v[i] - mean[j]) * inverse[j];
}

namespace {

// f(block, first pixel, the pixel behind the last) for the blocks of a part of a line, pixels counted from its first.
// kGrain is grain where that is a constant, else 0.
template <int kGrain, class F>
FASTUE_INLINE void each_block(int64_t first, int64_t last, int64_t grain, const F& f) {
  int64_t p = first;
  if constexpr (kGrain > 0)
    if (first % kGrain == 0)
      for (; p + kGrain <= last; p += kGrain) f(p / kGrain, p - first, p - first + kGrain);
  while (p < last) {
    const int64_t b = p / grain, end = std::min((b + 1) * grain, last);
    f(b, p - first, end - first);
    p = end;
  }
}

// f(per, grain) with the usual ones as constants, for the compiler; 0 stands for another.
template <class F>
FASTUE_INLINE void as_constants(int64_t per, int64_t grain, const F& f) {
  using std::integral_constant;
  if (per == 3 && grain == 4) return f(integral_constant<int, 3>{}, integral_constant<int, 4>{});
  if (per == 3) return f(integral_constant<int, 3>{}, integral_constant<int, 0>{});
  if (grain == 4) return f(integral_constant<int, 1>{}, integral_constant<int, 4>{});
  f(integral_constant<int, 1>{}, integral_constant<int, 0>{});
}

}  // namespace

FASTUE_CLONES void add_to_blocks(float* __restrict sum, const float* __restrict v, int64_t first, int64_t last, int64_t per,
                                 int64_t grain) {
  as_constants(per, grain, [&](auto channels, auto side) {
    constexpr int kPer = channels.value;
    each_block<side.value>(first, last, grain, [&](int64_t b, int64_t from, int64_t to) {
      float total[kPer];
      for (int c = 0; c < kPer; ++c) total[c] = sum[b * kPer + c];
      for (int64_t p = from; p < to; ++p)
        for (int c = 0; c < kPer; ++c) total[c] += v[p * kPer + c];
      for (int c = 0; c < kPer; ++c) sum[b * kPer + c] = total[c];
    });
  });
}

FASTUE_CLONES void show_blocks(float* __restrict v, const float* __restrict value, int64_t first, int64_t last, int64_t per,
                               int64_t grain) {
  as_constants(per, grain, [&](auto channels, auto side) {
    constexpr int kPer = channels.value;
    each_block<side.value>(first, last, grain, [&](int64_t b, int64_t from, int64_t to) {
      for (int64_t p = from; p < to; ++p)
        for (int c = 0; c < kPer; ++c) v[p * kPer + c] = value[b * kPer + c];
    });
  });
}

FASTUE_CLONES void bound_blocks(uint8_t* __restrict low, uint8_t* __restrict high, int64_t width, int64_t per, int64_t grain) {
  as_constants(per, grain, [&](auto channels, auto side) {
    constexpr int kPer = channels.value;
    each_block<side.value>(0, width, grain, [&](int64_t b, int64_t from, int64_t to) {
      uint8_t least[kPer], most[kPer];
      for (int c = 0; c < kPer; ++c) least[c] = low[from * kPer + c], most[c] = high[from * kPer + c];
      for (int64_t p = from + 1; p < to; ++p)
        for (int c = 0; c < kPer; ++c) {
          least[c] = std::min(least[c], low[p * kPer + c]);
          most[c] = std::max(most[c], high[p * kPer + c]);
        }
      for (int c = 0; c < kPer; ++c) low[b * kPer + c] = least[c], high[b * kPer + c] = most[c];
    });
  });
}

FASTUE_CLONES const float* load_back(const Pictures& from, const Shape& s, const View& view, const CropFlip& window,
                                     const Tile& t, int64_t y, float* scratch) {
  if (window.down == 0 && window.right == 0 && !window.mirrored) return load(from, s, t, scratch);
  const int64_t per = t.elements / t.pixels, width = view.width, line = y - window.down;
  std::fill(scratch, scratch + t.elements, 0.0f);
  if (line < 0 || line >= view.height) return scratch;
  // Pixel p of the picture is shown in column p - right of the line, counted from the other end where it is mirrored.
  const int64_t left = t.first - y * width - window.right;
  const int64_t begin = std::max<int64_t>(left, 0), end = std::min(left + t.pixels, width);
  if (begin >= end) return scratch;
  alignas(64) float shown[kTile];
  const int64_t column = window.mirrored ? width - end : begin;
  const float* v = load(from, s, s.part(t.row, t.channel, line * width + column, end - begin), shown);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t at = window.mirrored ? end - 1 - k : k - begin;
    for (int64_t c = 0; c < per; ++c) scratch[(k - left) * per + c] = v[at * per + c];
  }
  return scratch;
}

namespace {

// The protected pixels `first` to before `last` of a line of a picture; `noise` is that of the line's blocks.
FASTUE_INLINE void protect(const Showing& job, int64_t i, int64_t channel, int64_t line, int64_t first, int64_t last,
                           const float* noise, float* v) {
  alignas(64) uint8_t bytes[kTile];
  alignas(64) float wide[kTile];
  const Tile piece = job.shape.part(i, channel, line * job.view.width + first, last - first);
  const uint8_t* x = load_bytes(job.x, job.shape, piece, bytes);
  show_blocks(wide, noise, first, last, job.per(), job.view.grain);
  for (int64_t e = 0; e < piece.elements; ++e) v[e] = clamp(pixel(x[e]) + wide[e], 0.0f, 1.0f);
}

// A piece of line y as it is shown, black where it is border.
FASTUE_INLINE void show_piece(const Showing& job, const Tile& t, const CropFlip& window, int64_t y, int64_t left,
                              float* noise, float* v) {
  const int64_t per = job.per(), width = job.view.width, line = y + window.down;
  // Column q shows pixel (mirrored ? width - 1 - q : q) + right of the line; this piece is q in [left, left + n).
  const int64_t from = (window.mirrored ? width - left - t.pixels : left) + window.right;
  const int64_t first = std::max<int64_t>(from, 0), last = std::min(from + t.pixels, width);
  const bool border = line < 0 || line >= job.view.height || first >= last;
  if (border || last - first < t.pixels) std::fill(v, v + t.elements, 0.0f);
  if (border) return;
  const int64_t at = job.blocks_at(t.row, t.channel, line / job.view.grain), count = job.view.columns() * per;
  if (job.noise.type == Type::s8) {
    const int8_t* stored = static_cast<const int8_t*>(job.noise.data) + at;
    for (int64_t k = 0; k < count; ++k) noise[k] = to_float(stored[k]) * job.scale;
  }
  const float* values = job.noise.type == Type::s8 ? noise : static_cast<const float*>(job.noise.data) + at;
  if (!window.mirrored) return protect(job, t.row, t.channel, line, first, last, values, v + (first - from) * per);
  alignas(64) float seen[kTile];
  protect(job, t.row, t.channel, line, first, last, values, seen);
  for (int64_t p = first; p < last; ++p)
    for (int64_t c = 0; c < per; ++c) v[(t.pixels - 1 - (p - from)) * per + c] = seen[(p - first) * per + c];
}

}  // namespace

FASTUE_CLONES void show(const Showing& job, int64_t i) {
  alignas(64) float v[kTile];
  const CropFlip window = job.view.window(i);
  std::vector<float> noise(job.noise.type == Type::s8 ? job.view.columns() * job.per() : 0);
  const int64_t height = job.view.height, width = job.view.width;
  // Several whole lines at a time, or a part of a line that is too wide for a tile.
  const int64_t wide = std::min(width, job.shape.tile_pixels());
  const int64_t lines = wide < width ? 1 : job.shape.tile_pixels() / width;
  for (int64_t c = 0; c < job.planes(); ++c)
    for (int64_t y = 0; y < height; y += lines)
      for (int64_t left = 0; left < width; left += wide) {
        const int64_t pixels = std::min(wide, width - left), last = std::min(y + lines, height);
        for (int64_t line = y; line < last; ++line) {
          const Tile piece = job.shape.part(i, c, line * width + left, pixels);
          show_piece(job, piece, window, line, left, noise.data(), v + (line - y) * piece.elements);
        }
        const Tile t = job.shape.part(i, c, y * width + left, pixels * (last - y));
        if (job.norm.on) normalise(v, job.norm, job.shape, t);
        store(v, job.out, job.shape, t, job.stream);
      }
  if (job.stream) fence();
}

}  // namespace fastue
