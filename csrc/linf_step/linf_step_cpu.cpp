// linf_step on the CPU: one pass, in place. The definition is fastue/ops/linf_step/reference.py.
#include "../common/stable.h"

#if defined(FASTUE_X86_CLONES)
#include <immintrin.h>
#endif

namespace fastue {
namespace {

struct Job {
  Pictures noise, grad, x, out;  // out.data null: no next input
  Shape shape;
  const int64_t* index;
  float step, eps, scale, inverse;  // step < 0 ascends; inverse = 1/scale
  const bool* mask;        // null: none; [1 or B, 1, H, W]
  bool mask_shared;
  Normalisation norm;
  bool stream;
  bool v4;  // the CPU has AVX-512
};

// What is 0 outside of the mask: one value a pixel.
FASTUE_INLINE void erase(const Job& job, const Tile& t, float* n) {
  const bool* mask = job.mask + (job.mask_shared ? 0 : t.row * job.shape.area) + t.first;
  const int64_t per = t.elements / t.pixels;
  for (int64_t p = 0; p < t.pixels; ++p)
    for (int64_t c = 0; c < per; ++c) n[p * per + c] = mask[p] ? n[p * per + c] : 0.0f;
}

FASTUE_INLINE float stepped(float n, float g, uint8_t x, float step, float eps) {
  const float p = pixel(x);
  return clamp(clamp(n - moved(g, step), -eps, eps), -p, 1.0f - p);
}

template <class G>
FASTUE_INLINE void step_and_project(float* __restrict n, const G* __restrict g, const uint8_t* __restrict x,
                                    int64_t count, float step, float eps) {
  for (int64_t i = 0; i < count; ++i) n[i] = stepped(n[i], to_float(g[i]), x[i], step, eps);
}

// The same from the int8 state to its new whole numbers. __restrict: int8_t may alias anything. One loop reads all that
// comes from memory, so that the arithmetic hides the wait.
template <class G>
FASTUE_INLINE void step_and_round(const int8_t* __restrict stored, float* __restrict whole, const G* __restrict g,
                                  const uint8_t* __restrict x, int64_t count, const Job& job) {
  const float step = job.step, scale = job.scale, inverse = job.inverse;
  const float eps = std::min(job.eps, 127.0f * scale);  // once, instead of a clamp at each element
  for (int64_t i = 0; i < count; ++i) {
    const float n = stepped(static_cast<float>(stored[i]) * scale, to_float(g[i]), x[i], step, eps);
    whole[i] = nearest(n * inverse);
  }
}

FASTUE_INLINE void narrow(int8_t* __restrict stored, const float* __restrict whole, int64_t count) {
  for (int64_t i = 0; i < count; ++i) stored[i] = static_cast<int8_t>(static_cast<int32_t>(whole[i]));
}

FASTUE_INLINE void add(float* __restrict v, const float* __restrict n, const uint8_t* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) v[i] = clamp(pixel(x[i]) + n[i], 0.0f, 1.0f);
}

#if defined(FASTUE_X86_CLONES)

template <class T>
FASTUE_V4 FASTUE_INLINE __m512 sixteen(const T* g, __mmask16 live) {
  if constexpr (sizeof(T) == 4) return live == 0xFFFF ? _mm512_loadu_ps(g) : _mm512_maskz_loadu_ps(live, g);
  const __m256i half = live == 0xFFFF ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(g))
                                      : _mm256_maskz_loadu_epi16(live, g);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

FASTUE_V4 FASTUE_INLINE __m128i bytes(const void* at, __mmask16 live) {
  return live == 0xFFFF ? _mm_loadu_si128(static_cast<const __m128i*>(at)) : _mm_maskz_loadu_epi8(live, at);
}

// step_and_round and narrow by hand, without a mask: GCC 12 spends more on widening and narrowing bytes than on the step,
// and the wait for three thin streams has to be hidden by asking ahead (an address past the end does no harm).
// `next` (or null) receives what was stored as noise.
template <class G>
FASTUE_V4 void step_and_round_v4(int8_t* stored, float* next, const G* g, const uint8_t* x, int64_t count,
                                 const Job& job) {
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f), scale = _mm512_set1_ps(job.scale);
  const __m512 inverse = _mm512_set1_ps(job.inverse), step = _mm512_set1_ps(job.step);
  const __m512 eps = _mm512_set1_ps(std::min(job.eps, 127.0f * job.scale)), low = _mm512_sub_ps(zero, eps);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 live = count - i >= 16 ? 0xFFFF : (1 << (count - i)) - 1;
    __builtin_prefetch(g + i + 512);
    if (i % 64 == 0) {
      __builtin_prefetch(x + i + 768);
      __builtin_prefetch(stored + i + 768);
    }
    const __m512 f = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(x + i, live)));
    const __m512 p = _mm512_add_ps(_mm512_mul_ps(f, _mm512_set1_ps(kPixelHigh)),
                                   _mm512_mul_ps(f, _mm512_set1_ps(kPixelLow)));
    const __m512 s = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(stored + i, live)));
    const __m512 gradient = sixteen(g + i, live);
    __m512 n = _mm512_mul_ps(s, scale);
    n = _mm512_mask_sub_ps(n, _mm512_cmp_ps_mask(gradient, zero, _CMP_GT_OQ), n, step);
    n = _mm512_mask_add_ps(n, _mm512_cmp_ps_mask(gradient, zero, _CMP_LT_OQ), n, step);
    n = _mm512_min_ps(_mm512_max_ps(n, low), eps);
    n = _mm512_min_ps(_mm512_max_ps(n, _mm512_sub_ps(zero, p)), _mm512_sub_ps(one, p));
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(n, inverse));
    const __m128i narrow = _mm512_cvtepi32_epi8(whole);
    if (live == 0xFFFF)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(stored + i), narrow);
    else
      _mm_mask_storeu_epi8(stored + i, live, narrow);
    if (next != nullptr) _mm512_mask_storeu_ps(next + i, live, _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale));
  }
}

#endif

// The new noise of tile t as floats: in the bank, or in `scratch` for the int8 state.
template <class G>
FASTUE_INLINE const float* step_tile(const Job& job, const Tile& t, const G* g, const uint8_t* x, float* scratch) {
  Tile target = t;
  target.row = job.index[t.row];
  const int64_t at = job.shape.offset(target);
  if (job.noise.type == Type::f32) {
    float* n = static_cast<float*>(job.noise.data) + at;
    step_and_project(n, g, x, t.elements, job.step, job.eps);
    if (job.mask != nullptr) erase(job, t, n);
    return n;
  }
  int8_t* stored = static_cast<int8_t*>(job.noise.data) + at;
#if defined(FASTUE_X86_CLONES)
  if (job.mask == nullptr && job.v4) {
    step_and_round_v4(stored, job.out.data != nullptr ? scratch : nullptr, g, x, t.elements, job);
    return scratch;
  }
#endif
  step_and_round(stored, scratch, g, x, t.elements, job);
  if (job.mask != nullptr) erase(job, t, scratch);
  narrow(stored, scratch, t.elements);
  if (job.out.data != nullptr)  // what was stored is what the next input shows
    for (int64_t i = 0; i < t.elements; ++i) scratch[i] *= job.scale;
  return scratch;
}

FASTUE_CLONES void step_tiles(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float grads[kTile], scratch[kTile], next[kTile];
  alignas(64) uint8_t bytes[kTile];
  for (int64_t j = begin; j < end; ++j) {
    const Tile t = job.shape.tile(j / job.shape.tiles(), j % job.shape.tiles());
    const uint8_t* x = load_bytes(job.x, job.shape, t, bytes);
    const float* n;
    if (job.grad.type == Type::bf16 && in_place(job.grad, job.shape))
      n = step_tile(job, t, static_cast<const bf16*>(job.grad.data) + job.shape.offset(t), x, scratch);
    else
      n = step_tile(job, t, load(job.grad, job.shape, t, grads), x, scratch);
    if (job.out.data != nullptr) {
      add(next, n, x, t.elements);
      if (job.norm.on) normalise(next, job.norm, job.shape, t);
      store(next, job.out, job.shape, t, job.stream);
    }
  }
  if (job.stream) fence();
}

void linf_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& index, double step, double eps,
               bool ascend, double scale, const std::optional<Tensor>& mask, const std::optional<Tensor>& out,
               const std::vector<double>& mean, const std::vector<double>& std) {
  Job job{};
  job.x = batch(x, x, "x");
  job.noise = pictures(noise, x, "noise");
  job.grad = batch(grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::u8 && (job.noise.type == Type::f32 || job.noise.type == Type::s8) &&
                      job.grad.type != Type::u8 && job.grad.type != Type::s8,
                  "x must be uint8, noise float32 or int8, grad float32, bfloat16 or float16");
  job.shape = shape_of(x, job.noise);
  job.index = checked_rows(index, x, noise.size(0), "index");
  job.step = static_cast<float>(ascend ? -step : step);
  job.eps = static_cast<float>(eps);
  job.scale = static_cast<float>(scale);
  job.inverse = static_cast<float>(1.0 / scale);
  if (mask.has_value()) {
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && mask->is_contiguous() && mask->dim() == 4 &&
                        (mask->size(0) == 1 || mask->size(0) == x.size(0)) && mask->size(1) == 1 &&
                        mask->size(2) == x.size(2) && mask->size(3) == x.size(3),
                    "mask must be bool [B or 1, 1, H, W], contiguous");
    job.mask = static_cast<const bool*>(mask->const_data_ptr());
    job.mask_shared = mask->size(0) == 1;
  }
  if (out.has_value()) {
    job.out = batch(*out, x, "out");
    STD_TORCH_CHECK(job.out.type != Type::u8 && job.out.type != Type::s8, "out must be float32, bfloat16 or float16");
    job.norm = normalisation(mean, std, x.size(1));
    job.stream = out->numel() * static_cast<int64_t>(job.out.type == Type::f32 ? 4 : 2) >= kStreamBytes;
  }
#if defined(FASTUE_X86_CLONES)
  job.v4 = __builtin_cpu_supports("x86-64-v4");
#endif
  if (x.numel() == 0) return;
  parallel_tiles(x.size(0) * job.shape.tiles(), [&](int64_t begin, int64_t end) { step_tiles(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("linf_step", TORCH_BOX(&fastue::linf_step)); }
