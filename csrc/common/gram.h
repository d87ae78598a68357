// Small products of float matrices on the CPU, for the ghost ops: Gram matrices of a layer's inputs and errors, and
// what is multiplied by them. Plain C++: the vectors are GCC's, and each instruction set gets its own copy.
//
// A block is a range of at most kPlaces places of x and of its change x2 - x, copied for a range of rows [k] side by
// side: [x | x2 - x], padded with zeros to a multiple of the columns of a small product. Places lie side by side in x
// [depth, T], so that the Gram matrix of two blocks is a sum of outer products of their rows, and nothing is transposed.
#pragma once

#include "conv.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector is passed: everything that has one is inlined

#if defined(FASTUE_X86_CLONES)
#define FASTUE_FMA optimize("fp-contract=fast")
#define FASTUE_GRAM_V3 __attribute__((target("arch=x86-64-v3"), FASTUE_FMA))
#define FASTUE_GRAM_V4 __attribute__((target("arch=x86-64-v4"), FASTUE_FMA))
#endif

namespace fastue {

constexpr int64_t kPlaces = 64;            // of a block
constexpr int64_t kPacked = 16 << 10;      // bytes of a packed block: half of an L1 cache
constexpr int64_t kSlack = 16 * kPlaces * 2;  // floats that a small product may read behind a packed block

// An instruction set: lanes of a vector, rows of a small product, which has two vectors of columns.
template <int LANES, int ROWS>
struct Isa {
  static constexpr int kLanes = LANES, kRows = ROWS, kCols = 2 * LANES;
  typedef float Vector __attribute__((vector_size(4 * LANES)));
  typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
  static FASTUE_INLINE Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static FASTUE_INLINE void store(float* p, const Vector& v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static int64_t padded(int64_t n) { return up(n, kCols) * kCols; }
};
using Baseline = Isa<4, 4>;
using V3 = Isa<8, 6>;
using V4 = Isa<16, 12>;

// c[r][j] = sum over k of a[k*by_k + r*by_row] * b[k*b_k + j], or += that.
template <class I>
FASTUE_INLINE void multiply(const float* a, int64_t by_k, int64_t by_row, const float* b, int64_t b_k, int64_t depth,
                            float* c, int64_t c_row, bool add) {
  typename I::Vector sum[I::kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < I::kRows; ++r) sum[r][0] = sum[r][1] = typename I::Vector{};
  for (int64_t k = 0; k < depth; ++k, a += by_k, b += b_k) {
    const auto b0 = I::load(b), b1 = I::load(b + I::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < I::kRows; ++r) {
      const float v = a[r * by_row];
      sum[r][0] += v * b0;
      sum[r][1] += v * b1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < I::kRows; ++r, c += c_row) {
    if (add) sum[r][0] += I::load(c), sum[r][1] += I::load(c + I::kLanes);
    I::store(c, sum[r][0]);
    I::store(c + I::kLanes, sum[r][1]);
  }
}

// One sample's x and x2 [depth, T].
struct Side {
  const float *x, *x2;
  int64_t depth, places;
};

// Places [first, first + count) of a sample.
struct Places {
  int64_t first, count;
  Places(int64_t tile, int64_t all) : first(tile * kPlaces), count(std::min(kPlaces, all - first)) {}
};
inline int64_t tiles_of(int64_t places) { return up(places, kPlaces); }

// Rows [k, k + rows) of a block to p[rows][width].
template <class I>
FASTUE_INLINE void pack(const Side& s, const Places& at, int64_t k, int64_t rows, int64_t width, float* p) {
  const float *x = s.x + k * s.places + at.first, *x2 = s.x2 + k * s.places + at.first;
  for (int64_t r = 0; r < rows; ++r, x += s.places, x2 += s.places, p += width) {
    for (int64_t t = 0; t < at.count; ++t) p[t] = x[t];
    for (int64_t t = 0; t < at.count; ++t) p[at.count + t] = x2[t] - x[t];
    for (int64_t t = 2 * at.count; t < width; ++t) p[t] = 0;
  }
}

// What a column or a row of T = 1 needs: x.x, x.d, d.d with d = x2 - x. Vectors of sums become double now and then.
struct Dots {
  double xx = 0, xd = 0, dd = 0;
};
template <class I>
FASTUE_INLINE Dots dots(const float* x, const float* x2, int64_t count) {
  constexpr int64_t kRun = 1024;
  Dots all;
  for (int64_t first = 0; first < count; first += kRun) {
    const int64_t last = std::min(count, first + kRun);
    typename I::Vector xx[2] = {}, xd[2] = {}, dd[2] = {};
    int64_t k = first;
    for (; k + I::kCols <= last; k += I::kCols)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const auto v = I::load(x + k + h * I::kLanes), d = I::load(x2 + k + h * I::kLanes) - v;
        xx[h] += v * v;
        xd[h] += v * d;
        dd[h] += d * d;
      }
    for (int h = 0; h < 2; ++h)
      for (int l = 0; l < I::kLanes; ++l) all.xx += xx[h][l], all.xd += xd[h][l], all.dd += dd[h][l];
    for (; k < last; ++k) {
      const double v = x[k], d = x2[k] - x[k];
      all.xx += v * v;
      all.xd += v * d;
      all.dd += d * d;
    }
  }
  return all;
}

// The fastest of three copies of a function of this CPU.
template <class F>
F fastest(F baseline, [[maybe_unused]] F v3, [[maybe_unused]] F v4) {
#if defined(FASTUE_X86_CLONES)
  if (__builtin_cpu_supports("x86-64-v4")) return v4;
  if (__builtin_cpu_supports("x86-64-v3")) return v3;
#endif
  return baseline;
}

}  // namespace fastue
