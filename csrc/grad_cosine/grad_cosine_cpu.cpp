// grad_cosine on the CPU: the lists are cut into pieces, a piece is summed by one thread in 16 lanes, and the sums of the
// pieces are added in their order, whoever made them. The definition is fastue/ops/grad_cosine/reference.py.
#include "../common/cosine.h"
#include "../common/lists.h"
#include "../common/philox_v3.h"

namespace fastue {
namespace {

constexpr int64_t kPiece = 8 * kTile;  // elements
constexpr int kLanes = 16;

struct Piece {
  Pictures g, h;
  Shape shape;  // one channel of so many pixels
  int64_t first, size;
};

// Lane i has the elements i, i + 16, ...
struct Lanes {
  double n[kLanes], q[kLanes], m[kLanes];
};

// `size` is a multiple of kLanes.
FASTUE_CLONES void add_lanes(const float* g, const float* h, int64_t size, Lanes& lanes) {
  for (int64_t i = 0; i < size; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const double target = g[i + lane], difference = h[i + lane] - g[i + lane];
      lanes.n[lane] += target * target;
      lanes.q[lane] += target * difference;
      lanes.m[lane] += difference * difference;
    }
}

#if defined(FASTUE_X86_CLONES)
// The same with AVX2, the sums in registers: of the two widths GCC 12 makes half the speed. A product of two float32
// numbers is exact, so that to fuse it with the addition changes nothing.
FASTUE_V3 void add_lanes_v3(const float* g, const float* h, int64_t size, Lanes& lanes) {
  __m256d n[4], q[4], m[4];
  for (int k = 0; k < 4; ++k) {
    n[k] = _mm256_loadu_pd(lanes.n + 4 * k);
    q[k] = _mm256_loadu_pd(lanes.q + 4 * k);
    m[k] = _mm256_loadu_pd(lanes.m + 4 * k);
  }
  for (int64_t i = 0; i < size; i += kLanes)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m128 a = _mm_loadu_ps(g + i + 4 * k), d = _mm_sub_ps(_mm_loadu_ps(h + i + 4 * k), a);
      const __m256d target = _mm256_cvtps_pd(a), difference = _mm256_cvtps_pd(d);
      n[k] = _mm256_fmadd_pd(target, target, n[k]);
      q[k] = _mm256_fmadd_pd(target, difference, q[k]);
      m[k] = _mm256_fmadd_pd(difference, difference, m[k]);
    }
  for (int k = 0; k < 4; ++k) {
    _mm256_storeu_pd(lanes.n + 4 * k, n[k]);
    _mm256_storeu_pd(lanes.q + 4 * k, q[k]);
    _mm256_storeu_pd(lanes.m + 4 * k, m[k]);
  }
}
#endif

Triple sum_of(const Piece& piece, void (*add)(const float*, const float*, int64_t, Lanes&)) {
  alignas(64) float targets[kTile], sources[kTile];
  Lanes lanes{};
  Triple sums{0, 0, 0};
  for (int64_t first = 0; first < piece.size; first += kTile) {
    const Tile t = piece.shape.part(0, 0, piece.first + first, std::min<int64_t>(kTile, piece.size - first));
    const float* g = load(piece.g, piece.shape, t, targets);
    const float* h = load(piece.h, piece.shape, t, sources);
    const int64_t whole = t.elements / kLanes * kLanes;
    add(g, h, whole, lanes);
    for (int64_t i = whole; i < t.elements; ++i) sums.add(g[i], h[i]);
  }
  for (int i = 0; i < kLanes; ++i) sums.add(Triple{lanes.n[i], lanes.q[i], lanes.m[i]});
  return sums;
}

Tensor grad_cosine(const std::vector<Tensor>& g, const std::vector<Tensor>& h) {
  STD_TORCH_CHECK(!g.empty(), "g is an empty list");
  const Lists lists(g, h, {});
  std::vector<Piece> pieces;
  for (const Pair& pair : lists.pairs) {
    const Pictures target{const_cast<void*>(pair.g), lists.type, false};
    const Pictures source{const_cast<void*>(pair.h), lists.type, false};
    for (int64_t first = 0; first < pair.size; first += kPiece)
      pieces.push_back({target, source, {1, pair.size, false}, first, std::min(kPiece, pair.size - first)});
  }
  auto* add = add_lanes;
#if defined(FASTUE_X86_CLONES)
  if (__builtin_cpu_supports("x86-64-v3")) add = add_lanes_v3;
#endif
  std::vector<Triple> sums(pieces.size());
  torch::stable::parallel_for(0, static_cast<int64_t>(pieces.size()), 2, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) sums[p] = sum_of(pieces[p], add);
  });
  Triple total{0, 0, 0};
  for (const Triple& part : sums) total.add(part);
  const Tensor result = torch::stable::new_empty(g[0], {3}, ScalarType::Double);
  double* to = result.mutable_data_ptr<double>();
  to[0] = total.n, to[1] = total.q, to[2] = total.m;
  return result;
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("grad_cosine", TORCH_BOX(&fastue::grad_cosine)); }
