// grad_cosine_backward on the CPU: tile by tile, from the last to the first, since what grad_cosine read last may still
// be in the cache. The definition is fastue/ops/grad_cosine_backward/reference.py.
#include "../common/cosine.h"
#include "../common/lists.h"

namespace fastue {
namespace {

struct Job {
  std::vector<Pair> pairs;
  std::vector<int64_t> tiles;  // before each pair, and all of them
  Type type;
  Weights weights;
  bool stream;
};

template <class T>
FASTUE_INLINE void weigh_as(const Weights& weights, const T* g, const T* h, int64_t size, float* __restrict v) {
  for (int64_t i = 0; i < size; ++i) v[i] = weights.of(to_float(g[i]), to_float(h[i]));
}

FASTUE_CLONES void weigh(Type type, const Weights& weights, const Pair& pair, int64_t first, int64_t size, float* v) {
  as_float(type, [&](auto t) {
    using T = decltype(t);
    weigh_as(weights, static_cast<const T*>(pair.g) + first, static_cast<const T*>(pair.h) + first, size, v);
  });
}

void write_tiles(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float v[kTile];
  const int64_t last = job.tiles.back() - 1;
  size_t p = std::upper_bound(job.tiles.begin(), job.tiles.end(), last - begin) - job.tiles.begin() - 1;
  for (int64_t j = begin; j < end; ++j) {
    while (last - j < job.tiles[p]) --p;
    const Pair& pair = job.pairs[p];
    const Shape shape{1, pair.size, false};
    const Tile t = shape.tile(0, last - j - job.tiles[p]);
    weigh(job.type, job.weights, pair, t.first, t.elements, v);
    store(v, {pair.out, job.type, false}, shape, t, job.stream);
  }
  if (job.stream) fence();
}

void grad_cosine_backward(const std::vector<Tensor>& g, const std::vector<Tensor>& h, const Tensor& grad,
                          const std::vector<Tensor>& out, bool targets) {
  STD_TORCH_CHECK(out.size() == g.size(), g.size(), " tensors in g, ", out.size(), " in out");
  Lists lists(g, h, out);
  Job job{std::move(lists.pairs), {0}, lists.type, Weights(checked_grad(grad), targets), false};
  int64_t elements = 0;
  for (const Pair& pair : job.pairs) {
    job.tiles.push_back(job.tiles.back() + Shape{1, pair.size, false}.tiles());
    elements += pair.size;
  }
  job.stream = elements * (job.type == Type::f32 ? 4 : 2) >= kStreamBytes;
  parallel_tiles(job.tiles.back(), [&](int64_t begin, int64_t end) { write_tiles(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) {
  m.impl("grad_cosine_backward", TORCH_BOX(&fastue::grad_cosine_backward));
}
