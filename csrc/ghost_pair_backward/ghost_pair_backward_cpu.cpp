// ghost_pair_backward on the CPU. A job is a block of places t of one sample (common/gram.h). For each block of places
// u the Gram matrices of [x | d] at u and x2 at t are made, scaled, and multiplied by [x | d] of the other side; then
// they are forgotten. The definition is fastue/ops/ghost_pair_backward/reference.py.
#include "../common/gram.h"
#include "../ghost_pair/checks.h"

namespace fastue {
namespace {

struct Job {
  const float *a, *e, *a2, *e2;
  const double* grad;
  float *a_out, *e_out;
  PairShape shape;
};

// One sample's side with the gradient of its x2.
struct Target {
  Side side;
  float* out;
};
Target inputs(const Job& job, int64_t i) {
  const int64_t at = i * job.shape.inputs * job.shape.places;
  return {{job.a + at, job.a2 + at, job.shape.inputs, job.shape.places}, job.a_out + at};
}
Target errors(const Job& job, int64_t i) {
  const int64_t at = i * job.shape.outputs * job.shape.places;
  return {{job.e + at, job.e2 + at, job.shape.outputs, job.shape.places}, job.e_out + at};
}

// Of q and m, what stands before the Gram products x.x2 and d.x2.
struct Scale {
  double q, m2;
};

// What the products of one pair of blocks need: the blocks, and where their parts lie, all of them [...][width or cols].
struct Room {
  Places u, t;
  int64_t width, cols;  // of [x | d] at u, of x2 at t
  float *packed, *shown, *result;

  int64_t run() const { return kPacked / 4 / std::max(width, cols); }  // rows at a time
};

// Rows [k, k + rows) of x2 at t.
template <class I>
FASTUE_INLINE void pack_shown(const Room& r, const Side& s, int64_t k, int64_t rows) {
  const float* x2 = s.x2 + k * s.places + r.t.first;
  float* p = r.shown;
  for (int64_t i = 0; i < rows; ++i, x2 += s.places, p += r.cols) {
    for (int64_t t = 0; t < r.t.count; ++t) p[t] = x2[t];
    for (int64_t t = r.t.count; t < r.cols; ++t) p[t] = 0;
  }
}

// gram[width][cols] (+)= the packed rows' products.
template <class I>
FASTUE_INLINE void add_products(const Room& r, int64_t depth, float* gram, bool add) {
  for (int64_t j = 0; j < r.cols; j += I::kCols)
    for (int64_t i = 0; i < r.width; i += I::kRows)
      multiply<I>(r.packed + i, r.width, 1, r.shown + j, r.cols, depth, gram + i * r.cols + j, r.cols, add);
}

// From (x.x2, d.x2) to (q x.x2 + 2m d.x2, 2m x2.x2), in place.
FASTUE_INLINE void rescale(const Room& r, const Scale& scale, float* gram) {
  float* other = gram + r.u.count * r.cols;
  for (int64_t i = 0; i < r.u.count * r.cols; ++i) {
    const double x = gram[i], d = other[i];
    gram[i] = static_cast<float>(scale.q * x + scale.m2 * d);
    other[i] = static_cast<float>(scale.m2 * (x + d));
  }
}

// out[k..][t] (+)= the packed rows [x | d] times gram.
template <class I>
FASTUE_INLINE void apply(const Room& r, const Target& to, int64_t k, int64_t rows, const float* gram, bool add) {
  for (int64_t j = 0; j < r.cols; j += I::kCols)
    for (int64_t i = 0; i < rows; i += I::kRows)
      multiply<I>(r.packed + i * r.width, 1, r.width, gram + j, r.cols, 2 * r.u.count, r.result + i * r.cols + j, r.cols,
                  false);
  float* out = to.out + k * to.side.places + r.t.first;
  const float* from = r.result;
  for (int64_t i = 0; i < rows; ++i, out += to.side.places, from += r.cols)
    if (add) {
      for (int64_t t = 0; t < r.t.count; ++t) out[t] += from[t];
    } else {
      for (int64_t t = 0; t < r.t.count; ++t) out[t] = from[t];
    }
}

template <class I>
FASTUE_INLINE void work(const Job& job, int64_t begin, int64_t end) {
  static thread_local Buffer memory;
  constexpr int64_t kGram = (2 * kPlaces + 16) * kPlaces;
  float* packed = reinterpret_cast<float*>(memory.get((3 * (kPacked / 4 + kSlack) + 2 * kGram) * 4));
  float *shown = packed + kPacked / 4 + kSlack, *result = shown + kPacked / 4 + kSlack;
  float *of_errors = result + kPacked / 4 + kSlack, *of_inputs = of_errors + kGram;
  const int64_t tiles = tiles_of(job.shape.places);
  for (int64_t j = begin; j < end; ++j) {
    const Target x = inputs(job, j / tiles), y = errors(job, j / tiles);
    const Scale scale{job.grad[j / tiles * 3 + 1], 2 * job.grad[j / tiles * 3 + 2]};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const Places u(tile, job.shape.places), t(j % tiles, job.shape.places);
      const Room room{u, t, I::padded(2 * u.count), I::padded(t.count), packed, shown, result};
      const int64_t run = room.run();
      for (int64_t k = 0; k < y.side.depth || k == 0; k += run) {
        const int64_t rows = std::min(run, y.side.depth - k);
        pack<I>(y.side, u, k, rows, room.width, packed);
        pack_shown<I>(room, y.side, k, rows);
        add_products<I>(room, rows, of_errors, k > 0);
      }
      rescale(room, scale, of_errors);
      for (int64_t k = 0; k < x.side.depth || k == 0; k += run) {
        const int64_t rows = std::min(run, x.side.depth - k);
        pack<I>(x.side, u, k, rows, room.width, packed);
        pack_shown<I>(room, x.side, k, rows);
        add_products<I>(room, rows, of_inputs, k > 0);
        apply<I>(room, x, k, rows, of_errors, tile > 0);
      }
      rescale(room, scale, of_inputs);
      for (int64_t k = 0; k < y.side.depth; k += run) {
        const int64_t rows = std::min(run, y.side.depth - k);
        pack<I>(y.side, u, k, rows, room.width, packed);
        apply<I>(room, y, k, rows, of_inputs, tile > 0);
      }
    }
  }
}

// T = 1: out = x (q y.y2 + 2m g.y2) + d 2m y2.y2 with g = y2 - y.
FASTUE_INLINE void combine(const Target& to, const Dots& y, const Scale& scale) {
  const double near = scale.q * (y.xx + y.xd) + scale.m2 * (y.xd + y.dd), far = scale.m2 * (y.xx + (2 * y.xd + y.dd));
  const float near_f = static_cast<float>(near), far_f = static_cast<float>(far);
  for (int64_t k = 0; k < to.side.depth; ++k)
    to.out[k] = to.side.x[k] * near_f + (to.side.x2[k] - to.side.x[k]) * far_f;
}

template <class I>
FASTUE_INLINE void work_linear(const Job& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Target x = inputs(job, i), y = errors(job, i);
    const Scale scale{job.grad[i * 3 + 1], 2 * job.grad[i * 3 + 2]};
    combine(x, dots<I>(y.side.x, y.side.x2, y.side.depth), scale);
    combine(y, dots<I>(x.side.x, x.side.x2, x.side.depth), scale);
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

std::tuple<Tensor, Tensor> ghost_pair_backward(const Tensor& grad, const Tensor& a, const Tensor& e, const Tensor& a2,
                                               const Tensor& e2) {
  Job job{};
  job.shape = check_pair(a, e, a2, e2);
  check_gradient(grad, a);
  const Tensor a_out = torch::stable::empty_like(a2), e_out = torch::stable::empty_like(e2);
  job.a = a.const_data_ptr<float>(), job.e = e.const_data_ptr<float>();
  job.a2 = a2.const_data_ptr<float>(), job.e2 = e2.const_data_ptr<float>();
  job.grad = grad.const_data_ptr<double>();
  job.a_out = a_out.mutable_data_ptr<float>(), job.e_out = e_out.mutable_data_ptr<float>();
  static const Work by_blocks = fastest<Work>(work_baseline, work_v3, work_v4);
  static const Work by_rows = fastest<Work>(linear_baseline, linear_v3, linear_v4);
  const Work work = job.shape.places == 1 ? by_rows : by_blocks;
  const int64_t jobs = job.shape.batch * tiles_of(job.shape.places), each = job.shape.inputs + job.shape.outputs;
  const int64_t products = each * std::min(kPlaces, job.shape.places) * job.shape.places;
  if (jobs > 0)
    torch::stable::parallel_for(0, jobs, (int64_t{1} << 17) / (products + 1) + 1,
                                [&](int64_t begin, int64_t end) { work(job, begin, end); });
  return {a_out, e_out};
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) {
  m.impl("ghost_pair_backward", TORCH_BOX(&fastue::ghost_pair_backward));
}
