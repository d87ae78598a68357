// What the CUDA kernels of ghost_pair and its backward share: tiles of places in shared memory, dot products.
#pragma once

#include "ghost_pair.h"

namespace fastue {

constexpr int kSide = 16;   // a block has kSide x kSide threads
constexpr int kDepth = 16;  // rows in shared memory at a time
static_assert(kSide * kSide == kThreads && kTilePlaces == 2 * kSide);

// Rows of x at some places, and of d = x2 - x.
struct Pair {
  float x[kDepth][kTilePlaces], d[kDepth][kTilePlaces];

  // Rows from k on of a sample [rows, places], at the places of a tile; zero where there is nothing.
  __device__ FASTUE_INLINE void load(const float* x1, const float* x2, int64_t k, int64_t rows, int64_t tile,
                                     int64_t places) {
#pragma unroll 1  // two rounds: registers count here
    for (int i = static_cast<int>(threadIdx.x); i < kDepth * kTilePlaces; i += kThreads) {
      const int64_t row = k + i / kTilePlaces, place = tile * kTilePlaces + i % kTilePlaces;
      const bool known = row < rows && place < places;
      const float v = known ? x1[row * places + place] : 0.0f;
      x[i / kTilePlaces][i % kTilePlaces] = v;
      d[i / kTilePlaces][i % kTilePlaces] = known ? x2[row * places + place] - v : 0.0f;
    }
  }
};

// A thread's two places of a tile: one in each half, so that neighbours read neighbours.
__device__ FASTUE_INLINE int row_of(int r) { return static_cast<int>(threadIdx.x) / kSide + r * kSide; }
__device__ FASTUE_INLINE int col_of(int c) { return static_cast<int>(threadIdx.x) % kSide + c * kSide; }

// Sum over the block, the same in every thread and in a fixed order.
__device__ inline double block_sum(double v) {
  __shared__ double parts[kThreads];
  __syncthreads();
  parts[threadIdx.x] = v;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  return parts[0];
}

struct Dots {
  double xx, xd, dd;
};
// x.x, x.d and d.d of vectors, by a block; the same in all threads.
__device__ inline Dots dots(const float* x1, const float* x2, int64_t count) {
  double xx = 0, xd = 0, dd = 0;
  for (int64_t k = threadIdx.x; k < count; k += kThreads) {
    const float v = x1[k], f = x2[k] - v;
    xx += static_cast<double>(v) * static_cast<double>(v);
    xd += static_cast<double>(v) * static_cast<double>(f);
    dd += static_cast<double>(f) * static_cast<double>(f);
  }
  xx = block_sum(xx);
  xd = block_sum(xd);
  return {xx, xd, block_sum(dd)};
}

}  // namespace fastue
