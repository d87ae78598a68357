// diffusion_step on the CPU: one pass, in place, tile by tile, in the layout of x. A value depends on its picture's id and
// its place alone, so neither on threads nor on tiles. The definition is fastue/ops/diffusion_step/reference.py.
#include <cmath>
#include <type_traits>

#include "../common/philox_v3.h"
#include "checks.h"

namespace fastue {
namespace {

constexpr int64_t kQuads = kTile / 4;

// Words of `count` counters from `first` on; word i of counter k at kQuads i + k.
using MakeWords = void (*)(const Words& first, int64_t count, uint64_t seed, uint32_t* words);

FASTUE_CLONES void make_words(const Words& first, int64_t count, uint64_t seed, uint32_t* __restrict words) {
  const Words c = first;
  for (int64_t k = 0; k < count; ++k) {
    const Words w = philox({{c.v[0] + static_cast<uint32_t>(k), c.v[1], c.v[2], c.v[3]}}, seed);
    for (int i = 0; i < 4; ++i) words[kQuads * i + k] = w.v[i];
  }
}

#if defined(FASTUE_X86_CLONES)
// The same with AVX2, sixteen counters at a time: even ones and odd ones apart.
static_assert(kQuads % 16 == 0);  // there is room for whole sixteens

FASTUE_V3 void make_words_v3(const Words& first, int64_t count, uint64_t seed, uint32_t* words) {
  const __m256i even = _mm256_set_epi64x(6, 4, 2, 0), odd = _mm256_set_epi64x(7, 5, 3, 1);
  for (int64_t k = 0; k < count; k += 16) {
    __m256i c[4][4];
    for (int h = 0; h < 4; ++h) {
      for (int i = 0; i < 4; ++i) c[i][h] = _mm256_set1_epi64x(first.v[i]);
      c[0][h] = _mm256_add_epi64(_mm256_set1_epi64x(first.v[0] + k + h / 2 * 8), h % 2 ? odd : even);
    }
    philox_v3(c, seed);
    for (int h = 0; h < 4; h += 2)
      for (int i = 0; i < 4; ++i)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + kQuads * i + k + 4 * h), joined_v3(c[i][h], c[i][h + 1]));
  }
}
#endif

FASTUE_CLONES void make_normals(const uint32_t* __restrict words, int64_t count, float* __restrict z) {
  for (int64_t k = 0; k < count; ++k) {
    const Normals n = normals({{words[k], words[kQuads + k], words[2 * kQuads + k], words[3 * kQuads + k]}});
    for (int i = 0; i < 4; ++i) z[4 * k + i] = n.v[i];
  }
}

struct Job : DiffusionStep {
  Shape shape;  // the working layout is that of x
  MakeWords make_words;
};

FASTUE_CLONES void interleave(const float* __restrict planes, int64_t pixels, float* __restrict z) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int c = 0; c < 3; ++c) z[3 * p + c] = planes[kTile / 3 * c + p];
}

// Normal numbers for tile t. A tile starts at a whole quad: tiles have a multiple of four pixels.
static_assert(kTile % 12 == 0);

void draw(const Job& job, const Tile& t, uint32_t use, float* z) {
  alignas(64) uint32_t words[kTile];
  alignas(64) float planes[kTile];
  const bool mixed = job.shape.interleaved;
  const int64_t channels = mixed ? 3 : 1, count = (t.pixels + 3) / 4;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t quad = (t.channel + c) * job.quads() + t.first / 4;
    job.make_words(picture_counter(static_cast<uint32_t>(quad), job.ids[t.row], use), count, job.seed, words);
    make_normals(words, count, mixed ? planes + kTile / 3 * c : z);
  }
  if (mixed) interleave(planes, t.pixels, z);
}

struct Scratch {
  alignas(64) float eps[kTile], grad[kTile], own[kTile], copy[kTile];
  alignas(64) uint8_t y[kTile];
};

enum class Guide { none, of_x0, of_x };

// One loop for all that a step has: x is read and written once. E is void where there is no eps; what `guide` does not
// ask for, and z where it is not DRAWN, is not looked at.
template <class E, Guide GUIDE, bool DRAWN>
FASTUE_INLINE void step_values(const DiffusionStep& job, float* __restrict x, const E* __restrict eps,
                               const uint8_t* __restrict y, const float* __restrict copy, const float* __restrict z,
                               int64_t count) {
  const float a = job.a, b = job.b, keep = job.keep, spread = job.spread, c0 = job.c0, cx = job.cx, pull = job.pull,
              sigma = job.sigma;
  for (int64_t i = 0; i < count; ++i) {
    float v = cx * x[i];
    if constexpr (!std::is_void_v<E>) {
      float x0 = clamp(a * x[i] - b * to_float(eps[i]), -1.0f, 1.0f);
      if (GUIDE == Guide::of_x0) x0 = x0 + pull * (aim(y[i]) - x0);
      v = c0 * x0 + v;
    }
    if (GUIDE == Guide::of_x) v = v + pull * ((keep * aim(y[i]) + spread * copy[i]) - x[i]);
    if (DRAWN) v = v + sigma * z[i];
    x[i] = v;
  }
}

template <class E>
FASTUE_INLINE void step_values(const DiffusionStep& job, float* x, const E* eps, const uint8_t* y, const Scratch& s,
                               int64_t count) {
  const auto run = [&](auto guide) {
    if (job.sigma > 0.0f) return step_values<E, guide.value, true>(job, x, eps, y, s.copy, s.own, count);
    step_values<E, guide.value, false>(job, x, eps, y, s.copy, s.own, count);
  };
  if (job.noisy) return run(std::integral_constant<Guide, Guide::of_x>{});
  if (y != nullptr) return run(std::integral_constant<Guide, Guide::of_x0>{});
  run(std::integral_constant<Guide, Guide::none>{});
}

FASTUE_CLONES void step_tile(const Job& job, const Tile& t, Scratch& s) {
  float* x = static_cast<float*>(job.x.data) + job.shape.offset(t);
  const uint8_t* y = job.y.data != nullptr ? load_bytes(job.y, job.shape, t, s.y) : nullptr;
  if (job.eps.data == nullptr)
    step_values<void>(job, x, nullptr, y, s, t.elements);
  else if (job.eps.type == Type::bf16 && in_place(job.eps, job.shape))
    step_values(job, x, static_cast<const bf16*>(job.eps.data) + job.shape.offset(t), y, s, t.elements);
  else
    step_values(job, x, load(job.eps, job.shape, t, s.eps), y, s, t.elements);
  if (job.grad.data == nullptr) return;
  const float push = job.push;
  const float* __restrict grad = load(job.grad, job.shape, t, s.grad);
  for (int64_t i = 0; i < t.elements; ++i) x[i] = x[i] + push * grad[i];
}

void step_tiles(const Job& job, int64_t begin, int64_t end) {
  Scratch s;
  for (int64_t j = begin; j < end; ++j) {
    const Tile t = job.shape.tile(j / job.shape.tiles(), j % job.shape.tiles());
    if (job.noisy) draw(job, t, job.copy, s.copy);
    if (job.sigma > 0.0f) draw(job, t, job.own, s.own);
    step_tile(job, t, s);
  }
}

void diffusion_step(const Tensor& x, const std::optional<Tensor>& eps, const std::optional<Tensor>& y,
                    const std::optional<Tensor>& grad, const Tensor& ids, double alpha_bar, double c0, double cx,
                    double pull, bool noisy, double push, double sigma, int64_t seed, int64_t iteration, int64_t t) {
  Job job{};
  static_cast<DiffusionStep&>(job) = diffusion_step_of(x, eps, y, grad, ids, alpha_bar, c0, cx, pull, noisy, push, sigma,
                                                       seed, iteration, t);
  job.shape = shape_of(x, job.x);
  job.make_words = make_words;
#if defined(FASTUE_X86_CLONES)
  if (__builtin_cpu_supports("x86-64-v3")) job.make_words = make_words_v3;
#endif
  parallel_tiles(x.size(0) * job.shape.tiles(), [&](int64_t begin, int64_t end) { step_tiles(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("diffusion_step", TORCH_BOX(&fastue::diffusion_step)); }
