// What grad_cosine and its gradient compute of a pair of numbers, on the CPU and on CUDA.
#pragma once

#include "pictures.h"

namespace fastue {

// Sums over elements: |g|^2, <g, h - g>, |h - g|^2. Products of two float32 numbers are exact in float64.
struct Triple {
  double n, q, m;

  FASTUE_HD FASTUE_INLINE void add(float g, float h) {
    const double target = g, difference = h - g;
    n += target * target;
    q += target * difference;
    m += difference * difference;
  }
  FASTUE_HD FASTUE_INLINE void add(const Triple& other) {
    n += other.n;
    q += other.q;
    m += other.m;
  }
};

// v = alpha g + beta (h - g)
struct Weights {
  double alpha, beta;

  // From the gradient in (n, q, m), to that in h, or in the targets g.
  FASTUE_HD FASTUE_INLINE Weights(const double* grad, bool targets)
      : alpha(targets ? 2 * grad[0] - grad[1] : grad[1]), beta(targets ? grad[1] - 2 * grad[2] : 2 * grad[2]) {}

  FASTUE_HD FASTUE_INLINE float of(float g, float h) const {
    return static_cast<float>(alpha * static_cast<double>(g) + beta * static_cast<double>(h - g));
  }
};

}  // namespace fastue
