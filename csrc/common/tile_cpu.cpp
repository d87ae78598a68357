// Conversions between tensors and tiles; see tile.h.
#include "tile.h"

#include <type_traits>

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

}  // namespace fastue
