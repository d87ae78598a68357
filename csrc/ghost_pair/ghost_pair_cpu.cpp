// ghost_pair on the CPU. A job is a pair of blocks of places (common/gram.h): their Gram matrices of inputs and of
// errors stay in the L2 cache, the products of the two are summed in double. With the blocks [x | d] of both sides one
// symmetric Gram matrix holds all that is needed, and of each pair of blocks, or of places, only one order is computed.
// The definition is fastue/ops/ghost_pair/reference.py.
#include "../common/gram.h"
#include "checks.h"

namespace fastue {
namespace {

struct Job {
  const float *a, *e, *a2, *e2;
  PairShape shape;
  double* sums;  // [B, pairs of blocks, 3]

  int64_t tiles() const { return tiles_of(shape.places); }
  int64_t pairs() const { return tiles() * (tiles() + 1) / 2; }
  Side inputs(int64_t i) const {
    const int64_t size = shape.inputs * shape.places;
    return {a + i * size, a2 + i * size, shape.inputs, shape.places};
  }
  Side errors(int64_t i) const {
    const int64_t size = shape.outputs * shape.places;
    return {e + i * size, e2 + i * size, shape.outputs, shape.places};
  }
};

// Products of each column of one block with each of another: of a place its x first, then its d.
struct Gram {
  float* at;
  int64_t row;  // floats
};

// For the block with itself the upper triangle alone, and all of d.x.
template <class I>
FASTUE_INLINE void fill(const Gram& gram, const Side& s, const Places& rows, const Places& cols, float* packed) {
  const bool same = rows.first == cols.first;
  const int64_t height = I::padded(2 * rows.count), width = I::padded(2 * cols.count);
  const int64_t run = kPacked / 4 / std::max(height, width);
  float* other = same ? packed : packed + kPacked / 4 + kSlack;
  for (int64_t k = 0; k < s.depth || k == 0; k += run) {
    const int64_t depth = std::min(run, s.depth - k);
    pack<I>(s, rows, k, depth, height, packed);
    if (!same) pack<I>(s, cols, k, depth, width, other);
    for (int64_t j = 0; j < width; j += I::kCols)
      for (int64_t i = 0, end = same ? j + I::kCols : height; i < end; i += I::kRows)
        multiply<I>(packed + i, height, 1, other + j, width, depth, gram.at + i * gram.row + j, gram.row, k > 0);
  }
  if (same)
    for (int64_t t = 0; t < rows.count; ++t)
      for (int64_t u = 0; u < rows.count; ++u)
        gram.at[(rows.count + u) * gram.row + t] = gram.at[t * gram.row + rows.count + u];
}

// n, q and m of two places t and u, in both orders.
FASTUE_INLINE void add_pair(double weight, double xx, double xd, double dx, double dd, double yy, double yg, double gy,
                            double gg, double (&sums)[3]) {
  sums[0] += weight * (2 * (xx * yy));
  sums[1] += weight * ((xd + dx) * yy + (xd * yg + dx * gy) + xx * (yg + gy));
  sums[2] += weight * (2 * ((yy + yg + gy + gg) * dd + ((yg + gg) * dx + (gy + gg) * xd) + gg * xx));
}

template <class I>
FASTUE_INLINE void work(const Job& job, int64_t begin, int64_t end) {
  static thread_local Buffer memory;
  constexpr int64_t kRow = 2 * kPlaces, kGram = (kRow + 16) * kRow;
  float* packed = reinterpret_cast<float*>(memory.get((2 * (kPacked / 4 + kSlack) + 2 * kGram) * 4));
  float* grams = packed + 2 * (kPacked / 4 + kSlack);
  const Gram x{grams, kRow}, y{grams + kGram, kRow};
  for (int64_t j = begin; j < end; ++j) {
    int64_t row = 0, col = j % job.pairs();
    while (col >= job.tiles() - row) col -= job.tiles() - row++;
    const Places rows(row, job.shape.places), cols(row + col, job.shape.places);
    fill<I>(x, job.inputs(j / job.pairs()), rows, cols, packed);
    fill<I>(y, job.errors(j / job.pairs()), rows, cols, packed);
    double sums[3] = {0, 0, 0};
    for (int64_t t = 0; t < rows.count; ++t) {
      const float *x0 = x.at + t * kRow, *x1 = x0 + rows.count * kRow, *y0 = y.at + t * kRow, *y1 = y0 + rows.count * kRow;
      for (int64_t u = col == 0 ? t : 0; u < cols.count; ++u) {
        const int64_t d = cols.count + u;
        add_pair(col == 0 && t == u ? 0.5 : 1.0, x0[u], x0[d], x1[u], x1[d], y0[u], y0[d], y1[u], y1[d], sums);
      }
    }
    for (int c = 0; c < 3; ++c) job.sums[j * 3 + c] = sums[c];
  }
}

// T = 1.
template <class I>
FASTUE_INLINE void work_linear(const Job& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Side inputs = job.inputs(i), errors = job.errors(i);
    const Dots x = dots<I>(inputs.x, inputs.x2, inputs.depth), y = dots<I>(errors.x, errors.x2, errors.depth);
    double sums[3] = {0, 0, 0};
    add_pair(0.5, x.xx, x.xd, x.xd, x.dd, y.xx, y.xd, y.xd, y.dd, sums);
    for (int c = 0; c < 3; ++c) job.sums[i * 3 + c] = sums[c];
  }
}

using Work = void (*)(const Job&, int64_t, int64_t);
void work_baseline(const Job& job, int64_t begin, int64_t end) { work<Baseline>(job, begin, end); }
void linear_baseline(const Job& job, int64_t begin, int64_t end) { work_linear<Baseline>(job, begin, end); }
#if defined(FASTUE_X86_CLONES)
FASTUE_GRAM_V3 void work_v3(const Job& job, int64_t begin, int64_t end) { work<V3>(job, begin, end); }
FASTUE_GRAM_V4 void work_v4(const Job& job, int64_t begin, int64_t end) { work<V4>(job, begin, end); }
FASTUE_GRAM_V3 void linear_v3(const Job& job, int64_t begin, int64_t end) { work_linear<V3>(job, begin, end); }
FASTUE_GRAM_V4 void linear_v4(const Job& job, int64_t begin, int64_t end) { work_linear<V4>(job, begin, end); }
#else
constexpr Work work_v3 = work_baseline, work_v4 = work_baseline;
constexpr Work linear_v3 = linear_baseline, linear_v4 = linear_baseline;
#endif

Tensor ghost_pair(const Tensor& a, const Tensor& e, const Tensor& a2, const Tensor& e2) {
  Job job{};
  job.shape = check_pair(a, e, a2, e2);
  job.a = a.const_data_ptr<float>(), job.e = e.const_data_ptr<float>();
  job.a2 = a2.const_data_ptr<float>(), job.e2 = e2.const_data_ptr<float>();
  const Tensor out = torch::stable::new_empty(a, {job.shape.batch, 3}, ScalarType::Double);
  double* results = out.mutable_data_ptr<double>();
  std::vector<double> sums(job.shape.places > 1 ? job.shape.batch * job.pairs() * 3 : 0);
  job.sums = job.shape.places == 1 ? results : sums.data();
  static const Work by_pairs = fastest<Work>(work_baseline, work_v3, work_v4);
  static const Work by_rows = fastest<Work>(linear_baseline, linear_v3, linear_v4);
  const Work work = job.shape.places == 1 ? by_rows : by_pairs;
  const int64_t jobs = job.shape.batch * job.pairs(), each = job.shape.inputs + job.shape.outputs;
  const int64_t places = std::min(kPlaces, job.shape.places);
  if (jobs > 0)
    torch::stable::parallel_for(0, jobs, (int64_t{1} << 17) / (each * places * places + 1) + 1,
                                [&](int64_t begin, int64_t end) { work(job, begin, end); });
  for (int64_t i = 0; job.shape.places != 1 && i < job.shape.batch; ++i)
    for (int c = 0; c < 3; ++c) {
      results[i * 3 + c] = 0;
      for (int64_t j = i * job.pairs(); j < (i + 1) * job.pairs(); ++j) results[i * 3 + c] += sums[j * 3 + c];
    }
  return out;
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("ghost_pair", TORCH_BOX(&fastue::ghost_pair)); }
