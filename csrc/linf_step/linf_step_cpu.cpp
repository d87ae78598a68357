// linf_step on the CPU: one pass, in place. The definition is fastue/ops/linf_step/reference.py.
#include "../common/stable.h"

#include <cmath>

#if defined(FASTUE_X86_CLONES)
#include <immintrin.h>
#endif

namespace fastue {
namespace {

struct Job : Showing {  // out.data null: no next input
  Pictures grad;
  float step, eps, inverse;  // step < 0 ascends; inverse = 1/scale
  const bool* mask;          // null: none; [1 or B, 1, h, w], of the bank's size
  bool mask_shared;
  bool bytes;              // the int8 state is stepped in whole numbers, with AVX-512:
  int8_t whole_step;
  int8_t down[32], up[32];  // how far noise may go down on a pixel of value i, and up on one of 255 - i; eps at most
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

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12: its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// Which of 64 gradients are above and below zero. A NaN is neither.
struct Signs {
  __mmask64 above, below;
};

FASTUE_V4 FASTUE_INLINE Signs signs(const float* g, __mmask64 live) {
  Signs found{0, 0};
  for (int k = 0; k < 4; ++k) {
    const __m512 v = _mm512_maskz_loadu_ps(static_cast<__mmask16>(live >> 16 * k), g + 16 * k);
    found.above |= static_cast<__mmask64>(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ)) << 16 * k;
    found.below |= static_cast<__mmask64>(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ)) << 16 * k;
  }
  return found;
}

FASTUE_V4 FASTUE_INLINE Signs signs(const bf16* g, __mmask64 live) {  // +-0 to +-infinity, read as int16
  Signs found{0, 0};
  for (int k = 0; k < 2; ++k) {
    const __m512i v = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(live >> 32 * k), g + 32 * k);
    const __mmask32 above = _mm512_cmpgt_epi16_mask(v, _mm512_setzero_si512());
    const __mmask32 below = _mm512_cmpgt_epi16_mask(v, _mm512_set1_epi16(-32768));
    found.above |= static_cast<__mmask64>(_mm512_mask_cmple_epi16_mask(above, v, _mm512_set1_epi16(0x7F80))) << 32 * k;
    found.below |= static_cast<__mmask64>(_mm512_mask_cmple_epi16_mask(below, v, _mm512_set1_epi16(-128))) << 32 * k;
  }
  return found;
}

// table[min(i, 31)], the table as two registers of 16 values each.
FASTUE_V4 FASTUE_INLINE __m512i looked_up(const int8_t* table, __m512i i) {
  const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  const __m512i second = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16)));
  i = _mm512_min_epu8(i, _mm512_set1_epi8(31));
  const __mmask64 high = _mm512_test_epi8_mask(i, _mm512_set1_epi8(16));
  return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(first, i), high, second, i);
}

// step_and_round and narrow, 64 at a time in whole numbers: see whole_numbers.
template <class G>
FASTUE_V4 void step_bytes(int8_t* stored, const G* g, const uint8_t* x, int64_t count, const Job& job) {
  const __m512i step = _mm512_set1_epi8(job.whole_step), zero = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 live = count - i >= 64 ? ~0ull : (1ull << (count - i)) - 1;
    for (int64_t ahead = 0; ahead < 64 * static_cast<int64_t>(sizeof(G)); ahead += 64)  // past the end does no harm
      __builtin_prefetch(reinterpret_cast<const char*>(g + i) + 2048 + ahead);
    __builtin_prefetch(x + i + 768);
    __builtin_prefetch(stored + i + 768, 1);
    const Signs sign = signs(g + i, live);
    const __m512i pixels = _mm512_maskz_loadu_epi8(live, x + i);
    __m512i n = _mm512_maskz_loadu_epi8(live, stored + i);
    n = _mm512_mask_subs_epi8(n, sign.above, n, step);
    n = _mm512_mask_adds_epi8(n, sign.below, n, step);
    n = _mm512_max_epi8(n, _mm512_sub_epi8(zero, looked_up(job.down, pixels)));
    n = _mm512_min_epi8(n, looked_up(job.up, _mm512_xor_si512(pixels, _mm512_set1_epi8(-1))));
    _mm512_mask_storeu_epi8(stored + i, live, n);
  }
}

#pragma GCC diagnostic pop
#endif

// Whether step_bytes gives what step_and_round gives, bit for bit. Rounding is monotone, so it may be done to each bound
// before it is applied; it may be done to the step where that holds for every stored value, which is tried.
bool whole_numbers(Job& job) {
#if defined(FASTUE_X86_CLONES)
  const float eps = std::min(job.eps, 127.0f * job.scale), step = nearest(job.step * job.inverse);
  if (!__builtin_cpu_supports("x86-64-v4") || !(std::fabs(step) <= 127.0f)) return false;
  const float most = nearest(eps * job.inverse);
  for (int s = -128; s < 128; ++s)
    for (float g : {-1.0f, 0.0f, 1.0f}) {
      const float n = clamp(static_cast<float>(s) * job.scale - moved(g, job.step), -eps, eps);
      if (nearest(n * job.inverse) != clamp(static_cast<float>(s) - g * step, -most, most)) return false;
    }
  job.whole_step = static_cast<int8_t>(step);
  for (int i = 0; i < 32; ++i) {
    const float dark = pixel(static_cast<uint8_t>(i)), bright = 1.0f - pixel(static_cast<uint8_t>(255 - i));
    job.down[i] = static_cast<int8_t>(std::min(most, nearest(dark * job.inverse)));
    job.up[i] = static_cast<int8_t>(std::min(most, nearest(bright * job.inverse)));
  }
  return job.down[31] == most && job.up[31] == most;  // further inside there is room for all
#else
  return false;
#endif
}

// Steps tile t of the bank. With `next`, that tile of the next input as well, not yet normalised.
template <class G>
FASTUE_INLINE void step_tile(const Job& job, const Tile& t, const G* g, const uint8_t* x, float* next) {
  Tile target = t;
  target.row = job.index[t.row];
  const int64_t at = job.shape.offset(target);
  if (job.noise.type == Type::f32) {
    float* n = static_cast<float*>(job.noise.data) + at;
    step_and_project(n, g, x, t.elements, job.step, job.eps);
    if (job.mask != nullptr) erase(job, t, n);
    if (next != nullptr) add(next, n, x, t.elements);
    return;
  }
  int8_t* stored = static_cast<int8_t*>(job.noise.data) + at;
#if defined(FASTUE_X86_CLONES)
  if (job.bytes) {
    step_bytes(stored, g, x, t.elements, job);
    if (next != nullptr) add_bytes(next, stored, job.scale, x, t.elements);
    return;
  }
#endif
  alignas(64) float whole[kTile];
  step_and_round(stored, whole, g, x, t.elements, job);
  if (job.mask != nullptr) erase(job, t, whole);
  narrow(stored, whole, t.elements);
  if (next != nullptr) add_bytes(next, stored, job.scale, x, t.elements);  // what was stored is what it shows
}

FASTUE_CLONES void step_tiles(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float grads[kTile], next[kTile];
  alignas(64) uint8_t bytes[kTile];
  float* wanted = job.out.data != nullptr ? next : nullptr;
  for (int64_t j = begin; j < end; ++j) {
    const Tile t = job.shape.tile(j / job.shape.tiles(), j % job.shape.tiles());
    const uint8_t* x = load_bytes(job.x, job.shape, t, bytes);
    if (job.grad.type == Type::bf16 && in_place(job.grad, job.shape))
      step_tile(job, t, static_cast<const bf16*>(job.grad.data) + job.shape.offset(t), x, wanted);
    else
      step_tile(job, t, load(job.grad, job.shape, t, grads), x, wanted);
    if (job.out.data != nullptr) {
      if (job.norm.on) normalise(next, job.norm, job.shape, t);
      store(next, job.out, job.shape, t, job.stream);
    }
  }
  if (job.stream) fence();
}

FASTUE_INLINE void bound(uint8_t* __restrict low, uint8_t* __restrict high, const uint8_t* __restrict x, int64_t count) {
  for (int64_t e = 0; e < count; ++e) {
    low[e] = std::min(low[e], x[e]);
    high[e] = std::max(high[e], x[e]);
  }
}

// Any view: a line of a picture's blocks at a time.
template <class N>
FASTUE_INLINE void step_lines(const Job& job, int64_t i, std::vector<float>& sum, std::vector<uint8_t>& low,
                              std::vector<uint8_t>& high) {
  alignas(64) float grads[kTile];
  alignas(64) uint8_t bytes[kTile];
  const View& view = job.view;
  const int64_t grain = view.grain, per = job.per(), lines = view.blocks() / view.columns();
  const CropFlip window = view.window(i);
  for (int64_t c = 0; c < job.planes(); ++c)
    for (int64_t r = 0; r < lines; ++r) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      std::fill(low.begin(), low.end(), uint8_t{255});
      std::fill(high.begin(), high.end(), uint8_t{0});
      for (int64_t y = r * grain; y < std::min<int64_t>((r + 1) * grain, view.height); ++y)
        each_part(job.shape, view, i, c, y, [&](const Tile& t, int64_t first, int64_t last) {
          add_to_blocks(sum.data(), load_back(job.grad, job.shape, view, window, t, y, grads), first, last, per, grain);
          bound(low.data() + first * per, high.data() + first * per, load_bytes(job.x, job.shape, t, bytes), t.elements);
        });
      bound_blocks(low.data(), high.data(), view.width, per, grain);
      N* noise = static_cast<N*>(job.noise.data) + job.blocks_at(i, c, r);
      const bool* mask = job.mask == nullptr ? nullptr : job.mask + (job.mask_shared ? 0 : i * view.blocks()) + r * view.columns();
      for (int64_t k = 0; k < static_cast<int64_t>(sum.size()); ++k) {
        float n = to_float(noise[k]) * job.scale;  // 1 for float32
        n = clamp(n - moved(sum[k], job.step), -job.eps, job.eps);
        // As far as the pixel with the most room allows; the others are clamped where they are shown.
        n = clamp(n, -pixel(high[k]), 1.0f - pixel(low[k]));
        if (mask != nullptr && !mask[k / per]) n = 0.0f;
        if constexpr (std::is_same_v<N, int8_t>) {
          noise[k] = static_cast<int8_t>(static_cast<int32_t>(nearest(clamp(n * job.inverse, -127.0f, 127.0f))));
        } else {
          noise[k] = n;
        }
      }
    }
  if (job.out.data != nullptr) show(job, i);
}

FASTUE_CLONES void step_viewed(const Job& job, int64_t begin, int64_t end) {
  std::vector<float> sum(job.view.columns() * job.per());
  std::vector<uint8_t> low(job.view.width * job.per()), high(low.size());
  for (int64_t i = begin; i < end; ++i)
    as_bank(job.noise.type, [&](auto noise) { step_lines<decltype(noise)>(job, i, sum, low, high); });
}

void linf_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& index, double step, double eps,
               bool ascend, double scale, const std::optional<Tensor>& mask, const std::optional<Tensor>& out,
               const std::vector<double>& mean, const std::vector<double>& std, const std::optional<Tensor>& ids,
               int64_t seed, int64_t epoch, int64_t pad, bool flip, int64_t grain) {
  Job job{};
  job.x = batch(x, x, "x");
  job.view = view_of(x, ids, seed, epoch, pad, flip, grain);
  job.noise = bank(noise, x, job.view);
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
                        mask->size(2) == noise.size(2) && mask->size(3) == noise.size(3),
                    "mask must be bool [B or 1, 1, h, w], contiguous, of the bank's size");
    job.mask = static_cast<const bool*>(mask->const_data_ptr());
    job.mask_shared = mask->size(0) == 1;
  }
  if (out.has_value()) {
    job.out = batch(*out, x, "out");
    STD_TORCH_CHECK(job.out.type != Type::u8 && job.out.type != Type::s8, "out must be float32, bfloat16 or float16");
    job.norm = normalisation(mean, std, x.size(1));
    job.stream = out->numel() * static_cast<int64_t>(job.out.type == Type::f32 ? 4 : 2) >= kStreamBytes;
  }
  job.bytes = job.noise.type == Type::s8 && job.mask == nullptr && whole_numbers(job);
  if (x.numel() == 0) return;
  if (!job.view.plain()) {
    torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) { step_viewed(job, begin, end); });
    return;
  }
  parallel_tiles(x.size(0) * job.shape.tiles(), [&](int64_t begin, int64_t end) { step_tiles(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("linf_step", TORCH_BOX(&fastue::linf_step)); }
