// grad_cosine_backward on the CPU: one pass, tile by tile. The definition is
// fastue/ops/grad_cosine_backward/reference.py.
#include "../common/cosine.h"
#include "../common/lists.h"
#include "../common/philox_v3.h"

namespace fastue {
namespace {

struct Job {
  std::vector<Pair> pairs;
  std::vector<int64_t> tiles;  // before each pair, and all of them
  Type type;
  Weights weights;
  void (*weigh)(const Weights& weights, const float* g, const float* h, int64_t size, float* v);
};

FASTUE_CLONES void weigh(const Weights& weights, const float* g, const float* h, int64_t size, float* __restrict v) {
  for (int64_t i = 0; i < size; ++i) v[i] = weights.of(g[i], h[i]);
}

#if defined(FASTUE_X86_CLONES)
// The same with AVX2: of the two widths GCC 12 makes half the speed. Nothing is fused, as the definition has it.
FASTUE_V3 void weigh_v3(const Weights& weights, const float* g, const float* h, int64_t size, float* __restrict v) {
  const __m256d alpha = _mm256_set1_pd(weights.alpha), beta = _mm256_set1_pd(weights.beta);
  int64_t i = 0;
  for (; i + 4 <= size; i += 4) {
    const __m128 a = _mm_loadu_ps(g + i), d = _mm_sub_ps(_mm_loadu_ps(h + i), a);
    const __m256d target = _mm256_mul_pd(alpha, _mm256_cvtps_pd(a));
    _mm_storeu_ps(v + i, _mm256_cvtpd_ps(_mm256_add_pd(target, _mm256_mul_pd(beta, _mm256_cvtps_pd(d)))));
  }
  for (; i < size; ++i) v[i] = weights.of(g[i], h[i]);
}
#endif

// Not past the cache: v is read next.
void write_tiles(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float targets[kTile], sources[kTile], v[kTile];
  size_t p = std::upper_bound(job.tiles.begin(), job.tiles.end(), begin) - job.tiles.begin() - 1;
  for (int64_t j = begin; j < end; ++j) {
    while (j >= job.tiles[p + 1]) ++p;
    const Pair& pair = job.pairs[p];
    const Shape shape{1, pair.size, false};
    const Tile t = shape.tile(0, j - job.tiles[p]);
    const float* g = load({const_cast<void*>(pair.g), job.type, false}, shape, t, targets);
    const float* h = load({const_cast<void*>(pair.h), job.type, false}, shape, t, sources);
    const bool direct = job.type == Type::f32;
    job.weigh(job.weights, g, h, t.elements, direct ? static_cast<float*>(pair.out) + t.first : v);
    if (!direct) store(v, {pair.out, job.type, false}, shape, t, false);
  }
}

void grad_cosine_backward(const std::vector<Tensor>& g, const std::vector<Tensor>& h, const Tensor& grad,
                          const std::vector<Tensor>& out, bool targets) {
  STD_TORCH_CHECK(out.size() == g.size(), g.size(), " tensors in g, ", out.size(), " in out");
  Lists lists(g, h, out);
  Job job{std::move(lists.pairs), {0}, lists.type, Weights(checked_grad(grad), targets), weigh};
#if defined(FASTUE_X86_CLONES)
  if (__builtin_cpu_supports("x86-64-v3")) job.weigh = weigh_v3;
#endif
  for (const Pair& pair : job.pairs) job.tiles.push_back(job.tiles.back() + Shape{1, pair.size, false}.tiles());
  parallel_tiles(job.tiles.back(), [&](int64_t begin, int64_t end) { write_tiles(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) {
  m.impl("grad_cosine_backward", TORCH_BOX(&fastue::grad_cosine_backward));
}
