// grad_cosine on the CPU: the lists are cut into pieces, a piece is summed by one thread in 16 lanes, and the sums of the
// pieces are added in their order, whoever made them. The definition is fastue/ops/grad_cosine/reference.py.
#include "../common/cosine.h"
#include "../common/lists.h"

namespace fastue {
namespace {

constexpr int64_t kPiece = int64_t{1} << 14;  // elements
constexpr int kLanes = 16;

struct Piece {
  const void *g, *h;
  int64_t first, size;
};

template <class T>
FASTUE_INLINE Triple sum_as(const Piece& piece) {
  const T* g = static_cast<const T*>(piece.g) + piece.first;
  const T* h = static_cast<const T*>(piece.h) + piece.first;
  double n[kLanes] = {}, q[kLanes] = {}, m[kLanes] = {};
  const auto add = [&](int lane, int64_t i) {
    Triple sums{n[lane], q[lane], m[lane]};
    sums.add(to_float(g[i]), to_float(h[i]));
    n[lane] = sums.n, q[lane] = sums.q, m[lane] = sums.m;
  };
  int64_t i = 0;
  for (; i + kLanes <= piece.size; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) add(lane, i + lane);
  for (int lane = 0; i < piece.size; ++i, ++lane) add(lane, i);
  Triple sums{0, 0, 0};
  for (int lane = 0; lane < kLanes; ++lane) sums.add({n[lane], q[lane], m[lane]});
  return sums;
}

FASTUE_CLONES void sum_pieces(Type type, const Piece* pieces, int64_t begin, int64_t end, Triple* sums) {
  for (int64_t p = begin; p < end; ++p)
    as_float(type, [&](auto t) { sums[p] = sum_as<decltype(t)>(pieces[p]); });
}

Tensor grad_cosine(const std::vector<Tensor>& g, const std::vector<Tensor>& h) {
  STD_TORCH_CHECK(!g.empty(), "g is an empty list");
  const Lists lists(g, h, {});
  std::vector<Piece> pieces;
  for (const Pair& pair : lists.pairs)
    for (int64_t first = 0; first < pair.size; first += kPiece)
      pieces.push_back({pair.g, pair.h, first, std::min(kPiece, pair.size - first)});
  std::vector<Triple> sums(pieces.size());
  torch::stable::parallel_for(0, static_cast<int64_t>(pieces.size()), 2, [&](int64_t begin, int64_t end) {
    sum_pieces(lists.type, pieces.data(), begin, end, sums.data());
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
